"""Plots of style transfer, as PNG bytes: mel spectrograms and training curves."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from etude.report.plots import COLOURS, DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mel_panels(mels: Mapping[str, ArrayLike], *, frame_seconds: float, title: str = "") -> bytes:
    """Draws natural-log mels [m, f] below one another, with a common colour scale and time axis."""
    from matplotlib.figure import Figure

    arrays = {name: np.asarray(mel, np.float32) for name, mel in mels.items()}
    if not arrays:
        raise ValueError("mels is empty; give at least one mel to draw")
    low, high = np.percentile(np.concatenate([mel.ravel() for mel in arrays.values()]), [1, 99.8])
    figure = Figure(figsize=(11, 0.4 + 1.75 * len(arrays)), layout="constrained")
    axes = figure.subplots(len(arrays), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, mel) in zip(axes, arrays.items(), strict=True):
        extent = (0, mel.shape[1] * frame_seconds, 0, mel.shape[0])
        picture = axis.imshow(mel, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high, cmap="magma")
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_ylabel("band", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("seconds", fontsize=8)
    figure.colorbar(picture, ax=axes, label="ln magnitude", fraction=0.02, pad=0.01).ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    return _png(figure)


def training_curves(path: Path, *, names: Sequence[str] | None = None) -> bytes | None:
    """Draws the metrics of a run's metrics.csv over its steps, one panel each; returns None if there are none.

    names: columns to draw; None for all losses and validation metrics.
    """
    from matplotlib.figure import Figure

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = names or sorted({key for row in rows for key in row if key.startswith(("train/", "val/"))})
    curves = {
        name: [(float(row["step"]), float(row[name])) for row in rows if row.get(name) not in (None, "")] for name in wanted
    }
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(3.7 * columns, 2.1 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (name, points) in zip(axes, curves.items(), strict=False):
        axis.plot(*zip(*points, strict=True), color=COLOURS[name.startswith("val/")], linewidth=1)
        axis.set_title(name, loc="left", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI * 2 // 3, metadata={"Software": None})
    return buffer.getvalue()
