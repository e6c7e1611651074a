"""Recordings, which can be decoded block by block: audio files, alone or with a score, and tunes arranged and rendered."""

import importlib.metadata
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from symusic import Score

from etude.audio.files import AudioError, inspect_audio, mono_mix, polarities, stream_audio
from etude.audio.resampling import Resampler
from etude.data.cache.version import ARRANGING, DECODING, SCORES
from etude.data.scores import build
from etude.music.arrangement import arrange
from etude.music.score import duration_seconds, read_score, seconds_at
from etude.render.scores import render
from etude.render.synthesizers import Synthesizer, synthesizer_version

BLOCK_SAMPLES = 1 << 18  # samples decoded at a time


@dataclass(frozen=True, kw_only=True)
class Recording(ABC):
    """One item of audio of a corpus, which the cache encodes into a clip.

    name: its name in manifests and logs.
    style: its style.
    song: the song that is played; paired audio has the same songs in every style.
    split: train, val or test if the corpus prescribes it, '' otherwise.
    group: recordings of the same group get the same split.
    source, licence: where it comes from, and its licence.
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
        """Everything that determines the samples, as text; equal identities are encoded once."""

    @abstractmethod
    def blocks(self, sample_rate: int) -> Iterator[np.ndarray]:
        """Yields the mono samples, float32 [n], at `sample_rate`, block by block in constant memory.

        Raises: ValueError for a recording that can't be decoded.
        """

    def onsets(self) -> np.ndarray | None:
        """Returns the times of its notes' onsets in seconds, ascending, where its score is known; otherwise None."""
        return None

    def score(self) -> Score:
        """Returns what is played, in the times of the sound. Raises: ValueError for a recording without a score."""
        raise ValueError(f"{self.name} has no score; give data=paired_folder, where every audio file has a MIDI file")

    @property
    def score_identity(self) -> str:
        """Everything that determines the score, as text."""
        return self.identity


@dataclass(frozen=True, kw_only=True)
class ArrangedRecording(Recording):
    """A tune, arranged in a style and rendered with a soundfont.

    scores, row: the score cache and the row of its parsed score.
    max_seconds: the longest part that is played.
    soundfont: the soundfont file; sound: its SHA-256.
    synthesizer: the synthesizer that renders it.
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

    def score(self) -> Score:
        return arrange(build.load_score(self.scores, self.row), self.style, max_seconds=self.max_seconds)

    def blocks(self, sample_rate: int) -> Iterator[np.ndarray]:
        score = self.score()
        sound = render(score, sample_rate=sample_rate, soundfont=self.soundfont, synthesizer=self.synthesizer)
        # without the decay of the last chord: its seconds of near silence would dominate the band statistics of the styles
        yield sound.mean(axis=0)[: round(duration_seconds(score) * sample_rate)]

    def onsets(self) -> np.ndarray:
        return _onsets(self.score())


@dataclass(frozen=True, kw_only=True)
class FileRecording(Recording):
    """An audio file at `path`; sha256: the hash of its content.

    score_path, score_sha256: the MIDI file of what is played in it; None where there is none.
    """

    path: Path
    sha256: str
    score_path: Path | None = None
    score_sha256: str = ""

    def score(self) -> Score:
        return super().score() if self.score_path is None else read_score(self.score_path)

    def onsets(self) -> np.ndarray | None:
        return None if self.score_path is None else _onsets(self.score())

    @property
    def score_identity(self) -> str:
        return f"{self.score_sha256}{SCORES}"

    @property
    def identity(self) -> str:
        versions = [importlib.metadata.version(name) for name in ("soundfile", "torchaudio")]
        return json.dumps([self.sha256, DECODING, versions])

    def blocks(self, sample_rate: int) -> Iterator[np.ndarray]:
        try:
            rate = inspect_audio(self.path).sample_rate
            resampler, polarity_c = Resampler(rate, sample_rate), polarities(self.path)
            for block_cn in stream_audio(self.path, block_samples=BLOCK_SAMPLES):
                yield resampler.push(mono_mix(block_cn, polarity_c))[0].numpy()
            yield resampler.flush()[0].numpy()
        except AudioError as error:  # without the path: the reason is cached by content, and the file may be moved
            raise ValueError(f"{error.problem}; {error.remedy}") from error


def _onsets(score: Score) -> np.ndarray:
    """Returns the times of a score's onsets in seconds, ascending, each once."""
    return seconds_at(score, np.unique(np.concatenate([track.notes.numpy()["time"] for track in score.tracks])))
