"""Reading and writing audio files of any length in constant memory; a faulty file raises a one-line error that names it.

Shapes: c channels, n samples.
"""

import math
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
SILENCE = 1e-4  # peak below which a file counts as silent (-80 dB of full scale)
FULL_SCALE = 0.999  # a sample of this magnitude or more counts as clipped; codecs reproduce 16-bit full scale a little below 1
CLIPPED_SHARE = 1e-3  # share of samples above which a file counts as clipped; a normalised file reaches full scale at times
LOUDEST = 30.0  # largest peak that is taken as sound in [-1, 1]; integers that were stored as floats have 127 and more
CANCELLED = 0.1  # of the energy that the mean of c independent channels has; a mean with less has lost what the channels hold


class AudioError(ValueError):
    """An audio file can't be used. The message is one line: the file, what is wrong, what to do. Can be pickled."""

    def __init__(self, path: Path | str, problem: str, remedy: str) -> None:
        super().__init__(str(path), problem, remedy)
        self.path, self.problem, self.remedy = str(path), problem, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


class SilentAudioError(AudioError):
    """An audio file has no sample louder than -80 dB of full scale."""


@dataclass(frozen=True)
class AudioInfo:
    """A file's header: samples per second, channels, number of samples (0 if unknown), libsndfile's subtype."""

    sample_rate: int
    channels: int
    num_samples: int
    subtype: str


class LevelMeter:
    """Measures the peak of a stream of samples, and the share of samples that are clipped."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._clipped = self._total = 0

    def push(self, samples_cn: Tensor) -> None:
        """Adds the next samples [c, n]."""
        magnitude = samples_cn.abs()
        self.peak = max(self.peak, float(magnitude.max())) if magnitude.numel() else self.peak
        self._clipped += int((magnitude >= FULL_SCALE).sum())
        self._total += magnitude.numel()

    def check(self, path: Path | str) -> None:
        """Raises an error for a silent file, and prints a warning to stderr for a clipped one.

        Raises:
            SilentAudioError: the peak stays below 1e-4.
            AudioError: the peak is above 30, so the samples can't be sound in [-1, 1].
        """
        if self.peak > LOUDEST:
            raise AudioError(path, *too_loud(self.peak))
        if self.peak < SILENCE:
            raise SilentAudioError(path, f"is silent (peak {self.peak:.1e})", "give a file with sound in it")
        if self._clipped > CLIPPED_SHARE * self._total:
            share = 100 * self._clipped / self._total
            print(f"warning: {path}: {share:.1f} % of its samples are at full scale: it is clipped", file=sys.stderr)


def too_loud(peak: float) -> tuple[str, str]:
    """Returns problem and remedy of a file whose peak is above `LOUDEST`."""
    remedy = "export it with samples in [-1, 1]; integers stored as floats must be divided by their full scale"
    return f"has a peak of {peak:.6g}, {20 * math.log10(peak):.0f} dB above full scale", remedy


def polarities(path: Path | str) -> Tensor:
    """Returns the sign of each channel in the mono mix, float32 [c]: all 1, unless the plain mean would cancel the sound.

    The mean cancels if it has less than a tenth of the energy that the mean of independent channels of these energies has, as
    with a stereo file in antiphase. Then channels whose correlation with the loudest one is below -0.5 get -1. A file of several
    channels is read as a whole.

    Raises:
        AudioError: see `stream_audio`.
    """
    channels = inspect_audio(path).channels
    if channels == 1:
        return torch.ones(1)
    products_cc = torch.zeros(channels, channels, dtype=torch.float64)
    for block in stream_audio(path):
        products_cc += block.double() @ block.double().T
    return polarities_of(products_cc)


def polarities_of(products_cc: Tensor) -> Tensor:
    """Returns the signs that `polarities` gives, float32 [c], of the channels' products with each other, summed over samples."""
    if products_cc.sum() >= CANCELLED * products_cc.trace():
        return torch.ones(len(products_cc))
    energy_c = products_cc.diagonal()
    loudest = int(energy_c.argmax())
    opposite_c = products_cc[loudest] < -0.5 * (energy_c * energy_c[loudest]).sqrt()
    return torch.where(opposite_c, -1.0, 1.0).cpu()


def mono_mix(samples_cn: Tensor, polarity_c: Tensor) -> Tensor:
    """Returns the mean of the channels [1, n], each with the sign that `polarities` gives it."""
    return (polarity_c[:, None] * samples_cn).mean(0, keepdim=True) if len(polarity_c) > 1 else samples_cn


def inspect_audio(path: Path | str) -> AudioInfo:
    """Returns the header of an audio file, after checking it for faults.

    Raises:
        AudioError: the file is missing, a folder, no audio, empty, or cut off (detected for WAV, AIFF and OGG).
    """
    with _open(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames, file.subtype)


def stream_audio(path: Path | str, *, block_samples: int = 65_536) -> Iterator[Tensor]:
    """Yields a file as float32 blocks [c, n] of `block_samples` samples (the last may be shorter), in constant memory.

    Silence and clipping are not checked here: see `LevelMeter`.

    Raises:
        ValueError: block_samples below 1.
        AudioError: see `inspect_audio`; or a sample is not finite, or the audio ends before the length in its header.
    """
    if block_samples < 1:
        raise ValueError(f"block_samples is {block_samples}, must be at least 1")
    with _open(path) as file:
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
        if seen < file.frames and _length_is_exact(path, file):
            raise _cut_off(path, f"after {seen / file.samplerate:.1f} of {file.frames / file.samplerate:.1f} s")
        if not seen:
            raise AudioError(path, "holds no samples", "give a file with sound in it")


