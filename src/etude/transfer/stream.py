"""Restyles a stream of audio block by block, with enough overlap that block boundaries leave no trace.

Shapes: c channels, n samples, m mel bands, k linear frequency bins, f frames.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from etude.audio.files import mono_mix
from etude.audio.mel import MelContract
from etude.audio.resampling import Resampler
from etude.core.protocols import HasDevice
from etude.transfer.stereo import channels_of, check_stereo, scaled_side, side_of

DITHER = 1e-6  # -120 dB of full scale


@runtime_checkable
class StyleModel(Protocol):
    """A trained model that translates mels between styles."""

    contract: MelContract
    styles: tuple[str, ...]
    context_frames: int
    stride: int

    def translate(self, log_mel_bmf: Tensor, *, source: str, target: str, **clip: Tensor) -> Tensor:
        """Returns natural-log mels [b, m, f] in the target style; a clip's mels `reference` [m, f] may represent that style."""

    def style_distances(self, log_mel_mf: Tensor) -> Mapping[str, float]:
        """Returns how far a clip's bands are from those of each style, in nats a band."""


class MelVocoder(Protocol):
    """Turns mels into waveforms, optionally starting from the source's spectrum."""

    contract: MelContract
    context_frames: int

    def __call__(self, log_mel_cmf: Tensor, *, source: Tensor | None = None) -> Tensor:
        """Returns waveforms [c, f * hop]."""


@dataclass(frozen=True, kw_only=True)
class StyleRequest:
    """What a user asks for.

    weights: weights of the target styles, which add up to 1.
    source: the style of the input; None to guess it.
    intensity: from 0 (no change) to 1.
    reference: natural-log mels [m, f] of a clip that represents the target style, for a model that accepts one.
    """

    weights: Mapping[str, float]
    source: str | None
    intensity: float
    reference: Tensor | None = None


def device_of(task: Any) -> torch.device:
    """Returns the device of a task; the CPU if it has no attribute `device`."""
    return task.device if isinstance(task, HasDevice) else torch.device("cpu")


