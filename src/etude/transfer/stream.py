"""The stream inside a restyling: blocks of sound in, blocks of changed sound out, no trace of the blocks' borders.

Shapes: c channels, n samples, m mel bands, k linear frequency bins, f frames.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from etude.audio.mel import MelContract
from etude.audio.resampling import Resampler
from etude.core.protocols import OnDevice


@runtime_checkable
class StyleTask(Protocol):
    """What a trained style task offers: mels of one style in, of another out."""

    contract: MelContract
    styles: tuple[str, ...]
    context_frames: int
    stride: int

    def translate(self, log_mel_bmf: Tensor, *, source: str, target: str, **clip: Tensor) -> Tensor:
        """Returns natural-log mels [b, m, f] of the target style; `reference` [m, f] where a clip says how it sounds."""

    def nearest_style(self, log_mel_mf: Tensor, *, among: Iterable[str]) -> str:
        """Returns the style whose bands are nearest."""


class MelVocoder(Protocol):
    """What turns mels into samples, beside the source's spectrum."""

    contract: MelContract
    context_frames: int

    def __call__(self, log_mel_cmf: Tensor, *, source: Tensor | None = None) -> Tensor:
        """Returns samples [c, f * hop]."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted: weights of the target styles (sum 1), the source style (None: guess), how far (0 to 1).

    reference: natural-log mels [m, f] of a clip to sound like, for a model that follows one.
    """

    weights: Mapping[str, float]
    source: str | None
    intensity: float
    reference: Tensor | None = None


def device_of(task: Any) -> torch.device:
    """Returns where a task computes; the CPU where it does not say."""
    return task.device if isinstance(task, OnDevice) else torch.device("cpu")


class Change:
    """Changes a sound at the contract's rate, block by block, with as much context as model and vocoder see."""

    def __init__(self, task: StyleTask, vocoder: MelVocoder, wish: Wish, block_frames: int) -> None:
        self.task, self.vocoder, self.wish, self.block = task, vocoder, wish, block_frames
        contract = task.contract
        self.hop = contract.hop_length
        self._edge = -(-contract.padding // contract.hop_length)  # frames that a chunk's reflected edges colour
        self._outer = self._edge + task.context_frames + vocoder.context_frames
        self._heard: Tensor | None = None
        self._first = 0  # the frame that `_heard` begins with
        self._next = 0  # the frame that the next block begins with

    def push(self, samples_cn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Takes the next samples; yields pairs of old and new samples [c, n] that are settled by now."""
        self._heard = samples_cn if self._heard is None else torch.cat([self._heard, samples_cn], 1)
        while True:
            stop = self._next + self.block
            needed = self._up(stop + self._outer)
            if (needed - self._first) * self.hop > self._heard.shape[1]:
                return
            yield self._settle(stop, needed)

    def flush(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields what is left."""
        if self._heard is None:
            return
        end = self._first + self.task.contract.num_frames(self._heard.shape[1])
        while self._next < end:
            stop = min(self._next + self.block, end)
            yield self._settle(stop, min(self._up(stop + self._outer), end))

    def _up(self, frame: int) -> int:
        return -(-frame // self.task.stride) * self.task.stride

    def _settle(self, stop: int, needed: int) -> tuple[Tensor, Tensor]:
        assert self._heard is not None
        begin = max(0, self._next - self._outer) // self.task.stride * self.task.stride
        self._heard, self._first = self._heard[:, (begin - self._first) * self.hop :], begin
        chunk = self._heard[:, : (needed - begin) * self.hop]
        inner = slice((self._next - begin) * self.hop, (stop - begin) * self.hop)
        old = chunk[:, inner]
        if self.wish.intensity > 0:
            new = self._rebuild(chunk.to(device_of(self.task)), self._next - begin, stop - begin).cpu()[:, : old.shape[1]]
        else:
            new = old
        self._next = stop
        return old, new

    @torch.no_grad()
    def _rebuild(self, chunk_cn: Tensor, start: int, stop: int) -> Tensor:
        """Returns the new samples of the frames from `start` to `stop` of the chunk."""
        contract = self.task.contract
        mono = contract.log_mel(chunk_cn.mean(0, keepdim=True))
        moved = torch.zeros_like(mono)
        assert self.wish.source is not None
        clip = {} if self.wish.reference is None else {"reference": self.wish.reference}
        for style, share in self.wish.weights.items():
            if style != self.wish.source or clip:
                moved += share * (self.task.translate(mono, source=self.wish.source, target=style, **clip) - mono)
        left, right = max(0, start - self.vocoder.context_frames), stop + self.vocoder.context_frames
        spectrum = contract.spectrum(chunk_cn)[..., left:right]
        mel = contract.bands(spectrum.abs()).clamp(min=contract.floor).log() + self.wish.intensity * moved[..., left:right]
        samples = self.vocoder(mel, source=spectrum)
        return samples[:, (start - left) * self.hop : (stop - left) * self.hop]


def restyled(blocks: Iterable[Tensor], sample_rate: int, change: Change) -> Iterator[Tensor]:
    """Yields the sound of `blocks` [c, n] changed, as long as it was.

    The contract's rate holds only part of the band: with x the source, y its part in the model's band and z what becomes of
    it, the result is (1 - intensity) (x - y) + z, both brought up to the source's rate at once.
    """
    kept = 1 - change.wish.intensity
    down = Resampler(sample_rate, change.task.contract.sample_rate)
    up = Resampler(change.task.contract.sample_rate, sample_rate)
    waiting: list[Tensor] = []

    def mix(found: Tensor) -> Iterator[Tensor]:
        while found.shape[1] and waiting:
            size = min(found.shape[1], waiting[0].shape[1])
            yield kept * waiting[0][:, :size] + found[:, :size]
            found, rest = found[:, size:], waiting[0][:, size:]
            waiting[:1] = [rest] if rest.shape[1] else []

    def pass_on(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        for old, new in pairs:
            yield from mix(up.push(new - kept * old))

    for block in blocks:
        waiting.append(block)
        yield from pass_on(change.push(down.push(block)))
    yield from pass_on(change.push(down.flush()))
    yield from pass_on(change.flush())
    yield from mix(up.flush())
