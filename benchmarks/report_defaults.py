"""docs/results/defaults.md, from rows of benchmarks/defaults.py; called by report.py."""

import statistics
from typing import Any

from report import RESULTS, Row, rows, table, where

DATA = {
    "unseen": "A folder of 164 scores that nothing was chosen on: string quartets and piano pieces, German and British songs",
    "chorales": "Chorales, `data=chorales`, which `make train` trains on",
    "genres": "Five genres, a folder of 371 scores: the rates, the schedule and the number of steps were chosen on it",
}


def spread(values: list[float], digits: int = 3) -> str:
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _cells(mine: list[Row]) -> list[str]:
    steps = sorted({int(row["best_step"]) for row in mine})
    kept, asked = sum(row["in_key"] for row in mine), sum(row["asked"] for row in mine)
    return [
        str(len(mine)), str(mine[0]["steps"]), spread([row["best"] for row in mine]),
        f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}", spread([row["final"] for row in mine]),
        spread([row["test"] for row in mine]), spread([row["in_scale"] for row in mine], 2), f"{kept} of {asked}",
        f"{statistics.mean(row['cpu_s'] for row in mine) / 60:.1f}",
    ]  # fmt: skip


def section(found: list[Row]) -> str:
    """The table of one set of data, the former default last."""
    header = ["default", "seeds", "steps", "best val, nats/token", "at step", "last val", "test, nats/token",
              "notes in scale", "asked key", "CPU-minutes"]  # fmt: skip
    names = sorted(dict.fromkeys(row["name"] for row in found), key=lambda name: name == "former")
    lines = [[name, *_cells([row for row in found if row["name"] == name])] for name in names]
    real = statistics.mean(row["in_scale_real"] for row in found)
    return f"{table(header, lines)}\n\nOf held-out pieces, {real:.2f} of the notes lie in the scale of their key."


def defaults() -> str:
    """docs/results/defaults.md; returns its table of the summary."""
    latest = {(row["data"], row["name"], row["seed"]): row for row in rows("defaults.jsonl")}
    found: list[dict[str, Any]] = list(latest.values())
    if not found:
        return ""
    parts = [
        "# The default of language models",
        "The default (Muon, WSD, an average of 0.99) beside the one before it (AdamW, a cosine, an average of 0.999, 1,200 "
        "steps), on the same data, in one run of the benchmark, validated every 100 steps. What is drawn and tested is the best "
        "checkpoint. Notes in scale: the share that lies in the scale of a piece's estimated key, over 24 samples of 8 bars with "
        "nothing asked. Asked key: how many of 12 samples each that were asked for G major and for D minor are in that key, by "
        "estimate, before generate.py transposes them. CPU-minutes are of training alone.",
    ]
    short = []
    for data, title in DATA.items():
        if mine := [row for row in found if row["data"] == data]:
            parts += [f"## {title}", section(mine), where(mine)]
            for name in ("new", "former"):
                if group := [row for row in mine if row["name"] == name]:
                    cells = _cells(group)
                    short.append([f"{data}: {name}", *(cells[i] for i in (1, 2, 5, 6, 7, 8))])
    parts.append("Regenerate: `python benchmarks/defaults.py --data unseen chorales`, then `make report`.")
    notes = RESULTS / "defaults_notes.md"
    if notes.exists():
        parts.append(notes.read_text().rstrip())
    (RESULTS / "defaults.md").write_text("\n\n".join(parts) + "\n")
    header = ["default of language models", "steps", "best val, nats/token", "test", "notes in scale", "asked key", "CPU-minutes"]
    return table(header, short) if short else ""
