"""Plots of an evaluation, as PNG bytes: metrics and histograms of samples, real music and shuffled music.

They use matplotlib's object interface, so they change no global state and need no display.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette, distinguishable with any colour vision; in grey the order of the bars tells them apart.
COLOURS = ("#0072B2", "#E69F00", "#8A8F98", "#009E73", "#CC79A7", "#56B4E9")
DPI = 150


def metric_bars(rows: Sequence[Mapping[str, object]], *, groups: Sequence[str], title: str = "") -> bytes:
    """Draws one small panel per metric: a bar for the mean of each group, with a line for one standard deviation.

    Args:
        rows: the result of `tables.compare_scores`; metrics that are defined for no group are left out.
        groups: names of the groups, in the order of the bars; at most 6.
        title: title above all panels.
    """
    rows = [row for row in rows if any(_finite(row[f"{group} mean"]) for group in groups)]
    if not rows:
        raise ValueError("rows has no metric with a finite mean; evaluate at least one piece with notes")
    num_columns = min(4, len(rows))
    margin = 0.25 + 0.065 * max(len(group) for group in groups)
    figure, axes = panels(
        len(rows),
        num_columns,
        width=2.35,
        height=0.25 + 0.22 * len(groups),
        title=title,
        left=margin,
        between=(0.3, 0.62),
        bottom=0.45,
    )
    for place, (axis, row) in enumerate(zip(axes, rows, strict=True)):
        first_column = place % num_columns == 0
        for place, group in enumerate(groups):
            mean, std = float(row[f"{group} mean"]), float(row[f"{group} std"])  # type: ignore[arg-type]
            if math.isfinite(mean):
                axis.barh(
                    place,
                    mean,
                    color=COLOURS[place % len(COLOURS)],
                    height=0.72,
                    xerr=std if math.isfinite(std) else None,
                    error_kw={"lw": 1, "ecolor": "#333", "capsize": 2},
                )
        axis.set_yticks(range(len(groups)), groups if first_column else [""] * len(groups), fontsize=7.5)
        axis.set_ylim(len(groups) - 0.4, -0.6)
        axis.set_xlim(left=0)
        axis.locator_params(axis="x", nbins=5)
        axis.set_title(f"{row['metric']}", fontsize=8.5, loc="left", pad=3)
        axis.set_xlabel(f"{row['unit']}", fontsize=6.5, color="#5b6470", labelpad=1)
        axis.tick_params(axis="x", labelsize=7)
    return png(figure)


def histogram_panels(
    histograms: Mapping[str, Mapping[str, NDArray[Any]]], *, labels: Mapping[str, Sequence[str]], title: str = ""
) -> bytes:
    """Draws one panel per histogram, with the shares of the groups side by side in each bin.

    Args:
        histograms: histogram -> group -> counts [bins], the result of `tables.compare_histograms`.
        labels: histogram -> name of each bin.
        title: title above all panels.
    """
    figure, axes = panels(
        len(histograms), min(2, len(histograms)), width=5.2, height=1.8, title=title, left=0.65, between=(0.7, 0.7), bottom=0.75
    )
    for axis, (name, groups) in zip(axes, histograms.items(), strict=True):
        width = 0.84 / len(groups)
        for place, (group, counts) in enumerate(groups.items()):
            bins, share = np.arange(len(counts)), np.asarray(counts) / max(float(np.sum(counts)), 1.0)
            axis.bar(
                bins + (place - (len(groups) - 1) / 2) * width, share, width, label=group, color=COLOURS[place % len(COLOURS)]
            )
        ticks = labels[name]
        axis.set_xticks(range(len(ticks)), ticks, fontsize=7, rotation=90 if len(ticks) > 16 else 0)
        axis.set_ylabel("share of notes", fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_title(name, fontsize=9.5, loc="left")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8.5, frameon=False)
    return png(figure)


def png(figure: "Figure") -> bytes:
    """Returns a figure as the bytes of a PNG file with a white background; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def panels(
    count: int,
    num_columns: int,
    *,
    width: float,
    height: float,
    title: str,
    left: float,
    between: tuple[float, float],
    bottom: float,
) -> tuple["Figure", list[Any]]:
    """Returns a figure with `count` panels of one size, laid out in inches, since automatic layouts take seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_rows = -(-count // num_columns)
    top, right = (0.6 if title else 0.3), 0.15
    across = left + right + width * num_columns + between[0] * (num_columns - 1)
    down = top + bottom + height * num_rows + between[1] * (num_rows - 1)
    figure = Figure(figsize=(across, down))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=left / across,
        right=1 - right / across,
        top=1 - top / down,
        bottom=bottom / down,
        wspace=between[0] / width,
        hspace=between[1] / height,
    )
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis in grid[count:]:
        axis.set_visible(False)
    for axis in grid[:count]:
        axis.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11, x=0.15 / across, y=1 - 0.12 / down, ha="left", va="top")
    return figure, list(grid[:count])


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
