"""A plot of named points in the plane, as PNG bytes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from etude.report.plots import COLOURS, png

MARKERS = "os^vDP*X"


def labelled_scatter(
    points: ArrayLike, names: Sequence[str], *, title: str = "", notes: Mapping[int, str] | None = None
) -> bytes:  # fmt: skip
    """Draws points [n, 2] with one colour and marker for each name; notes: texts beside some of the points, by their index."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    axis, xy, each = figure.subplots(), np.asarray(points), np.asarray(names)
    for place, name in enumerate(sorted(set(names))):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]
        x, y = xy[each == name].T
        axis.scatter(x, y, s=16, color=colour, marker=marker, alpha=0.75, linewidths=0, label=f"{name} ({len(x)})")
    for place, text in (notes or {}).items():
        axis.annotate(text, xy[place], fontsize=6, alpha=0.9, xytext=(3, 3), textcoords="offset points")
    axis.set(xlabel="first principal component", ylabel="second principal component", title=title)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)
