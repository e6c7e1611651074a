"""Band statistics and complexity features of training audio, computed once and cached."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.audio.complexity import complexity
from etude.data.audio.batches import Clips
from etude.data.cache.fill import progress
from etude.data.cache.intact import sealed, unsealed
from etude.data.cache.store import write_aside
from etude.data.cache.version import AUDIO_COMPLEXITY, FORMAT

FRAMES_AT_ONCE = 65_536
MIN_DEVIATION = 0.1  # nats
QUIET_SHARE = 0.01  # of frames, the quietest


def band_statistics(clips: Sequence[Clips], *, cache: Path, name: str) -> Tensor:
    """Returns what a style's training frames have in each band, in nats: mean, standard deviation, maximum, and quiet level.

    The quiet level is the mean of the hundredth of frames (at least one) whose mean over bands is lowest.

    cache: the folder of the cached result. name: the name of the cache file; it must identify all inputs.
    Returns: float32 [s, 4, m]. Deviations are at least `MIN_DEVIATION`: models divide by them, and a band may be constant,
        as those above 4 kHz in telephone recordings.
    """
    path = cache / f"{name}-bands-{FORMAT}.npy"
    if not path.exists():
        found = np.stack([np.concatenate([_moments(clip), _extremes(clip)]) for clip in clips]).astype(np.float32)
        sink = io.BytesIO()
        np.save(sink, found)
        write_aside(path, sealed(sink.getvalue()))
    statistics = torch.from_numpy(np.load(io.BytesIO(unsealed(path))))
    statistics[:, 1].clamp_(min=MIN_DEVIATION)
    return statistics


def _blocks(clips: Clips) -> Iterator[np.ndarray]:
    """Yields the log mels of all pieces, float64 [f, m], block by block."""
    for piece in range(len(clips)):
        mel_fm = clips.mel_fm(piece)
        for start in range(0, len(mel_fm), FRAMES_AT_ONCE):
            yield mel_fm[start : start + FRAMES_AT_ONCE].astype(np.float64)


def _moments(clips: Clips) -> np.ndarray:
    """Returns the mean and standard deviation, float64 [2, m], computed block by block."""
    total, squares, count = np.zeros(clips.contract.n_mels), np.zeros(clips.contract.n_mels), 0
    for block_fm in _blocks(clips):
        total, squares, count = total + block_fm.sum(0), squares + (block_fm**2).sum(0), count + len(block_fm)
    mean = total / count
    return np.stack([mean, np.sqrt(np.maximum(squares / count - mean**2, 0.0))])


def _extremes(clips: Clips) -> np.ndarray:
    """Returns the maximum and the quiet level, float64 [2, m], computed block by block."""
    levels = [block_fm.mean(1) for block_fm in _blocks(clips)]
    limit = np.quantile(np.concatenate(levels), QUIET_SHARE)
    highest, total, count = np.full(clips.contract.n_mels, -np.inf), np.zeros(clips.contract.n_mels), 0
    for block_fm, level_f in zip(_blocks(clips), levels, strict=True):
        quiet_fm = block_fm[level_f <= limit]
        highest, total, count = np.maximum(highest, block_fm.max(0)), total + quiet_fm.sum(0), count + len(quiet_fm)
    return np.stack([highest, total / count])


def complexities(clips: Sequence[Clips], *, cache: Path, name: str) -> dict[str, np.ndarray]:
    """Returns the features of `audio.complexity` of all pieces of all `clips`, in order: name -> float64 [pieces].

    cache, name: see `band_statistics`.
    """
    path = cache / f"{name}-complexity-{AUDIO_COMPLEXITY}-{FORMAT}.npz"
    if not path.exists():
        every = [(clip, piece) for clip in clips for piece in range(len(clip))]
        found = []
        with progress("measuring complexity", len(every), "pieces") as advance:
            for clip, piece in every:
                found.append(complexity(clip.mel_fm(piece), clip.contract))
                advance()
        sink = io.BytesIO()
        columns: Any = {key: np.array([features[key] for features in found]) for key in found[0]}
        np.savez(sink, **columns)
        write_aside(path, sealed(sink.getvalue()))
    with np.load(io.BytesIO(unsealed(path))) as saved:
        return {key: saved[key] for key in saved.files}
