"""Audio files in and out: every fault of a file is one line that names it, any length streams in constant memory.

Shapes: c channels, n samples.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soundfile
import torch
from torch import Tensor

from etude.audio.resampling import Resampler

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus", ".caf", ".au", ".w64"})
WRITTEN_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
SILENCE = 1e-4  # peak below which there is nothing to hear (-80 dB of full scale)
FULL_SCALE = 0.999  # from here on a sample counts as clipped: 16-bit full scale, and what a codec makes of it
CLIPPED_SHARE = 1e-3  # of all samples; a normalised file touches full scale now and then


class AudioError(ValueError):
    """A file that can't be used, as one line: the file, what is wrong, what to do. Crosses processes whole."""

    def __init__(self, path: Path | str, problem: str, remedy: str) -> None:
        super().__init__(str(path), problem, remedy)
        self.path, self.problem, self.remedy = str(path), problem, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


class SilentAudioError(AudioError):
    """A file in which nothing is louder than -80 dB of full scale."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file announces: samples per second, channels, samples (0 where it can't tell), libsndfile's subtype."""

    sample_rate: int
    channels: int
    num_samples: int
    subtype: str


class Levels:
    """Follows a stream's peak and how much of it stands at full scale."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._clipped = self._total = 0

    def push(self, samples_cn: Tensor) -> None:
        """Takes the next samples [c, n]."""
        size = samples_cn.abs()
        self.peak = max(self.peak, float(size.max())) if size.numel() else self.peak
        self._clipped += int((size >= FULL_SCALE).sum())
        self._total += size.numel()

    def check(self, path: Path | str) -> None:
        """Refuses silence, and tells on stderr where a file is clipped.

        Raises:
            SilentAudioError: the peak stays below 1e-4.
        """
        if self.peak < SILENCE:
            raise SilentAudioError(path, f"is silent (peak {self.peak:.1e})", "give a file with sound in it")
        if self._clipped > CLIPPED_SHARE * self._total:
            share = 100 * self._clipped / self._total
            print(f"warning: {path}: {share:.1f} % of its samples stand at full scale, it is clipped", file=sys.stderr)


def inspect_audio(path: Path | str) -> AudioInfo:
    """Returns what a file says about itself, after the faults that its header shows.

    Raises:
        AudioError: missing, a folder, no audio, without samples, or cut off (WAV, AIFF, OGG).
    """
    with _opened(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames, file.subtype)


def stream_audio(path: Path | str, *, block_samples: int = 65_536) -> Iterator[Tensor]:
    """Yields a file as float32 blocks [c, n], n = `block_samples` but for the last, in constant memory.

    Silence and clipping are the caller's to judge: see `Levels`.

    Raises:
        ValueError: block_samples below 1.
        AudioError: see `inspect_audio`; or a sample is not finite, or the sound ends before its announced end.
    """
    if block_samples < 1:
        raise ValueError(f"block_samples is {block_samples}, must be at least 1")
    with _opened(path) as file:
        seen = 0
        while True:
            try:
                block = file.read(block_samples, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise _cut_off(path, f"after {seen / file.samplerate:.1f} s ({_reason(error)})") from error
            if not len(block):
                break
            seen += len(block)
            if not np.isfinite(block).all():
                at = (seen - len(block) + int(np.argmin(np.isfinite(block).all(1)))) / file.samplerate
                raise AudioError(path, f"holds samples that are not finite, the first at {at:.2f} s", "export it again")
            yield torch.from_numpy(block.T.copy())
        if seen < file.frames and _announces(path, file):
            raise _cut_off(path, f"after {seen / file.samplerate:.1f} of {file.frames / file.samplerate:.1f} s")
        if not seen:
            raise AudioError(path, "holds no samples", "give a file with sound in it")


def read_audio(path: Path | str, *, sample_rate: int | None = None, mono: bool = False) -> tuple[Tensor, int]:
    """Reads a whole file as float32 samples [c, n] in about [-1, 1] and their sample rate.

    A clipped file is told on stderr.

    Args:
        path: WAV, FLAC, OGG, MP3 or what else libsndfile reads.
        sample_rate: the rate wanted; None keeps the file's.
        mono: whether to return the mean of the channels, [1, n].

    Raises:
        AudioError: see `stream_audio`; SilentAudioError where nothing is louder than -80 dB of full scale.
    """
    rate = inspect_audio(path).sample_rate
    resampler = Resampler(rate, sample_rate or rate)
    levels, blocks = Levels(), []
    for block in stream_audio(path):
        levels.push(block)
        blocks.append(resampler.push(block.mean(0, keepdim=True) if mono else block))
    levels.check(path)
    return torch.cat([*blocks, resampler.flush()], 1), sample_rate or rate


class AudioWriter:
    """Writes a file block by block beside its place and renames it at the end: there is a whole file or none.

    A context manager; where its block raises (Ctrl-C, too), the half-written file is removed.

    Args:
        path: .wav, .flac, .ogg or .mp3; folders are made.
        sample_rate: samples per second. channels: number of channels.
        subtype: libsndfile's name of the samples' format, as PCM_24; the format's default for None, a compressed one, or one
            that the format does not hold.
        overwrite: whether a file that exists may be replaced.

    Raises:
        AudioError: another suffix, the file exists, can't be written there, or the format does not hold such sound.
    """

    def __init__(
        self, path: Path | str, *, sample_rate: int, channels: int, subtype: str | None = None, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in WRITTEN_SUFFIXES:
            raise AudioError(path, f"can't be written, its suffix is {suffix!r}", f"give one of {', '.join(WRITTEN_SUFFIXES)}")
        if self.path.is_dir() or (self.path.exists() and not overwrite):
            raise AudioError(path, "exists already", "give another out, or overwrite=true to replace a file")
        kind = suffix[1:].upper()
        # an MP3's own subtype may stand in a WAV file by libsndfile's table, but can't be written there
        plain = subtype is not None and subtype.startswith(("PCM_", "FLOAT", "DOUBLE"))
        if not plain or not soundfile.check_format(kind, subtype):
            subtype = soundfile.default_subtype(kind)
        self._aside = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{suffix}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._aside.touch()  # the system's own reason, where it refuses; libsndfile has but "System error"
            self._file = soundfile.SoundFile(self._aside, "w", sample_rate, channels, subtype, format=kind)
        except OSError as error:
            raise AudioError(path, f"can't be written ({error.strerror or error})", "give a place that can be") from error
        except soundfile.LibsndfileError as error:
            self._aside.unlink(missing_ok=True)
            what = f"does not hold {channels} channels at {sample_rate} Hz ({_reason(error)})"
            raise AudioError(path, f"{suffix} {what}", "give a .wav file") from error

    def write(self, samples_cn: Tensor) -> None:
        """Appends samples [c, n] in [-1, 1]; what lies outside is clipped unless the subtype holds floats."""
        try:
            self._file.write(samples_cn.detach().cpu().T.contiguous().numpy())
        except (OSError, soundfile.LibsndfileError) as error:
            raise AudioError(self.path, f"can't be written on ({_reason(error)})", "is the disk full?") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
            if kind is None:
                self._aside.replace(self.path)
        finally:
            self._aside.unlink(missing_ok=True)


def _opened(path: Path | str) -> soundfile.SoundFile:
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "there is no such file"
        raise AudioError(path, what, "give an audio file")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        remedy = f"give audio that libsndfile reads ({', '.join(sorted(AUDIO_SUFFIXES))})"
        problem = "is not audio, whatever its name says" if Path(path).stat().st_size else "is empty"
        raise AudioError(path, problem, remedy) from error
    fault = _shown_by_header(file)
    if fault is None and file.frames == 0:
        fault = AudioError(path, "holds no samples", "give a file with sound in it")
    if fault is not None:
        file.close()
        raise fault
    return file


def _shown_by_header(file: soundfile.SoundFile) -> AudioError | None:
    """libsndfile mends the length of a file that was cut off and says so in its log only."""
    for line in file.extra_info.splitlines():
        announced = line.partition(":")[2].split()
        piped = announced[:1] in (["0"], ["4294967295"])  # written to a pipe: the length was never known
        cut = line.strip().startswith("data") and "(should be" in line and not piped
        if cut or "lacks an end-of-stream" in line or ("Frame count read from" in line and "not equal" in line):
            return _cut_off(file.name, f"({line.strip()})")
    return None


def _announces(path: Path | str, file: soundfile.SoundFile) -> bool:
    """Whether the announced length is a fact: an MP3 without a Xing or Info tag has its length only guessed."""
    if not file.subtype.startswith("MPEG"):
        return True
    with Path(path).open("rb") as raw:
        head = raw.read(10)
        if head[:3] == b"ID3":  # skip the tag; its size is four bytes of seven bits
            raw.seek(10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)))
        else:
            raw.seek(0)
        frame = raw.read(2048)
    return b"Xing" in frame or b"Info" in frame


def _cut_off(path: Path | str, how: str) -> AudioError:
    return AudioError(path, f"is cut off {how}", "get the whole file, or decode what there is to a new one")


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", "") or str(error)
    return text.removeprefix("Error : ").strip().rstrip(".")
