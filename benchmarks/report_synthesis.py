"""docs/results/synthesis.md and its picture, from rows of benchmarks/synthesis.py; called by report.py."""

import math
import statistics

from report import RESULTS, Row, rows, table, where

NAMES = {
    "mean": "the mean spectrum",
    "linear": "a linear map of each frame's notes",
    "model": "**the model**",
    "rebuilt": "the model with the recording's latents",
    "true": "the recording's own mel",
}
COLUMNS = {"l1_nats": "log-mel L1, nats", "chroma_r": "chroma correlation", "onset_f": "onset agreement, F",
           "frechet_bel2": "Fréchet distance, bel²", "note_f1": "note F1"}  # fmt: skip
LEVELS = {"basic": "#0072B2", "enhanced": "#D55E00"}


def synthesis() -> str:
    """Writes docs/results/synthesis.md; returns its table of the summary."""
    found = rows("synthesis.jsonl")
    default, levels = ([row for row in found if row["case"] == case] for case in ("default", "level"))
    if not default:
        return ""
    notes = RESULTS / "synthesis_notes.md"
    parts = ["# Synthesis: scores to sound", _default(default)]
    if levels:
        _draw(levels)
        parts.append(_levels(levels))
    text = "\n\n".join([*parts, *([notes.read_text().rstrip()] if notes.exists() else [])])
    (RESULTS / "synthesis.md").write_text(text + "\n")
    short = [[NAMES[name], _spread(_values(default, name, "l1_nats"), 3)] for name in NAMES if name not in ("rebuilt", "true")]
    return table(["synthesis of held-out tunes, from the notes alone", "log-mel L1, nats"], short)


def _values(found: list[Row], name: str, column: str) -> list[float]:
    """Returns for each seed the mean over styles of a column of the rows of one name."""
    seeds = sorted({row["seed"] for row in found})
    mine = [[row[column] for row in found if row["row"] == name and row["seed"] == seed] for seed in seeds]
    return [statistics.mean(values) for values in mine if values]


def _spread(values: list[float], digits: int) -> str:
    if any(math.isnan(value) for value in values):
        return ""  # a constant has no correlation
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _default(found: list[Row]) -> str:
    header = ["style", "row", *COLUMNS.values()]
    lines = [
        [
            style,
            NAMES[name],
            *(_spread([r.get(c, math.nan) for r in found if (r["style"], r["row"]) == (style, name)], 3) for c in COLUMNS),
        ]
        for style in dict.fromkeys(row["style"] for row in found)
        for name in NAMES
        if any((r["style"], r["row"]) == (style, name) for r in found)
    ]
    seeds, minutes = {row["seed"] for row in found}, statistics.mean({row["cpu_s"] for row in found}) / 60
    pictures = sorted(path.name for path in RESULTS.glob("synthesis_*.png"))
    shown = "\n\n".join(
        f"![Notes of a held-out tune ({name[10:-4]}) above the true mel, the linear map's and the model's]({name})"
        for name in pictures
    )
    return f"""`python train.py task=synthesis` with the defaults, {len(seeds)} seed{"s" if len(seeds) > 1 else ""}, \
{minutes:.1f} CPU-minutes of training on one thread. {found[0]["pieces"]} held-out tunes of each style, rendered like the \
training data: the choices of these defaults were made on the validation tunes. Predictions are made from the notes alone; the \
row with the recording's latents is told what the encoder finds in the recording itself. Note F1: notes that a network finds in \
15 s of the sound that Griffin-Lim makes of the mel, against those in the recording; the recording's own mel is the bound.

{table(header, lines)}

{shown}

{where(_once(found))}"""


def _once(found: list[Row]) -> list[Row]:
    return list({(row["seed"], row.get("level")): row for row in found}.values())


def _levels(found: list[Row]) -> str:
    lines, ratios = [], []
    for seed in sorted({row["seed"] for row in found}):
        curves = {row["level"]: row["curve"] for row in found if row["seed"] == seed}
        if len(curves) < len(LEVELS):
            continue
        batches, steps, _, final = curves["basic"][-1]
        reached = next((point for point in curves["enhanced"] if point[3] <= final), None)
        ratios.append(None if reached is None else (reached[1] / steps, reached[0] / batches))
        told = ["not reached", ""] if reached is None else [f"{reached[1]:,} ({100 * reached[1] / steps:.0f} %)",
                                                            f"{reached[0]:,} ({100 * reached[0] / batches:.0f} %)"]  # fmt: skip
        last = curves["enhanced"][-1]
        lines.append([f"{seed}", f"{batches:,}", f"{steps:,}", f"{final:.4f}", f"{last[1]:,}", f"{last[3]:.4f}", *told])
    if not lines:
        return ""
    header = ["seed", "batches of both", "basic: steps", "basic: final L1", "enhanced: steps", "enhanced: final L1",
              "enhanced reaches basic's L1 at step", "at batch"]  # fmt: skip
    return f"""## `level=basic` against `level=enhanced`

Both levels of the original system, as they are but for their length: instead of 200 and 500 epochs, both train on equally many
batches of three segments, one of each style, and so the same time. Basic accumulates 16 of them for an optimizer step, enhanced
2. The warm-ups of 2,000 and 1,500 steps would be longer than these runs; they are a tenth and three quarters of a tenth of them.
The error is the validation L1 of the prediction in nats, for enhanced with its averaged weights. At learning rates of 5e-5 and
8e-5 neither is trained to its end here: this compares how they begin.

{table(header, lines)}

![Validation error over batches and over optimizer steps, basic and enhanced](synthesis.png)

{where(_once(found))}"""


def _draw(found: list[Row]) -> None:
    """Draws the validation error of both levels over batches and over optimizer steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column, name in zip(axes, (0, 1), ("batches", "optimizer steps"), strict=True):
        for row in found:
            points = [(point[column], point[3]) for point in row["curve"]]
            label = row["level"] if row["seed"] == found[0]["seed"] else None
            axis.plot(*zip(*points, strict=True), color=LEVELS[row["level"]], label=label, linewidth=1)
        axis.set_xlabel(name)
        axis.set_xscale("log")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("validation L1, nats")
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(RESULTS / "synthesis.png", dpi=130, metadata={"Software": None})
