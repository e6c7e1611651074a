"""Plots of a grader's evaluation and of graded files, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from etude.report.plots import COLOURS, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[ArrayLike, ArrayLike]
LINES = ("-", "--", ":")
BORDERS = {"onsets": ("#7CFC9A", 0.08), "sections": ("#56B4E9", 1.0)}  # colour, and height as a share of the mel's


def precision_recall_curves(curves: Mapping[str, Curve], *, title: str = "") -> bytes:
    """Draws precision over recall; curves: (recall, precision) by the name in the legend."""
    figure, axis = _single(title, width=6.4)
    for place, (name, (recall, precision)) in enumerate(curves.items()):
        colour, line = COLOURS[place % len(COLOURS)], LINES[place // len(COLOURS) % len(LINES)]
        axis.plot(np.asarray(recall), np.asarray(precision), color=colour, linestyle=line, linewidth=1.6, label=name)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png(figure)


def confusion_matrix(counts: ArrayLike, names: Sequence[str], *, title: str = "", what: str = "defect") -> bytes:
    """Draws counts [true, predicted] with their share of the row as shade."""
    table = np.asarray(counts)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    figure, axis = _single(title, width=6.0, height=5.2)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(table.shape):
        if table[row, column]:
            ink = "white" if share[row, column] > 0.6 else "#222"
            axis.text(column, row, f"{table[row, column]}", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel=f"most probable {what}", ylabel=f"true {what}")
    axis.spines[:].set_visible(False)
    return png(figure)


def signed_table(values: ArrayLike, names: Sequence[str], *, title: str = "", rows: str = "", columns: str = "") -> bytes:
    """Draws a square table of numbers around 0: blue above, red below, white at 0; NaN is left empty."""
    table = np.asarray(values, np.float64)
    apart = table[~np.eye(len(table), dtype=bool)]
    largest = float(np.nanmax(np.abs(apart), initial=0.0)) or 1.0  # of the diagonal, larger ones don't matter
    figure, axis = _single(title, width=1.6 + 1.0 * len(names), height=1.4 + 0.8 * len(names))
    axis.imshow(table, cmap="RdBu", vmin=-largest, vmax=largest)
    for row, column in np.ndindex(table.shape):
        if np.isfinite(table[row, column]):
            ink = "white" if abs(table[row, column]) > 0.6 * largest else "#222"
            axis.text(column, row, f"{table[row, column]:+.3f}", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel=columns, ylabel=rows)
    axis.spines[:].set_visible(False)
    return png(figure)


def reliability_diagram(curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], *, title: str = "") -> bytes:
    """Draws how often what is said with a probability is true; curves: (probability, share true, number) of bins by name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axis.plot([0, 1], [0, 1], color="#999", linewidth=1, linestyle="--", label="perfect")
    for place, (name, (said, true, count)) in enumerate(curves.items()):
        keep = np.asarray(count) > 0
        style: dict[str, Any] = {"color": COLOURS[place], "marker": "os^"[place % 3], "markersize": 4}
        axis.plot(np.asarray(said)[keep], np.asarray(true)[keep], label=name, **style)
        below.plot(np.asarray(said)[keep], np.asarray(count)[keep], **style)
    axis.set(ylabel="share true", ylim=(-0.02, 1.02))
    below.set(xlabel="probability that is said", ylabel="number", yscale="log", xlim=(0, 1))
    axis.legend(fontsize=8, frameon=False)
    for each in (axis, below):
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    _title(figure, title)
    return png(figure)


def quality_scatter(said: ArrayLike, true: ArrayLike, *, title: str = "") -> bytes:
    """Draws the quality that is said over that which the known strengths give."""
    figure, axis = _single(title, width=5.2)
    axis.plot([1, 10], [1, 10], color="#999", linewidth=1, linestyle="--")
    axis.plot(np.asarray(true), np.asarray(said), ".", color=COLOURS[0], alpha=0.25, markersize=4)
    axis.set(xlabel="quality by the known strengths", ylabel="quality that is said", xlim=(0.8, 10.2), ylim=(0.8, 10.2))
    axis.grid(alpha=0.25)
    return png(figure)


def graded_timeline(
    mel_mf: ArrayLike, rows: Mapping[str, ArrayLike], *, frame_seconds: float, title: str = "",
    truth: Mapping[str, ArrayLike] | None = None, borders: Mapping[str, Sequence[float]] | None = None,
    quality: tuple[ArrayLike, ArrayLike] | None = None,
) -> bytes:  # fmt: skip
    """Draws a mel, below it the probability of each defect over time, and the quality.

    Args:
        mel_mf: natural-log mels. rows: probability in each frame, by defect. truth: 0 or 1 in each frame, drawn as lines.
        borders: times in seconds of "onsets" and "sections". quality: (seconds, quality) of windows.
    """
    from matplotlib.figure import Figure

    mel, seconds = np.asarray(mel_mf, np.float32), np.asarray(mel_mf).shape[1] * frame_seconds
    heights = [2.4, 0.3 * len(rows) + 0.2, *([0.9] if quality is not None else [])]
    figure = Figure(figsize=(11, 0.7 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    low, high = np.percentile(mel, [2, 99.8])
    axes[0].imshow(mel, origin="lower", aspect="auto", extent=(0, seconds, 0, len(mel)), vmin=low, vmax=high, cmap="magma")
    axes[0].set_ylabel("mel band", fontsize=8)
    for name, times in (borders or {}).items():
        colour, height = BORDERS[name]
        for time in times:
            axes[0].axvline(time, 1 - height, 1, color=colour, linewidth=1.2)
        axes[0].plot([], [], color=colour, label=name)
    if borders:
        axes[0].legend(fontsize=7, loc="lower right")
    _defect_rows(axes[1], rows, truth, seconds, frame_seconds)
    if quality is not None:
        axes[2].plot(np.asarray(quality[0]), np.asarray(quality[1]), color=COLOURS[0], marker=".", markersize=4)
        axes[2].set(ylim=(0.8, 10.2), yticks=(1, 4, 7, 10))
        axes[2].set_ylabel("quality", fontsize=8)
        axes[2].grid(alpha=0.25)
    for axis in axes:
        axis.tick_params(labelsize=7)
    axes[0].set_xlim(0, seconds)
    axes[-1].set_xlabel("seconds", fontsize=8)
    _title(figure, title)
    return png(figure)


def _defect_rows(
    axis: "Axes", rows: Mapping[str, ArrayLike], truth: Mapping[str, ArrayLike] | None, seconds: float, frame_seconds: float
) -> None:
    table = np.stack([np.asarray(row, np.float32) for row in rows.values()])
    shown = axis.imshow(
        table, aspect="auto", extent=(0, seconds, len(rows), 0), vmin=0, vmax=1, cmap="Reds", interpolation="none"
    )
    axis.set_yticks(np.arange(len(rows)) + 0.5, list(rows), fontsize=8)
    axis.grid(False)
    for place, name in enumerate(rows):
        marks = np.asarray((truth or {}).get(name, []))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], marks > 0.5, [0]]).astype(int)))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            axis.plot([start * frame_seconds, stop * frame_seconds], [place + 0.1] * 2, color="black", linewidth=2.5)
    assert axis.figure is not None
    axis.figure.colorbar(shown, ax=axis, label="probability", fraction=0.02, pad=0.01).ax.tick_params(labelsize=7)


def _single(title: str, *, width: float, height: float = 4.4) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    _title(figure, title)
    return figure, axis


def _title(figure: "Figure", title: str) -> None:
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=10)
