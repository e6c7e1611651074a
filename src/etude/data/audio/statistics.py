"""Band statistics and complexity features of training audio, computed once and cached."""

import io
from collections.abc import Sequence
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


def band_statistics(clips: Sequence[Clips], *, cache: Path, name: str) -> Tensor:
    """Returns the mean and standard deviation in nats, over all frames, of each band of the log mels of each of `clips`.

    cache: the folder of the cached result. name: the name of the cache file; it must identify all inputs.
    Returns: float32 [s, 2, m]. Deviations are at least `MIN_DEVIATION`: models divide by them, and a band may be constant,
        as those above 4 kHz in telephone recordings.
    """
    path = cache / f"{name}-{FORMAT}.npy"
    if not path.exists():
        found = np.stack([_moments(clip) for clip in clips]).astype(np.float32)
        sink = io.BytesIO()
        np.save(sink, found)
        write_aside(path, sealed(sink.getvalue()))
    statistics = torch.from_numpy(np.load(io.BytesIO(unsealed(path))))
    statistics[:, 1].clamp_(min=MIN_DEVIATION)
    return statistics


def _moments(clips: Clips) -> np.ndarray:
    """Returns the mean and standard deviation, float64 [2, m], computed block by block."""
    total, squares, count = np.zeros(clips.contract.n_mels), np.zeros(clips.contract.n_mels), 0
    for piece in range(len(clips)):
        mel_fm = clips.mel_fm(piece)
        for start in range(0, len(mel_fm), FRAMES_AT_ONCE):
            block_fm = mel_fm[start : start + FRAMES_AT_ONCE].astype(np.float64)
            total, squares, count = total + block_fm.sum(0), squares + (block_fm**2).sum(0), count + len(block_fm)
    mean = total / count
    return np.stack([mean, np.sqrt(np.maximum(squares / count - mean**2, 0.0))])


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
