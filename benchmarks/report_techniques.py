"""docs/results/techniques.md and its pictures, from rows of the technique benchmarks; called by report.py."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from report import RESULTS, Row, rows, table, where
from report_tokenizers import adversarial

DATA = {
    "jsb": "JSB chorales, canonical split (229 pieces to train on)",
    "genres": "Five genres, a folder of 371 scores (classical, folk, jazz, pop, rock), REMI tokens",
    "jsb_muon": "The chorales again, with Muon instead of AdamW in all rows",
    "genres_muon": "The five genres again, with Muon instead of AdamW in all rows",
    "augmented": "Augmentation and a teacher's samples on the five genres, with Muon in all rows",
    "augmented_few": "The same with a tenth of the pieces to train on",
    "augmented_jsb": "The same on all chorales (mixup needs embeddings, which this network has none of)",
    "distillation": "Distillation on JSB: a student of a quarter of the teacher's parameters",
}
BASE = dict.fromkeys(DATA, "bare") | {"distillation": "student alone"}
BAR = ("level basic", "level enhanced")


def reached(row: Row, goal: float, column: int) -> float:
    """Returns the steps (column 0) or CPU-seconds (column 1) at which the curve first reaches `goal`, interpolated linearly
    between validations; infinite if it never does."""
    before: Sequence[float] | None = None
    for point in row["curve"]:
        if point[2] <= goal:
            if before is None or before[2] == point[2]:
                return float(point[column])
            share = (before[2] - goal) / (before[2] - point[2])
            return float(before[column] + share * (point[column] - before[column]))
        before = point
    return math.inf


def share_of(mine: list[Row], base: dict[int, Row], column: int) -> str:
    """Returns the share of the baseline's steps or seconds after which its final value is reached, a median over seeds."""
    pairs = [(row, base[row["seed"]]) for row in mine if row["seed"] in base]
    shares = [reached(row, bare["final"], column) / bare["curve"][-1][column] for row, bare in pairs]
    if not shares:
        return ""
    middle = statistics.median(shares)
    return "not reached" if math.isinf(middle) else f"{100 * middle:.0f} %"


def spread(values: list[float], digits: int = 4, sign: bool = False) -> str:
    text = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def section(data: str, found: list[Row]) -> str:
    """Returns the table of one data set."""
    base = {row["seed"]: row for row in found if row["name"] == BASE[data]}
    lines = []
    for name in dict.fromkeys(row["name"] for row in found):
        mine = [row for row in found if row["name"] == name]
        paired = [row["best"] - base[row["seed"]]["best"] for row in mine if row["seed"] in base]
        steps = statistics.mean(row["cpu_s"] / row["steps"] for row in mine)
        bare = statistics.mean(row["cpu_s"] / row["steps"] for row in base.values()) if base else math.nan
        lines.append([
            f"**{name}**" if name == BASE[data] else name, str(len(mine)), f"{mine[0]['parameters'] / 1e6:.2f}",
            spread([row["best"] for row in mine]), spread(paired, sign=True) if paired and name != BASE[data] else "",
            share_of(mine, base, 0), share_of(mine, base, 1), f"{steps / bare:.2f}", spread([row["overlap"] for row in mine], 3),
        ])  # fmt: skip
    header = ["", "seeds", "parameters, M", "best val, nats/token", "difference to the baseline, same seed",
              "reaches its final value after, of its steps",
              "of its CPU time", "cost of a step", "overlap with real music"]  # fmt: skip
    return table(header, lines)


def against_basic(found: list[Row]) -> str:
    """Returns a sentence on when the higher levels reach the final value of level=basic."""
    basic = {row["seed"]: row for row in found if row["name"] == "level basic"}
    told = []
    for name in ("level enhanced", "level experimental", "fast_convergence"):
        mine = [row for row in found if row["name"] == name]
        if mine and basic:
            told.append(f"{name} after {share_of(mine, basic, 0)} of the steps ({share_of(mine, basic, 1)} of the CPU time)")
    return f"The final value of level basic is reached by {'; '.join(told)}." if told else ""


