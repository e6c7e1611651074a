"""Where live audio comes from and goes to: pipes, the microphone and the loudspeaker.

Through a pipe goes raw PCM, 16 bits little-endian with the channels interleaved, or a WAV stream of such samples.

Shapes: c channels, n samples.
"""

import contextlib
import os
import struct
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

DEFAULT_RATE, DEFAULT_CHANNELS = 48_000, 1
MOST_CHANNELS = 64
CUSHION_SECONDS = 0.008  # of silence before the first block, for the loudspeaker
INSTALL = "install the extra: pip install 'etude[live-audio]'"
PIPES = "or give pipes: in=- out=-"
FULL = 32_768  # full scale of 16 bits
ENDLESS = 0xFFFFFFFF  # size in the header of a WAV stream whose length is not known
PCM, EXTENSIBLE = 1, 0xFFFE  # formats of a WAV file


@dataclass(frozen=True)
class PcmFormat:
    """What goes through: samples per second, channels, and whether a WAV header stands before the samples."""

    sample_rate: int
    channels: int
    wav: bool = False


class Source(Protocol):
    """Gives audio as it comes."""

    format: PcmFormat
    name: str
    lost: int  # how often audio was lost before it was read

    def read(self, count: int) -> Tensor | None:
        """Returns the next `count` samples [c, n], fewer at the end; None after it. Waits for them."""

    def close(self) -> None:
        """Releases it."""


class Sink(Protocol):
    """Takes audio."""

    name: str
    gaps: int  # how often it ran out of audio
    cushion: int  # samples of silence that go ahead

    def write(self, samples_cn: Tensor) -> None:
        """Passes samples [c, n] on."""

    def close(self) -> None:
        """Releases it."""


class PipeSource:
    """Reads PCM or a WAV stream from a pipe.

    Args:
        file: binary. sample_rate, channels: of raw PCM, 48000 and 1 by default; a WAV stream has its own.

    Raises:
        ValueError: the stream is empty or no 16-bit PCM, or its header says something else than what was given.
    """

    name, lost = "in=-", 0

    def __init__(self, file: BinaryIO, *, sample_rate: int | None = None, channels: int | None = None) -> None:
        self._file, self._left = file, float("inf")
        start = file.read(12)
        if not start:
            raise ValueError("in=-: the pipe holds no audio; write 16-bit PCM or a WAV stream to it, as with arecord -t raw")
        if start[:4] == b"RIFF" and start[8:] == b"WAVE":
            self.format, self._left = _wav_header(file)
            for name, given, found in (
                ("live_rate", sample_rate, self.format.sample_rate),
                ("live_channels", channels, self.format.channels),
            ):
                if given is not None and given != found:
                    raise ValueError(f"{name}={given}: the WAV stream says {found}; leave {name} out")
            self._start = b""
        else:
            self.format, self._start = PcmFormat(sample_rate or DEFAULT_RATE, channels or DEFAULT_CHANNELS), start

    def read(self, count: int) -> Tensor | None:
        frame = 2 * self.format.channels
        wanted = int(min(count * frame, self._left))
        raw = self._start[:wanted]
        self._start = self._start[len(raw) :]
        raw += self._file.read(wanted - len(raw)) if wanted > len(raw) else b""
        self._left -= len(raw)
        whole = len(raw) // frame * frame  # a stream that was cut off may end within a sample
        if not whole:
            return None
        return _to_tensor(np.frombuffer(raw[:whole], "<i2").reshape(-1, self.format.channels))

    def close(self) -> None:
        pass


class PipeSink:
    """Writes PCM, behind a header where the format says so, to a pipe; each write is passed on at once."""

    name, gaps, cushion = "out=-", 0, 0

    def __init__(self, file: BinaryIO, form: PcmFormat) -> None:
        self._file = file
        if form.wav:
            rate, channels = form.sample_rate, form.channels
            shape = struct.pack("<IHHIIHH", 16, PCM, channels, rate, 2 * channels * rate, 2 * channels, 16)
            head = b"RIFF" + struct.pack("<I", ENDLESS) + b"WAVEfmt " + shape + b"data" + struct.pack("<I", ENDLESS)
            self._file.write(head)
            self._file.flush()

    def write(self, samples_cn: Tensor) -> None:
        self._file.write(_to_integers(samples_cn).astype("<i2").tobytes())
        self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # what reads it has ended, which was said already
            self._file.close()


