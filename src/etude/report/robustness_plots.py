"""Plots of a classifier's accuracy over the size of changes of its inputs, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

from etude.report.plots import COLOURS, png

LABELS = {"snr_db": "least signal-to-noise ratio of the change, dB", "notes": "notes changed by a semitone"}
LINES = ("-", "--", ":", "-.")


def accuracy_curves(
    rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str], title: str = "", by: str = "head", over: str = "snr_db"
) -> bytes:
    """Draws accuracies over the size of the change, small ones on the left.

    rows: with `by`, each of whose values has a colour; the columns, each of which has a line style; `over`: snr_db, or notes; and
    `clean accuracy`, which is a thin line over the whole width.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(dict.fromkeys(row[by] for row in rows)):
        mine = [row for row in rows if row[by] == name]
        colour = COLOURS[place % len(COLOURS)]
        axis.axhline(float(mine[0]["clean accuracy"]), color=colour, linewidth=0.8, alpha=0.5)
        for number, column in enumerate(columns):
            label = f"{name}: {column}" if len(columns) > 1 else str(name)
            axis.plot(
                [float(row[over]) for row in mine], [float(row[column]) for row in mine], color=colour, marker="o",
                markersize=3, linestyle=LINES[number % len(LINES)], label=label,
            )  # fmt: skip
    axis.set(xlabel=LABELS[over], ylabel="accuracy", ylim=(-0.02, 1.02), title=title)
    if over == "snr_db":
        axis.invert_xaxis()
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)