def pictures(data: str, found: list[Row]) -> str:
    """Draws one panel for each row: its curves and those of the baseline."""
    from matplotlib.figure import Figure

    names = [name for name in dict.fromkeys(row["name"] for row in found) if name != BASE[data]]
    columns = 4
    figure = Figure(figsize=(2.9 * columns, 1.9 * -(-len(names) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flatten()
    bare = [row for row in found if row["name"] == BASE[data]]
    ends = [row["final"] for row in bare] or [row["final"] for row in found]
    for axis, name in zip(axes, names, strict=False):
        for chosen, colour in ((bare, "#999"), ([row for row in found if row["name"] == name], "#0a62a9")):
            for row in chosen:
                axis.plot([p[0] for p in row["curve"]], [p[2] for p in row["curve"]], color=colour, linewidth=0.9)
        axis.set_title(name, fontsize=8)
        low = min(row["best"] for row in found)
        axis.set_ylim(low - 0.03 * low, statistics.mean(ends) * 1.35)
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("steps", fontsize=8)
    figure.supylabel("validation, nats per token (grey: the baseline)", fontsize=8)
    figure.savefig(RESULTS / f"techniques_{data}.png", dpi=110, metadata={"Software": None})
    return f"![A curve for each row](techniques_{data}.png)"


def options(found: list[Row]) -> str:
    """Returns the command-line options of each row."""
    shared: set[str] = set.intersection(*(set(row["options"].split()) for row in found)) if found else set()
    lines = []
    for name in dict.fromkeys(row["name"] for row in found):
        row = next(row for row in found if row["name"] == name)
        own = [o for o in row["options"].split() if o not in shared and not o.startswith("seed=")]
        lines.append(f"- {name}: `{' '.join(own)}`")
    return f"All: `{' '.join(o for o in found[0]['options'].split() if o in shared)}`\n\n" + "\n".join(lines)


def overhead() -> str:
    """Returns the section on the overhead of each technique per step."""
    found = list({row["case"]: row for row in rows("technique_overhead.jsonl")}.values())
    if not found:
        return ""
    lines = [
        [f"`{row['case'].replace('+', ' ')}`", f"{100 * row['own']:.2f} %",
         f"{100 * (statistics.median(row['ratios']) - 1):+.1f} %",
         f"{100 * (min(row['ratios']) - 1):+.1f} to {100 * (max(row['ratios']) - 1):+.1f} %"]
        for row in found
    ]  # fmt: skip
    return "\n\n".join((
        "## Overhead per step\n\nTwo runs in one process alternate step by step, one of them without techniques. The time is "
        "the CPU time of the thread between two batches, without validation. Own methods: time in the techniques' methods, a "
        "mean over steps. Paired: median ratio over pairs of steps, for repeated pairs of runs; the first line shows how much "
        "two runs without techniques differ. The budget of live_quality is in wall time, which the other run uses, too: so "
        "1.5 % here is a budget of 3 %.",
        table(["options", "own methods", "paired, median", "paired, range of builds"], lines), where(found),
    ))  # fmt: skip


def summary(found: list[Row]) -> str:
    """Returns the summary's table of techniques."""
    lines = []
    for data in ("jsb", "genres"):
        mine = [row for row in found if row["data"] == data]
        base = {row["seed"]: row for row in mine if row["name"] == BASE[data]}
        lines += [
            [f"{data}: {name}", spread([r["best"] for r in group]), share_of(group, base, 0)]
            for name in ("bare", "ema", "curriculum", *BAR, "level experimental", "fast_convergence")
            if (group := [row for row in mine if row["name"] == name])
        ]
    lines += [
        [f"distillation: {name}", spread([r["best"] for r in group]), ""]
        for name in ("teacher", "student alone", "student distilled")
        if (group := [row for row in found if row["data"] == "distillation" and row["name"] == name])
    ]
    return table(["technique", "best val, nats/token", "reaches the bare run's final value after"], lines) if lines else ""


def techniques() -> str:
    """docs/results/techniques.md and its pictures; returns its table of the summary."""
    latest = {(row["data"], row["name"], row["seed"]): row for row in rows("techniques.jsonl")}
    found: list[dict[str, Any]] = list(latest.values())
    if not found:
        return ""
    parts = ["# Techniques\n\nEach row has the same data, model, number of steps and seeds as its baseline; only the "
             "options below differ. Curves have 12 validations, with linear interpolation between them."]  # fmt: skip
    for data, title in DATA.items():
        mine = [row for row in found if row["data"] == data]
        if mine:
            parts += [f"## {title}", section(data, mine), against_basic(mine), pictures(data, mine), options(mine), where(mine)]
    parts += [overhead(), adversarial()]
    notes = RESULTS / "techniques_notes.md"
    parts.append(
        "Regenerate: `make effects JSB=Jsb16thSeparated.json SCORES=FOLDER` measures what has no row yet, `make report` writes "
        "this page."
    )
    if notes.exists():
        parts.append(notes.read_text())
    (RESULTS / "techniques.md").write_text("\n\n".join(part for part in parts if part) + "\n")
    return summary(found)
