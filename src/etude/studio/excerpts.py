"""Excerpts for a listening test: equally long, equally loud, rendered and rounded alike, as WAV files without metadata.

Shapes: c channels, n samples.
"""

import io
import math
import secrets
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from symusic import Score

from etude.audio.loudness import LoudnessMeter
from etude.music.score import bar_ticks, normalise, seconds_at, trim
from etude.render.scores import PEAK, render
from etude.render.synthesizers import Synthesizer, check_synthesizer, default_soundfont
from etude.studio.options import Start
from etude.studio.pieces import Piece, first_onset_bar, sounding_seconds
from etude.studio.recordings import QUIET, Recording, excerpt, first_sound
from etude.studio.sources import Source

SCORE_RATE = 44_100  # of rendered scores
LOUDEST = -20.0  # LUFS; softer, if a peak would clip otherwise
FADE_SECONDS = 0.3  # at the end, where the music is cut
RISE_SECONDS = 0.005  # at the beginning of recorded excerpts, which may be cut within a sound
FULL = 32767  # full scale of 16 bits
SLOWEST = 6  # a rounded score may be so many times as fast as the real one
ROUNDING = 1e-6  # of times in seconds


@dataclass(frozen=True)
class Excerpt:
    """A part of a piece.

    Attributes:
        piece: that it is from.
        samples: int16 [c, n], with its peak at `PEAK` of full scale.
        rate: samples per second.
        start_seconds: where it starts: in a recording, or after the first bar of a score that has a note.
        lufs: its loudness.
    """

    piece: Piece
    samples: np.ndarray
    rate: int
    start_seconds: float
    lufs: float

    def wav(self, lufs: float) -> bytes:
        """Returns it as a WAV file of 16 bits, whose size depends on length, rate and channels alone.

        lufs: the loudness that it gets, at most its own, so that nothing clips.
        """
        softer = np.round(self.samples.T * 10 ** ((lufs - self.lufs) / 20)).astype("<i2")
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(len(self.samples))
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(softer.tobytes())
        return buffer.getvalue()


def common_loudness(excerpts: Sequence[Excerpt]) -> float:
    """Returns the loudness in LUFS that all of them can have without clipping, at most `LOUDEST`."""
    return min([LOUDEST, *(each.lufs for each in excerpts)])