class Microphone:
    """The default microphone, through PortAudio. Raises: ValueError if the package, PortAudio or the device is missing."""

    name = "the microphone"

    def __init__(self, *, sample_rate: int | None, channels: int | None) -> None:
        self.format = PcmFormat(sample_rate or DEFAULT_RATE, channels or DEFAULT_CHANNELS)
        self._stream = _opened("InputStream", self.name, self.format)
        self.lost = 0

    def read(self, count: int) -> Tensor | None:
        if not self._stream.active:  # not earlier: what is heard while the model warms up would come late for good
            self._stream.start()
        found, overflowed = self._stream.read(count)
        self.lost += bool(overflowed)
        return _to_tensor(found)

    def close(self) -> None:
        self._stream.close()


class Loudspeaker:
    """The default loudspeaker, through PortAudio; 8 ms of silence go ahead, so that a block that comes later leaves no gap.

    Raises: ValueError if the package, PortAudio or the device is missing.
    """

    name = "the loudspeaker"

    def __init__(self, form: PcmFormat) -> None:
        self._stream = _opened("OutputStream", self.name, form)
        self.cushion = round(CUSHION_SECONDS * form.sample_rate)
        self._silence: Any = np.zeros((self.cushion, form.channels), np.int16)
        self.gaps = 0

    def write(self, samples_cn: Tensor) -> None:
        if len(self._silence):
            self._stream.start()
            self._stream.write(self._silence)
            self._silence = self._silence[:0]
        self.gaps += bool(self._stream.write(np.ascontiguousarray(_to_integers(samples_cn))))

    def close(self) -> None:
        self._stream.close()


def standard_input() -> BinaryIO:
    """Returns the standard input. Raises: ValueError if it is a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("in=-: the standard input is a terminal; pipe audio into it, or leave in= out for the microphone")
    return sys.stdin.buffer


def standard_output() -> BinaryIO:
    """Returns the standard output as a file of its own, and sends what else is printed there to stderr.

    Raises: ValueError if it is a terminal.
    """
    if sys.stdout.isatty():
        raise ValueError("out=-: the standard output is a terminal; pipe it, as with | aplay, or leave out= out")
    sys.stdout.flush()
    own = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


def _opened(kind: str, name: str, form: PcmFormat) -> Any:
    try:
        import sounddevice
    except ImportError:
        raise ValueError(f"{name} needs the package sounddevice; {INSTALL}, {PIPES}") from None
    except OSError as error:  # the package is there, but not the library that it loads
        raise ValueError(f"{name} needs PortAudio ({error}); install it, as with apt install libportaudio2, {PIPES}") from None
    try:
        options = {"samplerate": form.sample_rate, "channels": form.channels, "dtype": "int16", "latency": "low"}
        return getattr(sounddevice, kind)(**options)
    except Exception as error:  # PortAudioError, or ValueError where there is no device
        asked = f"{form.channels} channels at {form.sample_rate} Hz"
        raise ValueError(f"{name} can't be opened with {asked} ({error}); give live_rate= and live_channels=, {PIPES}") from None


def _wav_header(file: BinaryIO) -> tuple[PcmFormat, float]:
    """Reads the header up to the samples; returns the format and the bytes that follow, infinite if that is not known."""
    form: PcmFormat | None = None
    while len(head := file.read(8)) == 8:
        kind, size = head[:4], int.from_bytes(head[4:], "little")
        if kind == b"data":
            if form is None:
                break
            return form, float("inf") if size in (0, ENDLESS) or size >= 0x7FFFF000 else size
        body = file.read(size + size % 2)
        if kind == b"fmt " and len(body) >= 16:
            coding, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
            if coding == EXTENSIBLE and len(body) >= 26:
                coding = int.from_bytes(body[24:26], "little")
            if (coding, bits) != (PCM, 16):
                raise ValueError(
                    f"in=-: the WAV stream has {bits} bits, format {coding}; must be 16-bit PCM, as ffmpeg -c:a pcm_s16le"
                )
            if not 1 <= channels <= MOST_CHANNELS or not rate:
                raise ValueError(f"in=-: the WAV stream has {channels} channels, {rate} Hz; must be 1 to {MOST_CHANNELS}")
            form = PcmFormat(rate, channels, wav=True)
    raise ValueError("in=-: the WAV stream ends within its header; give a whole one, or raw PCM")


def _to_tensor(integers_nc: Any) -> Tensor:
    return torch.from_numpy(integers_nc.T.astype(np.float32) / FULL)


def _to_integers(samples_cn: Tensor) -> Any:
    return (samples_cn * FULL).round().clamp(-FULL, FULL - 1).T.numpy().astype(np.int16)
