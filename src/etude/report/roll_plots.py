"""Draws a piano roll above mel spectrograms on one time axis, as PNG bytes."""

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from etude.report.plots import DPI

MARGIN = 3  # pitches shown beyond the lowest and highest note


def roll_above_mels(roll_ptf: ArrayLike, mels: Mapping[str, ArrayLike], *, frame_seconds: float, title: str = "") -> bytes:
    """Draws what sounds in a roll above natural-log mels [m, f], one below the other, with a common colour scale of the mels.

    roll_ptf: how loud each instrument plays each pitch, [p, 128, f] in [0, 1]; each instrument has a colour of its own.
    """
    from matplotlib.figure import Figure

    arrays = {name: np.asarray(mel, np.float32) for name, mel in mels.items()}
    if not arrays:
        raise ValueError("mels is empty; give at least one mel to draw")
    low, high = np.percentile(np.concatenate([mel.ravel() for mel in arrays.values()]), [1, 99.8])
    figure = Figure(figsize=(11, 0.4 + 1.75 * (len(arrays) + 1)), layout="constrained")
    axes = figure.subplots(len(arrays) + 1, 1, sharex=True)
    roll = np.asarray(roll_ptf, np.float32)
    picture, bottom, top = _coloured(roll)
    axes[0].imshow(
        picture, origin="lower", aspect="auto", interpolation="nearest", extent=(0, roll.shape[-1] * frame_seconds, bottom, top)
    )
    axes[0].set_title("notes, a colour for each instrument", loc="left", fontsize=9)
    axes[0].set_ylabel("MIDI pitch", fontsize=8)
    for axis, (name, mel) in zip(axes[1:], arrays.items(), strict=True):
        extent = (0, mel.shape[1] * frame_seconds, 0, mel.shape[0])
        drawn = axis.imshow(mel, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high, cmap="magma")
        axis.set_title(name.replace("$", r"\$"), loc="left", fontsize=9)
        axis.set_ylabel("band", fontsize=8)
    for axis in axes:
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("seconds", fontsize=8)
    figure.colorbar(drawn, ax=axes[1:], label="ln magnitude", fraction=0.02, pad=0.01).ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI * 2 // 3, metadata={"Software": None})
    return buffer.getvalue()


def _coloured(roll_ptf: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Returns an RGB picture [pitches, f, 3], dark notes on white, and the pitches at its lower and upper edge."""
    from matplotlib import colormaps

    sounding = np.flatnonzero(roll_ptf.max(axis=(0, 2), initial=0))
    first, last = (int(sounding[0]), int(sounding[-1])) if len(sounding) else (60, 60)
    first, last = max(0, first - MARGIN), min(127, last + MARGIN)
    part = roll_ptf[:, first : last + 1]
    colours = colormaps["tab10"](np.arange(len(part)) % 10)[:, :3]
    loudest = part.argmax(0)  # of several instruments at a pitch, the loudest is shown
    shade = (0.35 + 0.65 * part.max(0))[..., None] * (part.max(0) > 0)[..., None]
    return (1 - shade) + shade * colours[loudest], first - 0.5, last + 0.5