@dataclass(frozen=True)
class Cutter:
    """Cuts excerpts.

    Attributes:
        seconds: length of each.
        start: "beginning" or "anywhere", see `Options`.
        rate: sample rate of excerpts of audio; scores are rendered at `SCORE_RATE`.
        soundfont, synthesizer: for scores.
        folder: where the samples are kept, as files; None keeps them in memory.
    """

    seconds: float
    start: Start = "beginning"
    rate: int = SCORE_RATE
    soundfont: Path | None = None
    synthesizer: Synthesizer = "tinysoundfont"
    folder: Path | None = None

    def check(self) -> None:
        """Raises ValueError in one line if scores can't be rendered here: no such soundfont, or no synthesizer."""
        soundfont = default_soundfont() if self.soundfont is None else self.soundfont
        if self.soundfont is None and not soundfont.is_file():
            raise ValueError(f"soundfont is null, and the one of pretty_midi is not at {soundfont}; give an .sf2 file")
        check_synthesizer(self.synthesizer, soundfont)

    def cut(
        self,
        piece: Piece,
        source: Source,
        *,
        real: bool,
        draw: np.random.Generator,
        at: float | None = None,
        dry: bool = False,
    ) -> Excerpt:
        """Returns an excerpt of a piece as it is played among the music of `source`.

        real: whether the piece is real; then a score is rounded as the generated ones are. draw: for the start. at: where it
        starts instead, in seconds, as an earlier excerpt of the same piece did. dry: only find out whether there is an excerpt:
        scores are not rendered, and it has no samples.

        Raises: ValueError if the piece is too short, silent, can't be read, or does not fit the tokenizer of `source`.
        """
        music = piece.music()
        if not piece.is_score:
            return self._recorded(piece, music, draw, at)
        if real and source.tokenizer is not None:
            music = rounded(music, source, seconds=None if self.start == "anywhere" else SLOWEST * self.seconds)
        bar, start = self._bar(music, draw, at)
        if dry:
            return Excerpt(piece, np.zeros((2, 0), np.int16), SCORE_RATE, start, -math.inf)
        played = trim(music, first_bar=bar, num_bars=_bars_for(music, bar, self.seconds))
        samples = render(played, sample_rate=SCORE_RATE, soundfont=self.soundfont, synthesizer=self.synthesizer)
        return self._finished(piece, samples, SCORE_RATE, start)

    def _recorded(self, piece: Piece, music: Recording, draw: np.random.Generator, at: float | None) -> Excerpt:
        latest = max(0.0, piece.seconds - self.seconds)
        begin = at
        if begin is None:  # with the first sound, or earlier where the recording would end too soon otherwise
            first = first_sound(music) / music.rate
            begin = min(latest, first)
            begin = draw.uniform(begin, latest) if self.start == "anywhere" else begin
        samples = excerpt(music, rate=self.rate, seconds=self.seconds, start=round(begin * music.rate)).numpy()
        rise = max(1, round(RISE_SECONDS * self.rate))
        samples[:, :rise] *= np.linspace(0, 1, rise, dtype=np.float32)
        return self._finished(piece, samples, self.rate, begin)

    def _bar(self, score: Score, draw: np.random.Generator, at: float | None) -> tuple[int, float]:
        """Returns the bar at which an excerpt starts, and how many seconds after the first bar with a note that is."""
        first = first_onset_bar(score)
        times = seconds_at(score, bar_ticks(score))[first:]
        times -= times[0]
        length = sounding_seconds(score)
        fitting = np.flatnonzero(times + self.seconds <= length + ROUNDING)
        if not len(fitting):
            raise ValueError(f"it is {length:.1f} s long, shorter than an excerpt of {self.seconds:g} s")
        bar = int(draw.choice(fitting)) if self.start == "anywhere" else 0
        bar = bar if at is None else int(np.abs(times - at).argmin())
        return first + bar, float(times[bar])

    def _finished(self, piece: Piece, samples: np.ndarray, rate: int, start: float) -> Excerpt:
        """Returns the excerpt with its exact length, faded out at the end. Raises: ValueError for silence."""
        length = round(self.seconds * rate)
        cut = np.zeros((len(samples), length), np.float32)
        cut[:, : samples.shape[1]] = samples[:, :length]
        fade = round(FADE_SECONDS * rate)
        cut[:, length - fade :] *= np.cos(np.linspace(0, np.pi / 2, fade, dtype=np.float32)) ** 2
        peak = float(np.abs(cut).max())
        meter = LoudnessMeter(rate)
        meter.push(torch.from_numpy(cut * np.float32(PEAK / max(peak, QUIET))))
        lufs = meter.loudness()
        if not math.isfinite(lufs):
            raise ValueError("its excerpt is silent")
        return Excerpt(piece, self._kept(np.round(cut * (PEAK * FULL / peak)).astype(np.int16)), rate, start, lufs)

    def _kept(self, samples: np.ndarray) -> np.ndarray:
        if self.folder is None:
            return samples
        path = self.folder / f"{secrets.token_hex(16)}.npy"  # a new name: overwriting a file that is mapped would be fatal
        np.save(path, samples)
        mapped: np.ndarray = np.load(path, mmap_mode="r")
        return mapped


def rounded(score: Score, source: Source, *, seconds: float | None) -> Score:
    """Returns a real score as the tokenizer of a run writes it: its grid, dynamics, instruments.

    seconds: how much of its beginning is needed; None for all.

    Raises: ValueError if the tokenizer can't represent it.
    """
    assert source.tokenizer is not None
    first = first_onset_bar(score)
    part = trim(score, first_bar=first, num_bars=None if seconds is None else _bars_for(score, first, seconds))
    tempo = source.tokenizer.controls({"tempo_bpm": source.tempo_bpm})
    try:
        written = source.tokenizer.decode(np.concatenate([np.array(tempo, np.int32), source.tokenizer.encode(part)]))
    except ValueError as error:
        raise ValueError(f"the tokenizer of {source.label} can't represent it ({error})") from error
    return normalise(Score.from_midi(written.dumps_midi()))  # as generated scores are written and read


def _bars_for(score: Score, first: int, seconds: float) -> int:
    """Returns how many bars from `first` on last at least `seconds`, or are left."""
    times = seconds_at(score, bar_ticks(score))
    return max(1, int(np.searchsorted(times, times[first] + seconds - ROUNDING)) - first)
