"""Excerpts of recordings, in files or in memory, at one sample rate and with one channel.

Shapes: c channels, n samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from etude.audio.files import inspect_audio, stream_audio
from etude.audio.resampling import Resampler

QUIET = 1e-3  # peak, -60 dB of full scale, below which the beginning of a recording is left out
SLACK_SECONDS = 0.05  # that a recording may be too short by: whole frames of mels rarely make whole seconds
BLOCK_SECONDS = 0.05  # in which the first sound is looked for


class Recording(Protocol):
    """Recorded sound."""

    @property
    def rate(self) -> int:
        """Samples per second."""
        ...

    def blocks(self) -> Iterator[Tensor]:
        """Yields all samples as blocks [c, n]. Raises: ValueError for a file that can't be read to the end."""
        ...


@dataclass(frozen=True)
class FileRecording:
    """The sound of an audio file."""

    path: Path
    rate: int

    def blocks(self) -> Iterator[Tensor]:
        """Yields all samples as blocks [c, n]. Raises: AudioError for a damaged file."""
        inspect_audio(self.path)
        yield from stream_audio(self.path, block_samples=max(1, round(BLOCK_SECONDS * self.rate)))


@dataclass(frozen=True, eq=False)
class HeldRecording:
    """Sound that is in memory: samples [n]."""

    samples_n: Tensor
    rate: int

    def blocks(self) -> Iterator[Tensor]:
        """Yields all samples as blocks [1, n]."""
        yield from torch.split(self.samples_n[None], max(1, round(BLOCK_SECONDS * self.rate)), dim=1)


def first_sound(recording: Recording) -> int:
    """Returns the sample at which a recording is first louder than `QUIET`, to a block. Raises: ValueError for a silent one."""
    position = 0
    for block in recording.blocks():
        if float(block.abs().max()) >= QUIET:
            return position
        position += block.shape[1]
    raise ValueError("it is silent")


def excerpt(recording: Recording, *, rate: int, seconds: float, start: int) -> Tensor:
    """Returns mono samples [1, n] of exactly `seconds` at `rate`, from sample `start` of the recording on.

    Raises: ValueError if the recording ends before, or can't be read.
    """
    resampler, parts, have, position = Resampler(recording.rate, rate), [], 0, 0
    wanted = round(seconds * rate)
    for block in recording.blocks():
        position += block.shape[1]
        if position > start:
            new = block.mean(0, keepdim=True)[:, max(0, block.shape[1] - (position - start)) :]
            parts.append(resampler.push(new))
            have += parts[-1].shape[1]
        if have >= wanted:
            break
    samples = torch.cat([*parts, resampler.flush()], 1)[:, :wanted]
    missing = wanted - samples.shape[1]
    if missing > SLACK_SECONDS * rate:
        raise ValueError(f"it is {samples.shape[1] / rate:.1f} s long, shorter than an excerpt of {seconds:g} s")
    return torch.nn.functional.pad(samples, (0, missing))
