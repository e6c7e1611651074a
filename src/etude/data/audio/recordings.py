"""What can be heard: a file, or a tune arranged and rendered. Decoded in whatever process asks, block by block."""

import importlib.metadata
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etude.audio.files import AudioError, inspect_audio, stream_audio
from etude.audio.resampling import Resampler
from etude.data.cache.version import ARRANGING, DECODING
from etude.data.scores import build
from etude.music.arrangement import arrange
from etude.music.score import duration_seconds
from etude.render.scores import render
from etude.render.synthesizers import Synthesizer, synthesizer_version

BLOCK_SAMPLES = 1 << 18  # that are decoded at a time


@dataclass(frozen=True, kw_only=True)
class Recording(ABC):
    """Something that can be heard: what the cache encodes.

    name: what lists and logs call it. style: its genre. song: what is played, the same in every style where audio is
    paired. split: train, val or test where the corpus decides, '' where shares do. group: recordings of one group stay
    on one side of a split. source, licence: where it comes from and on what terms.
    """

    name: str
    style: str
    song: str
    split: str
    group: str
    source: str
    licence: str

    @property
    @abstractmethod
    def identity(self) -> str:
        """Everything that decides how it sounds, as text: equal identities are encoded once."""

    @abstractmethod
    def blocks(self, sample_rate: int) -> Iterator[np.ndarray]:
        """Yields the mono samples, float32 [n], at `sample_rate`, block after block in constant memory.

        Raises: ValueError for what can't be decoded.
        """


@dataclass(frozen=True, kw_only=True)
class ArrangedRecording(Recording):
    """A tune, arranged in a style and rendered with a soundfont.

    scores, row: where its parsed score is cached. max_seconds: how much of it is played. sound: SHA-256 of the
    soundfont, whose file is `soundfont`. synthesizer: what plays it.
    """

    scores: Path
    row: int
    max_seconds: float
    soundfont: Path
    sound: str
    synthesizer: Synthesizer

    @property
    def identity(self) -> str:
        versions = [importlib.metadata.version(name) for name in ("symusic", "music21")]
        player = [self.sound, self.synthesizer, synthesizer_version(self.synthesizer)]
        return json.dumps([self.song, self.group, self.style, self.max_seconds, player, ARRANGING, versions])

    def blocks(self, sample_rate: int) -> Iterator[np.ndarray]:
        score = arrange(build.load_score(self.scores, self.row), self.style, max_seconds=self.max_seconds)
        sound = render(score, sample_rate=sample_rate, soundfont=self.soundfont, synthesizer=self.synthesizer)
        # without the ring of the last chord: seconds of near silence would be what tells the styles' bands apart
        yield sound.mean(axis=0)[: round(duration_seconds(score) * sample_rate)]


@dataclass(frozen=True, kw_only=True)
class FileRecording(Recording):
    """An audio file. path: where it is. sha256: of its content."""

    path: Path
    sha256: str

    @property
    def identity(self) -> str:
        versions = [importlib.metadata.version(name) for name in ("soundfile", "torchaudio")]
        return json.dumps([self.sha256, DECODING, versions])

    def blocks(self, sample_rate: int) -> Iterator[np.ndarray]:
        try:
            rate = inspect_audio(self.path).sample_rate
            resampler = Resampler(rate, sample_rate)
            for block_cn in stream_audio(self.path, block_samples=BLOCK_SAMPLES):
                yield resampler.push(block_cn.mean(0, keepdim=True))[0].numpy()
            yield resampler.flush()[0].numpy()
        except AudioError as error:  # the reason is kept with the content, which may lie in another place tomorrow
            raise ValueError(f"{error.problem}; {error.remedy}") from error
