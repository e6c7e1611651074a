"""Restyles a live stream: each block sees all of the past that matters, but only a few frames of the future.

Shapes: c channels, n samples.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from etude.audio.files import polarities_of
from etude.audio.live_limiter import LiveLimiter
from etude.transfer.stream import MelVocoder, StreamRestyler, StyleModel, StyleRequest, device_of, resamplers

PIECE_SECONDS = 0.004  # audio that is read at once
MEMORY_SECONDS = 3.0  # of the past, in which levels are compared
MOST_GAIN = 10.0  # 20 dB


class LiveRestyler(StreamRestyler):
    """Restyles audio at the contract's sample rate with a limited future.

    A block of `block_frames` is made when the `ahead_frames` after it are complete. The model sees the context before the block,
    the block and these frames; what follows is padded as at the end of a file. The frames of the future are synthesised, too: the
    first of them is crossfaded with what the next block has in its place, so that no border can click. The phases are those that
    the vocoder finds for the whole excerpt, from the source's. The mono mix's signs are decided for each excerpt.

    Args:
        task, vocoder, request, stereo: see `StreamRestyler`.
        block_frames: frames of a block, at least 1. ahead_frames: frames after it, at least 1.

    Raises:
        ValueError: a number of frames is below 1.
    """

    def __init__(
        self, task: StyleModel, vocoder: MelVocoder, request: StyleRequest, *, block_frames: int, ahead_frames: int,
        stereo: str = "mid_side",
    ) -> None:  # fmt: skip
        if min(block_frames, ahead_frames) < 1:
            raise ValueError(f"block_frames={block_frames} and ahead_frames={ahead_frames} must be at least 1")
        super().__init__(task, vocoder, request, block_frames, stereo=stereo)
        self.ahead_frames, self.blocks = ahead_frames, 0
        self._energies = [0.0, 0.0]  # of the input and of the result, of the last seconds
        self._tail: Tensor | None = None  # of the last block: its version of the first frame of the next
        self._fade_n = (1 - torch.cos(torch.pi * (torch.arange(self.hop) + 0.5) / self.hop)) / 2

    @property
    def ahead_samples(self) -> int:
        """Samples that must follow a block before it is made: the frames ahead, and the rest of the last one's window."""
        return self.ahead_frames * self.hop + self.task.contract.padding

    @property
    def block_seconds(self) -> float:
        """How long a block lasts."""
        return self.block_frames * self.hop / self.task.contract.sample_rate

    def push(self, samples_cn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        buffer = self._append(samples_cn)
        while True:
            stop = self._next + self.block_frames
            end = stop * self.hop + self.ahead_samples
            if end - self._first * self.hop > buffer.shape[1]:
                return
            yield self._process_live(stop, end, stop + self.ahead_frames)
            buffer = self._buffered

    def flush(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._buffer is None:
            return
        length = self._first * self.hop + self._buffer.shape[1]
        frames = self.task.contract.num_frames(length)
        while self._next < frames:
            stop = min(self._next + self.block_frames, frames)
            yield self._process_live(stop, length, frames)

    def warm_up(self, channels: int) -> None:
        """Restyles an excerpt of silence, since the first call of anything is slower; nothing is kept."""
        frames = self._context + self.block_frames + self.ahead_frames
        chunk = torch.zeros(channels, frames * self.hop + self.task.contract.padding)
        for _ in range(3):
            self._restyle_frames(chunk, self._context, self._context + self.block_frames + 1, frames)

    def _polarity(self, chunk_cn: Tensor) -> Tensor:
        return polarities_of(chunk_cn.double() @ chunk_cn.double().T).to(chunk_cn)

    def _process_live(self, stop: int, end: int, known: int) -> tuple[Tensor, Tensor]:
        """Makes the block up to the frame `stop` from the samples before `end`, where the frames before `known` are complete."""
        self.blocks += 1
        chunk, start = self._chunk(end)
        size = stop - self._next
        old = chunk[:, start * self.hop : (start + size) * self.hop]
        begin = self._next - start
        self._next = stop
        if self.request.intensity == 0:
            return old, old
        more = min(stop + 1, known) - stop  # a frame of the next block, unless the stream ends here
        found = self._restyle_frames(chunk.to(device_of(self.task)), start, start + size + more, known - begin).cpu()
        if self._tail is not None and self._tail.shape[1]:
            found[:, : self.hop] = torch.lerp(self._tail, found[:, : self.hop], self._fade_n)
        self._tail = found[:, size * self.hop :]
        new = found[:, : old.shape[1]]
        kept = math.exp(-self.block_seconds / MEMORY_SECONDS)
        self._energies = [kept * e + float(x.square().sum()) for e, x in zip(self._energies, (old, new), strict=True)]
        return old, new

    @property
    def level_gain(self) -> float:
        """The gain that gives the result of the last seconds the level of the input: at most 20 dB up or down."""
        before, after = self._energies
        if not before or not after:
            return 1.0
        return min(max(math.sqrt(before / after), 1 / MOST_GAIN), MOST_GAIN)


class Level:
    """Follows a gain that changes, on a straight line within each piece of a stream."""

    def __init__(self) -> None:
        self._gain: float | None = None

    def push(self, samples_cn: Tensor, gain: float) -> Tensor:
        """Returns the next samples [c, n], whose gain goes from the last one to this."""
        last = gain if self._gain is None else self._gain
        self._gain = gain
        return samples_cn * torch.linspace(last, gain, samples_cn.shape[1] + 1)[1:]


def latency_parts(restyler: LiveRestyler, limiter: LiveLimiter, sample_rate: int) -> dict[str, float]:
    """Returns what delays the stream, in seconds: the algorithm's part, without processing and a sound card's buffers."""
    contract = restyler.task.contract
    frame = contract.hop_length / contract.sample_rate
    down, up = resamplers(sample_rate, contract.sample_rate, prompt=True)
    return {
        "block": restyler.block_frames * frame,
        "look-ahead": restyler.ahead_frames * frame,
        "window": contract.padding / contract.sample_rate,
        "resampling": down.ahead / sample_rate + up.ahead / contract.sample_rate,
        "limiter": limiter.ahead / sample_rate,
        "reading": piece_samples(sample_rate) / sample_rate,
    }


def piece_samples(sample_rate: int) -> int:
    """Returns how many samples are read at once."""
    return max(1, math.floor(PIECE_SECONDS * sample_rate))
