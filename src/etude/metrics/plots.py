"""Pictures of an evaluation, as PNG bytes: metrics and histograms of samples beside real and shuffled music.

Drawn with matplotlib's objects, so that no global state is touched and no display is needed.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette: told apart with any colour vision, and in grey by the order of the bars.
COLOURS = ("#0072B2", "#E69F00", "#8A8F98", "#009E73", "#CC79A7", "#56B4E9")
DPI = 150


def metric_bars(rows: Sequence[Mapping[str, object]], *, groups: Sequence[str], title: str = "") -> bytes:
    """One small panel per metric: a bar for the mean of each group, a line for one standard deviation.

    Args:
        rows: as `tables.compare_scores` returns them; metrics that no group defines are left out.
        groups: names of the groups, in the order of the bars; at most 6.
        title: above all panels.
    """
    rows = [row for row in rows if any(_finite(row[f"{group} mean"]) for group in groups)]
    if not rows:
        raise ValueError("rows has no metric with a finite mean; evaluate at least one piece with notes")
    num_columns = min(4, len(rows))
    figure, axes = _panels(len(rows), num_columns, width=2.9, height=0.62 + 0.26 * len(groups), title=title)
    for axis, row in zip(axes, rows, strict=True):
        for place, group in enumerate(groups):
            mean, std = float(row[f"{group} mean"]), float(row[f"{group} std"])  # type: ignore[arg-type]
            if math.isfinite(mean):
                axis.barh(place, mean, color=COLOURS[place % len(COLOURS)], height=0.72,
                          xerr=std if math.isfinite(std) else None, error_kw={"lw": 1, "ecolor": "#333", "capsize": 2})
        axis.set_yticks(range(len(groups)), groups, fontsize=7)
        axis.set_ylim(len(groups) - 0.4, -0.6)
        axis.set_xlim(left=0)
        axis.set_title(f"{row['metric']}", fontsize=8.5, loc="left")
        axis.tick_params(axis="x", labelsize=7)
    return png(figure)


def histogram_panels(
    histograms: Mapping[str, Mapping[str, NDArray]], *, labels: Mapping[str, Sequence[str]], title: str = ""
) -> bytes:
    """One panel per histogram: for every bin the share of each group, side by side.

    Args:
        histograms: histogram -> group -> counts [bins], as `tables.compare_histograms` returns them.
        labels: histogram -> the name of every bin.
        title: above all panels.
    """
    figure, axes = _panels(len(histograms), 1 if len(histograms) == 1 else 2, width=5.8, height=2.4, title=title)
    for axis, (name, groups) in zip(axes, histograms.items(), strict=True):
        width = 0.84 / len(groups)
        for place, (group, counts) in enumerate(groups.items()):
            bins, share = np.arange(len(counts)), np.asarray(counts) / max(float(np.sum(counts)), 1.0)
            axis.bar(bins + (place - (len(groups) - 1) / 2) * width, share, width, label=group,
                     color=COLOURS[place % len(COLOURS)])
        ticks = labels[name]
        axis.set_xticks(range(len(ticks)), ticks, fontsize=7, rotation=90 if len(ticks) > 16 else 0)
        axis.set_ylabel("share of notes", fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_title(name, fontsize=9.5, loc="left")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8.5, frameon=False)
    return png(figure)


def png(figure: "Figure") -> bytes:
    """The bytes of a figure as a PNG file on white, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _panels(count: int, num_columns: int, *, width: float, height: float, title: str) -> tuple["Figure", list]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_rows = -(-count // num_columns)
    figure = Figure(figsize=(width * num_columns, height * num_rows + (0.35 if title else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis in grid[count:]:
        axis.set_visible(False)
    for axis in grid[:count]:
        axis.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure, list(grid[:count])


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