class StreamRestyler:
    """Restyles audio at the contract's sample rate block by block, with the whole context of model and vocoder.

    Inaudible noise of a fixed seed is added to the input: digital silence has no phases, and whatever a model puts there would
    become a click in each frame.

    Args:
        task, vocoder, request: what restyles, and to what. block_frames: frames of a block.
        polarity_c: sign of each channel in the mono mix that the model gets, see `audio.files.polarities`; None for all 1.
        stereo: "mid_side" or "channels", see `restyle`.
    """

    def __init__(
        self, task: StyleModel, vocoder: MelVocoder, request: StyleRequest, block_frames: int, *,
        polarity_c: Tensor | None = None, stereo: str = "mid_side",
    ) -> None:  # fmt: skip
        check_stereo(stereo)
        self.stereo = stereo
        self.task, self.vocoder, self.request, self.block_frames = task, vocoder, request, block_frames
        self._polarity_c, self._draws = polarity_c, np.random.default_rng(0)
        contract = task.contract
        self.hop = contract.hop_length
        self._edge = -(-contract.padding // contract.hop_length)  # frames that the reflected edges of a chunk affect
        self._context = self._edge + task.context_frames + vocoder.context_frames
        self._buffer: Tensor | None = None
        self._first = 0  # first frame of `_buffer`
        self._next = 0  # first frame of the next block

    def push(self, samples_cn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Adds the next samples [c, n]; yields pairs of original and restyled samples [c, n] that are complete."""
        buffer = self._append(samples_cn)
        while True:
            stop = self._next + self.block_frames
            needed = self._round_up(stop + self._context)
            if (needed - self._first) * self.hop > buffer.shape[1]:
                return
            yield self._process_block(stop, needed)
            buffer = self._buffered

    def _append(self, samples_cn: Tensor) -> Tensor:
        """Adds noise to the next samples and returns all that are kept."""
        noise_nc = self._draws.uniform(-DITHER, DITHER, (samples_cn.shape[1], len(samples_cn)))  # the same for any block size
        samples_cn = samples_cn + torch.from_numpy(noise_nc.T).to(samples_cn)
        self._buffer = samples_cn if self._buffer is None else torch.cat([self._buffer, samples_cn], 1)
        return self._buffer

    @property
    def _buffered(self) -> Tensor:
        assert self._buffer is not None
        return self._buffer

    def flush(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the remaining pairs."""
        if self._buffer is None:
            return
        end = self._first + self.task.contract.num_frames(self._buffer.shape[1])
        while self._next < end:
            stop = min(self._next + self.block_frames, end)
            yield self._process_block(stop, min(self._round_up(stop + self._context), end))

    def _round_up(self, frame: int) -> int:
        return -(-frame // self.task.stride) * self.task.stride

    def _process_block(self, stop: int, needed: int) -> tuple[Tensor, Tensor]:
        chunk, start = self._chunk(needed * self.hop)
        size = stop - self._next
        old = chunk[:, start * self.hop : (start + size) * self.hop]
        if self.request.intensity > 0:
            new = self._restyle_frames(chunk.to(device_of(self.task)), start, start + size).cpu()[:, : old.shape[1]]
        else:
            new = old
        self._next = stop
        return old, new

    def _chunk(self, end: int) -> tuple[Tensor, int]:
        """Returns the samples from the next block's context to the sample `end` of the stream, and the block's first frame there.

        Samples before the chunk are forgotten.
        """
        begin = max(0, self._next - self._context) // self.task.stride * self.task.stride
        self._buffer, self._first = self._buffered[:, (begin - self._first) * self.hop :], begin
        return self._buffer[:, : end - begin * self.hop], self._next - begin

    def _polarity(self, chunk_cn: Tensor) -> Tensor:
        """Returns the sign of each channel in the mono mix."""
        return chunk_cn.new_ones(len(chunk_cn)) if self._polarity_c is None else self._polarity_c.to(chunk_cn)

    @torch.no_grad()
    def _restyle_frames(self, chunk_cn: Tensor, start: int, stop: int, end: int | None = None) -> Tensor:
        """Returns the restyled samples of frames `start` to `stop` of a chunk, of which the frames before `end` are known."""
        contract, polarity_c = self.task.contract, self._polarity(chunk_cn)
        mid = mono_mix(chunk_cn, polarity_c)
        mono = contract.log_mel(mid)[..., :end]
        change = self.request.intensity * self._change(mono)
        context = self.vocoder.context_frames
        left, right = max(0, start - context), min(stop + context, mono.shape[-1])
        inner = slice((start - left) * self.hop, (stop - left) * self.hop)
        change, separate = change[..., left:right], len(chunk_cn) != 2 or self.stereo == "channels"
        spectrum = contract.spectrum(chunk_cn if separate else mid)[..., left:right]
        mel = contract.bands(spectrum.abs()).clamp(min=contract.floor).log() + change
        samples = self.vocoder(mel, source=spectrum)[:, inner]
        if separate:
            return samples
        side = scaled_side(contract.spectrum(side_of(chunk_cn, polarity_c))[..., left:right], change, contract)
        return channels_of(samples, side[:, inner], polarity_c)

    def _change(self, mono_1mf: Tensor) -> Tensor:
        """Returns what the model adds to the log mels of the mono mix, [1, m, f] in nats, at full intensity."""
        change = torch.zeros_like(mono_1mf)
        assert self.request.source is not None
        clip = {} if self.request.reference is None else {"reference": self.request.reference}
        for style, share in self.request.weights.items():
            if style != self.request.source or clip:
                translated = self.task.translate(mono_1mf, source=self.request.source, target=style, **clip)
                change += share * (translated - mono_1mf)
        return change


def restyle_stream(
    blocks: Iterable[Tensor], sample_rate: int, restyler: StreamRestyler, *, prompt: bool = False
) -> Iterator[Tensor]:
    """Yields the audio of `blocks` [c, n] restyled, with the same number of samples in total.

    The model covers only the frequencies up to half the contract's sample rate. With x the source, y its part in that band and
    z the restyled y, the result is (1 - intensity) (x - y) + z at the source's sample rate. prompt: whether samples are
    resampled as they come, see `Resampler`; without it, it is faster.
    """
    kept = 1 - restyler.request.intensity
    down, up = resamplers(sample_rate, restyler.task.contract.sample_rate, prompt=prompt)
    waiting: list[Tensor] = []

    def mix(found: Tensor) -> Iterator[Tensor]:
        while found.shape[1] and waiting:
            size = min(found.shape[1], waiting[0].shape[1])
            yield kept * waiting[0][:, :size] + found[:, :size]
            found, rest = found[:, size:], waiting[0][:, size:]
            waiting[:1] = [rest] if rest.shape[1] else []

    def upsample(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        for old, new in pairs:
            yield from mix(up.push(new - kept * old))

    for block in blocks:
        waiting.append(block)
        yield from upsample(restyler.push(down.push(block)))
    yield from upsample(restyler.push(down.flush()))
    yield from upsample(restyler.flush())
    yield from mix(up.flush())


def resamplers(outer: int, inner: int, *, prompt: bool) -> tuple[Resampler, Resampler]:
    """Returns the two that take a stream from one sample rate to another and back; see `restyle_stream`."""
    return Resampler(outer, inner, prompt=prompt), Resampler(inner, outer, prompt=prompt)
