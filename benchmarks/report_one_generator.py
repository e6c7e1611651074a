"""The section of docs/results/style_transfer.md on one generator for all styles, and on clips that give styles."""

import statistics
from collections.abc import Mapping
from typing import Any

from report import Row, rows, table, where

SHOWN = ("l1_nats", "chroma_r", "accuracy", "frechet_bel2", "onset_f")
BUDGET_S = 90  # of each pair, whose rows are compared with
Columns = Mapping[str, tuple[str, Any, int]]  # label, factor, decimal places

KNOWN = """Held-out tunes, restyled by the style's name, by clips of its training tunes in turn, and as a control by the
name with clips of a third style: what the clip adds to the name."""

UNKNOWN = """A style that the model never heard: a brass band that plays the same held-out tunes (trumpet, horns, tuba, drums),
shown by clips of validation tunes in turn. *Nearest style*: of the two that are not the source, the one whose bands are
nearest to the clip; its name stands for the unknown style. *Bands of the clip*: the result gets the mean and deviation of the
clip's bands, not those of the nearest style."""


def one_generator(columns: Columns, pairwise: list[Row]) -> list[str]:
    """Returns the section: one generator beside one for each direction, then styles given by clips.

    columns: of the tables of styles. pairwise: rows of the default recipe.
    """
    latest = list({(r["model"], r["source"], r["target"], r["row"]): r for r in rows("style_clips.jsonl")}.values())
    parts = ["## One generator for all styles"] if latest else []
    for model in dict.fromkeys(row["model"] for row in latest):
        mine = [row for row in latest if row["model"] == model]
        known, unknown = ([row for row in mine if ("accuracy" in row) is wanted] for wanted in (True, False))
        parts += [
            _against_pairs(mine[0], known, columns, pairwise),
            KNOWN,
            _by_row("mean of six directions", known, columns, SHOWN),
        ]
        without_accuracy = [column for column in SHOWN if column != "accuracy"]
        if unknown:
            parts += [
                UNKNOWN,
                _by_row(
                    f"mean over {' and '.join(dict.fromkeys(row['source'] for row in unknown))}",
                    unknown,
                    columns,
                    without_accuracy,
                ),
            ]
        parts.append(where(mine))
    return parts


def _against_pairs(about: Row, known: list[Row], columns: Columns, pairwise: list[Row]) -> str:
    lines = []
    for source, target in dict.fromkeys((row["source"], row["target"]) for row in known):
        ours = {row["row"]: row for row in known if (row["source"], row["target"]) == (source, target)}
        theirs = [
            row
            for row in pairwise
            if (row["source"], row["target"], row["budget_s"], row["row"]) == (source, target, BUDGET_S, "model")
        ]
        lines.append([f"{source} to {target}: affine", *_means([ours["affine"]], columns, SHOWN)])
        if theirs:
            lines.append([f"a generator for each direction, {len(theirs)} seeds", *_means(theirs, columns, SHOWN)])
        lines.append(["**one generator**", *_means([ours["by name"]], columns, SHOWN)])
    pairs = [row for row in pairwise if row["budget_s"] == BUDGET_S and row["row"] == "model"]
    steps, size = round(statistics.mean(row["steps"] for row in pairs)), pairs[0]["parameters"] / 2
    introduction = (
        f"`task=stargan`: {about['model']}, {about['steps']:,} steps over all six directions with 24 segments each, "
        f"{about['parameters'] / 1e6:.2f} M parameters in all, one seed. Beside it the rows above of two runs of a pair each, "
        f"{BUDGET_S} CPU-seconds and {steps:,} steps of 16 segments, with {size / 1e6:.2f} M parameters for each direction."
    )
    return introduction + "\n\n" + table(["direction", *_labels(columns, SHOWN)], lines)


def _by_row(title: str, found: list[Row], columns: Columns, shown: Any) -> str:
    names = dict.fromkeys(row["row"] for row in found)
    lines = [[name, *_means([row for row in found if row["row"] == name], columns, shown)] for name in names]
    return table([title, *_labels(columns, shown)], lines)


def _labels(columns: Columns, shown: Any) -> list[str]:
    return [columns[name][0] for name in shown]


def _means(found: list[Row], columns: Columns, shown: Any) -> list[str]:
    scales = [(name, *columns[name][1:]) for name in shown]
    return [f"{factor * statistics.mean(row[name] for row in found):.{digits}f}" for name, factor, digits in scales]
