"""Small audio files, and folders of them, for the tests of the audio data layer."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from etude.audio.mel import MelContract
from etude.data.audio import build as audio_build
from etude.data.audio.corpora import AudioFolder
from etude.data.audio.module import StyleDataModule
from etude.data.cache import fill
from etude.data.scores import build

RATE = 8000
CONTRACT = MelContract(sample_rate=RATE, n_fft=256, hop_length=64, n_mels=16, f_min=30.0, f_max=4000.0)
SEGMENT = 16  # frames: 1,024 samples, 0.128 s


def sound(seed: int, *, seconds: float = 1.0, rate: int = RATE, hertz: float | None = None) -> np.ndarray:
    """A tone that swells and fades over a little noise, float64 [n] in [-0.6, 0.6]; another seed is another sound."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (hertz or float(rng.uniform(200, 3000))) * time)
    return 0.5 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(1, 4) * time)) + 0.01 * rng.standard_normal(len(time))


def inline(patch: pytest.MonkeyPatch) -> None:
    """Encodes and reads in this process: starting others takes seconds."""
    for part in (audio_build, build):
        patch.setattr(part, "fill", functools.partial(fill.fill, inline_seconds=1e9))


def write(path: Path, samples: np.ndarray, *, rate: int = RATE, subtype: str | None = None) -> Path:
    """Writes samples [n] or [n, c]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def write_styles(root: Path, *, styles: tuple[str, ...] = ("folk", "rock"), files: int = 10) -> Path:
    """A folder of `files` sounds of 0.4 to 1.2 s in each style, of other names in each."""
    for place, style in enumerate(styles):
        for number in range(files):
            seed = 1000 * place + number
            write(root / style / f"{style}{number:02d}.wav", sound(seed, seconds=0.4 + 0.1 * (seed % 9)))
    return root


def module(root: Path, cache: Path, **changes: Any) -> StyleDataModule:
    """A small data module of a folder."""
    corpus = changes.pop("corpus", AudioFolder(root=str(root)))
    options = {"contract": CONTRACT, "cache_dir": str(cache), "segment_frames": SEGMENT, "batch_size": 3, "seed": 5}
    return StyleDataModule(corpus=corpus, **{**options, "batches_per_epoch": 6, "prepare_workers": 1, **changes})


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two batches are bit for bit equal."""
    return one.keys() == two.keys() and all(bool((one[name] == two[name]).all()) for name in one)
