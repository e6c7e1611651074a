"""What fine-tuning on a small folder gives, from rows of my_style.py; called by report_generation.py."""

import statistics
from collections.abc import Sequence

from report import Row, rows, table, where


def own_style() -> tuple[list[str], list[list[str]]]:
    """The section of docs/results/generation.md, and rows of the summary's table."""
    if not (found := rows("my_style.jsonl")):
        return [], []
    header = ["pieces, case", "seeds", "trained", "val", "test", "in key", "distance", "copied", "CPU-minutes", "peak, MB"]
    lines = [
        [
            f"{group[0]['data']}: {name}", str(len(group)), f"{group[0]['trained']:,}", _mean(group, "val"), _mean(group, "test"),
            _mean(group, "in_key"), _mean(group, "distance"), _mean(group, "copied"), f"{_value(group, 'cpu_min'):.1f}",
            f"{_value(group, 'peak_mb'):.0f}",
        ]
        for name, group in _cases(found)
    ]  # fmt: skip
    for data in dict.fromkeys(row["data"] for row in found):
        group = [row for row in found if row["data"] == data and not row["options"].count("weights=null")]
        start = [f"{_value(group, f'{column}_before'):.3f}" for column in ("val", "test", "in_key", "distance", "copied")]
        real = [f"{_value(group, f'{column}_real'):.3f}" for column in ("in_key", "distance", "copied")]
        lines += [[f"{data}: the bundled model", "", "0", *start, "", ""], [f"{data}: the pieces", "", "", "", "", *real, "", ""]]
    return [
        "## Your own style: fine-tuning on one folder",
        "`experiment=my_style`, nats per token of held-out pieces, and what is measured of 16 samples of 8 bars: the share of "
        "notes in their key, the mean distance of the musical metrics from held-out pieces in deviations, and the share of "
        "passages of 12 notes that occur in training pieces (of a piece itself: in other pieces). At equal steps, with early "
        "stopping; minutes and memory are those of the whole command, samples and report included.",
        table(header, sorted(lines)), where(found),
    ], [
        [f"own style, {group[0]['data']}: nats per token of test pieces before, after", _mean(group, "test_before", "test")]
        for name, group in _cases(found)
        if name == "adapters"
    ]  # fmt: skip


def _cases(found: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        groups.setdefault((row["data"], row["name"]), []).append(row)
    return [(name, group) for (_, name), group in groups.items()]


def _value(group: Sequence[Row], column: str) -> float:
    return statistics.mean(row[column] for row in group if column in row)


def _mean(group: Sequence[Row], *columns: str) -> str:
    """The mean over seeds, with the deviation of two or more; of several columns one after another."""
    shown = []
    for column in columns:
        values = [row[column] for row in group if column in row]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 and len(columns) == 1 else ""
        shown.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
    return ", ".join(shown)