def read_audio(path: Path | str, *, sample_rate: int | None = None, mono: bool = False) -> tuple[Tensor, int]:
    """Reads a whole file as float32 samples [c, n] in about [-1, 1] and their sample rate.

    A clipped file gives a warning on stderr.

    Args:
        path: a WAV, FLAC, OGG or MP3 file, or any other format that libsndfile reads.
        sample_rate: sample rate to resample to; None keeps the file's.
        mono: whether to return the mean of the channels, [1, n]; channels in antiphase are inverted, see `polarities`.

    Raises:
        AudioError: see `stream_audio`; SilentAudioError if no sample is louder than -80 dB of full scale.
    """
    rate = inspect_audio(path).sample_rate
    resampler = Resampler(rate, sample_rate or rate)
    polarity_c = polarities(path) if mono else None
    levels, blocks = LevelMeter(), []
    for block in stream_audio(path):
        levels.push(block)
        blocks.append(resampler.push(block if polarity_c is None else mono_mix(block, polarity_c)))
    levels.check(path)
    return torch.cat([*blocks, resampler.flush()], 1), sample_rate or rate


class AudioWriter:
    """Writes an audio file block by block; the file appears under its name only when it is complete.

    Use it as a context manager. It writes to a temporary file in the same folder and renames it at the end. On an exception
    (also Ctrl-C) the temporary file is removed.

    Args:
        path: .wav, .flac, .ogg or .mp3; missing folders are created.
        sample_rate: samples per second. channels: number of channels.
        subtype: libsndfile's name of the sample format, such as PCM_24. The file format's default is used for None, for a
            compressed subtype and for one that the file format does not support.
        overwrite: whether an existing file may be replaced.

    Raises:
        AudioError: the suffix is another one, the file exists, it can't be written, or its format does not support the sample
            rate or the number of channels.
    """

    def __init__(
        self, path: Path | str, *, sample_rate: int, channels: int, subtype: str | None = None, overwrite: bool = False
    ) -> None:
        self.path, self.sample_rate, self.channels = Path(path), sample_rate, channels
        suffix = self.path.suffix.lower()
        if suffix not in WRITTEN_SUFFIXES:
            raise AudioError(path, f"can't be written, its suffix is {suffix!r}", f"give one of {', '.join(WRITTEN_SUFFIXES)}")
        if self.path.is_dir() or (self.path.exists() and not overwrite):
            raise AudioError(path, "exists already", "give another out, or overwrite=true to replace a file")
        kind = suffix[1:].upper()
        # libsndfile's table allows MP3's subtype in a WAV file, but it can't be written
        plain = subtype is not None and subtype.startswith(("PCM_", "FLOAT", "DOUBLE"))
        if not plain or not soundfile.check_format(kind, subtype):
            subtype = soundfile.default_subtype(kind)
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{suffix}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()  # gives the reason where writing is refused; libsndfile only says "System error"
            self._file = soundfile.SoundFile(self._temporary, "w", sample_rate, channels, subtype, format=kind)
        except OSError as error:
            raise AudioError(path, f"can't be written ({error.strerror or error})", "give a path that can be written") from error
        except soundfile.LibsndfileError as error:
            self._temporary.unlink(missing_ok=True)
            what = f"does not hold {channels} channels at {sample_rate} Hz ({_reason(error)})"
            raise AudioError(path, f"{suffix} {what}", "give a .wav file") from error

    def write(self, samples_cn: Tensor) -> None:
        """Appends samples [c, n] in [-1, 1]; values outside are clipped unless the subtype is floating-point."""
        try:
            self._file.write(samples_cn.detach().cpu().T.contiguous().numpy())
        except (OSError, soundfile.LibsndfileError) as error:
            problem = f"could not be written to the end ({_reason(error)})"
            raise AudioError(self.path, problem, "check whether the disk is full") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
            if kind is None:
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


def _open(path: Path | str) -> soundfile.SoundFile:
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "there is no such file"
        raise AudioError(path, what, "give an audio file")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        remedy = f"give audio that libsndfile reads ({', '.join(sorted(AUDIO_SUFFIXES))})"
        problem = "is not audio, despite its name" if Path(path).stat().st_size else "is empty"
        raise AudioError(path, problem, remedy) from error
    fault = _header_fault(file)
    if fault is None and file.frames == 0:
        fault = AudioError(path, "holds no samples", "give a file with sound in it")
    if fault is not None:
        file.close()
        raise fault
    return file


def _header_fault(file: soundfile.SoundFile) -> AudioError | None:
    """Returns an error for a file that was cut off; libsndfile corrects its length and mentions it only in its log."""
    for line in file.extra_info.splitlines():
        announced = line.partition(":")[2].split()
        piped = announced[:1] in (["0"], ["4294967295"])  # written to a pipe, when the length was not known yet
        cut = line.strip().startswith("data") and "(should be" in line and not piped
        if cut or "lacks an end-of-stream" in line or ("Frame count read from" in line and "not equal" in line):
            return _cut_off(file.name, f"({line.strip()})")
    return None


def _length_is_exact(path: Path | str, file: soundfile.SoundFile) -> bool:
    """Returns whether the length in the header is exact; that of an MP3 without a Xing or Info tag is an estimate."""
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
    return AudioError(path, f"is cut off {how}", "get the complete file, or decode the readable part to a new one")


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", "") or str(error)
    return text.removeprefix("Error : ").strip().rstrip(".")
