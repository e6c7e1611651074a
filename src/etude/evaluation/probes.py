"""Measure the output of a model during training: scores that it samples, or mels that it restyles.

A probe uses only public members of the task and its data (`sample`, `tokenizer`, `logits`, `view`; `translate`, `styles`,
`contract`). It does not touch the global random state and does not change the task.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from etude.evaluation.copying import NgramIndex
from etude.evaluation.live import COPY_LENGTH, Excerpts, compare_samples, cut_excerpts, grammar_error
from etude.metrics.audio.restyled import RestyledClips, compare_restyled, restyled_reference
from etude.metrics.scores.alarms import ReferenceStatistic
from etude.music.score import num_notes, trim
from etude.render.scores import piano_roll, render, write_audio
from etude.report.style_plots import mel_panels
from etude.tokens.grammar import BOS

log = logging.getLogger(__name__)
MIN_REAL = 8  # held-out pieces; if there are fewer, training pieces are added
COPYING_PIECES = 100  # training pieces in which copied passages are searched
GRAMMAR_ROWS, GRAMMAR_TOKENS = 4, 512
SAMPLE_RATE = 44_100
Batch = dict[str, Any]
MediaFiles = tuple[list[Path], list[Path]]


@dataclass
class Measurement:
    """The result of one measurement.

    Attributes:
        values: name -> value to log.
        found: statistics of the samples for `alarms.alarms`.
        reference: the same statistics of real music.
        write_media: writes pictures and sounds to a folder and returns the paths of both.
        sampling_seconds: time of sampling, which grows with the number of bars.
        once_seconds: time of preparing real music, which is spent in the first measurement only.
    """

    values: dict[str, float]
    found: dict[str, float]
    reference: dict[str, ReferenceStatistic]
    write_media: Callable[[Path], MediaFiles]
    sampling_seconds: float = 0.0
    once_seconds: float = 0.0


@dataclass(frozen=True)
class ProbeOptions:
    """Options of `etude.techniques.guards.live_quality`, and a clock that returns seconds since any fixed time."""

    num_samples: int
    num_bars: int
    num_real: int
    temperature: float
    num_shown: int
    audio: bool
    seed: int
    clock: Callable[[], float] = time.perf_counter


class MusicProbe:
    """Compares scores that a task samples with held-out pieces of its data module."""

    names = ("rhythm", "harmony", "melody", "structure", "grammar_error", "copying", "bars")

    def __init__(self, options: ProbeOptions, task: Any, data: Any) -> None:
        self.options, self.task, self.data, self.tokenizer = options, task, data, task.tokenizer
        self._index: NgramIndex | None = None
        self._real: dict[int, Excerpts] = {}

    def needs(self, kept: list[Batch], batch: Batch) -> bool:
        """Whether to keep a validation batch for `measure`: the first one with the beginning of a piece."""
        return not kept and bool((batch["tokens"][:, 0] == BOS).any())

    def _bodies(self, split: str) -> list[NDArray[Any]]:
        view = self.data.view(split)
        order = np.random.default_rng(self.options.seed).permutation(len(view))
        return [view.body(i) for i in order.tolist()]

    def _held_out(self, num_bars: int) -> Excerpts:
        if self._index is None:
            scores = [self.tokenizer.decode(np.array(body)) for body in self._bodies("train")[:COPYING_PIECES]]
            self._index = NgramIndex(scores, names=[str(i) for i in range(len(scores))], lengths=[COPY_LENGTH])
        if num_bars not in self._real:
            bodies = self._bodies("val")
            if len(bodies) < MIN_REAL:
                log.warning(
                    "live_quality: there are only %d held-out pieces; training pieces are added to compare samples with",
                    len(bodies),
                )
                bodies += self._bodies("train")[: MIN_REAL - len(bodies)]
            self._real[num_bars] = cut_excerpts(
                bodies, tokenizer=self.tokenizer, num_bars=num_bars, count=self.options.num_real,
                num_samples=self.options.num_samples, index=self._index, seed=self.options.seed,
            )  # fmt: skip
        return self._real[num_bars]

    def _sample(self, num_tokens: int, on_step: Callable[[int], None] | None = None) -> Any:
        options = self.options
        return self.task.sample(
            num_samples=options.num_samples,
            max_new_tokens=num_tokens,
            temperature=options.temperature,
            seed=options.seed,
            on_step=on_step,
        )

    def bars_within(self, seconds: float) -> int:
        """Returns how many bars, 1 to num_bars, can be sampled in `seconds`, estimated from sampling 12 tokens."""
        times: list[float] = []
        self._sample(12, lambda _: times.append(self.options.clock()))
        seconds_per_token = (times[-1] - times[len(times) // 2]) / max(len(times) - 1 - len(times) // 2, 1)
        lengths = [(len(body), len(self.tokenizer.bar_starts(np.array(body)))) for body in self._bodies("train")[:COPYING_PIECES]]
        tokens_per_bar = sum(tokens for tokens, _ in lengths) / max(sum(bars for _, bars in lengths), 1)
        return max(1, min(self.options.num_bars, int(seconds / max(seconds_per_token * tokens_per_bar, 1e-9))))

    def measure(self, bars: int, batches: list[Batch]) -> Measurement:
        """Samples scores of `bars` bars and compares them; `batches` are those that `needs` chose."""
        clock = self.options.clock
        began = clock()
        real = self._held_out(bars)
        assert self._index is not None
        once_seconds, began = clock() - began, clock()
        samples = [trim(score, num_bars=bars) for score in self._sample(real.num_tokens)]
        sampling_seconds = clock() - began
        values, found = compare_samples(samples, real, index=self._index, seed=self.options.seed)
        values["bars"] = float(bars)
        values["grammar_error"] = self.grammar_error(batches[0]) if batches else math.nan
        return Measurement(
            values, found, real.reference, lambda folder: self._write_media(samples, folder), sampling_seconds, once_seconds
        )

    def grammar_error(self, batch: Batch) -> float:
        """Returns `etude.evaluation.live.grammar_error` over the beginnings of pieces in a batch."""
        rows = (batch["tokens"][:, 0] == BOS).nonzero()[:GRAMMAR_ROWS, 0]
        short = {name: value[rows, :GRAMMAR_TOKENS] for name, value in batch.items() if value.ndim == 2}
        with torch.no_grad():
            probabilities_btv = self.task.logits(short).float().softmax(-1)
        first = short["documents"] == short["documents"][:, :1]
        arrays = (x.cpu().numpy() for x in (probabilities_btv, short["tokens"], first, first & (short["targets"] != -100)))
        return grammar_error(*arrays, tokenizer=self.tokenizer)

    def _write_media(self, samples: list[Any], folder: Path) -> MediaFiles:
        pictures, sounds = [], []
        for number, score in enumerate(samples[: self.options.num_shown]):
            path = folder / f"sample_{number}.mid"
            score.dump_midi(path)
            if num_notes(score):
                pictures.append(path.with_suffix(".png"))
                piano_roll(score, pictures[-1], title=path.stem)
                if self.options.audio:
                    sounds.append(path.with_suffix(".wav"))
                    write_audio(sounds[-1], render(score, sample_rate=SAMPLE_RATE), SAMPLE_RATE)
        return pictures, sounds


@runtime_checkable
class Paired(Protocol):
    """Data that says whether its held-out songs are the same in every style."""

    paired: bool


@runtime_checkable
class Limited(Protocol):
    """Data that knows what the training frames of each style have in each band, in nats: [s, 4, m], the maximum third."""

    statistics: torch.Tensor


class MelProbe:
    """Restyles validation mels with a task, in every direction, and compares them with real ones."""

    names = ("rhythm", "harmony", "style", "squeals")

    def __init__(self, options: ProbeOptions, task: Any, data: Any) -> None:
        self.options, self.task, self.data = options, task, data

    def needs(self, kept: list[Batch], batch: Batch) -> bool:
        """Whether to keep a validation batch for `measure`: until there are num_samples mels of each style."""
        return bool(sum(other["mel"].shape[1] for other in kept) < self.options.num_samples)

    def bars_within(self, seconds: float) -> int:
        """Returns num_bars whatever the time, since mels have a fixed length."""
        return self.options.num_bars

    def measure(self, bars: int, batches: list[Batch]) -> Measurement:
        """Restyles the mels of `batches`, those that `needs` chose, and compares them; `bars` is not used."""
        contract, styles = self.task.contract, self.task.styles
        mel_sbmf = contract.denormalise(torch.cat([batch["mel"] for batch in batches], dim=1)[:, : self.options.num_samples])
        paired = isinstance(self.data, Paired) and self.data.paired
        real = mel_sbmf.double().cpu().numpy()
        highest = self.data.statistics[:, 2].double().numpy() if isinstance(self.data, Limited) else [None] * len(styles)
        directions = []
        for s, source in enumerate(styles):
            for t, target in enumerate(styles):
                if s != t:
                    fakes = self.task.translate(mel_sbmf[s], source=source, target=target).double().cpu().numpy()
                    directions.append((f"{source} to {target}", RestyledClips(real[s], fakes, real[t], paired, highest[t])))
        found, turing = compare_restyled([direction for _, direction in directions], contract=contract, seed=self.options.seed)
        values = {name: found[name] for name in (*self.names, "quality")}
        values |= {"turing": turing.score, "turing_low": turing.low, "turing_high": turing.high}
        return Measurement(values, found, restyled_reference(found), lambda folder: self._write_media(directions, folder))

    def _write_media(self, directions: list[tuple[str, RestyledClips]], folder: Path) -> MediaFiles:
        seconds = self.task.contract.hop_length / self.task.contract.sample_rate
        pictures = []
        for name, direction in directions[: self.options.num_shown]:
            pictures.append(folder / f"{name.replace(' ', '_')}.png")
            panels = {"source": direction.sources[0], name: direction.fakes[0], "real": direction.reals[0]}
            pictures[-1].write_bytes(mel_panels(panels, frame_seconds=seconds))
        return pictures, []
