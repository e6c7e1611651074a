"""What a model in training makes, measured: scores that it samples, or mels that it restyles.

A probe asks a task and its data for what they show to everyone (`sample`, `tokenizer`, `logits`, `view`; `translate`,
`styles`, `contract`), draws from no shared random state and leaves the task as it was.
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

from etude.evaluation.copying import NgramIndex
from etude.evaluation.live import COPIED, HeldOut, compare_samples, grammar_error, hold_out
from etude.metrics.audio.restyled import Restyled, compare_restyled, restyled_levels
from etude.metrics.scores.alarms import Level
from etude.music.score import num_notes, trim
from etude.render.scores import piano_roll, render, write_audio
from etude.report.style_plots import mel_panels
from etude.tokens.grammar import BOS

log = logging.getLogger(__name__)
LEAST_REAL = 8  # excerpts of held-out music; with fewer, training music stands beside it
COPYING_PIECES = 100  # of training, in which passages of the samples are looked for
GRAMMAR_ROWS, GRAMMAR_TOKENS = 4, 512
SAMPLE_RATE = 44_100
Batch = dict[str, Any]
Shown = tuple[list[Path], list[Path]]


@dataclass
class Measured:
    """What one measurement found: values to log, what alarms compare, how it is shown.

    Of its seconds, those of sampling grow with the bars, those spent `once` on reading real music don't come again.
    """

    values: dict[str, float]
    found: dict[str, float]
    levels: dict[str, Level]
    show: Callable[[Path], Shown]
    sampling_seconds: float = 0.0
    once_seconds: float = 0.0


@dataclass(frozen=True)
class Options:
    """How to measure; see `etude.techniques.guards.live_quality`. clock: seconds from any beginning."""

    num_samples: int
    num_bars: int
    num_real: int
    temperature: float
    num_shown: int
    audio: bool
    seed: int
    clock: Callable[[], float] = time.perf_counter


class MusicProbe:
    """Samples of a task that draws scores, beside held-out pieces of its datamodule."""

    names = ("rhythm", "harmony", "melody", "structure", "grammar_error", "copying", "bars")

    def __init__(self, options: Options, task: Any, data: Any) -> None:
        self.options, self.task, self.data, self.tokenizer = options, task, data, task.tokenizer
        self._index: NgramIndex | None = None
        self._real: dict[int, HeldOut] = {}

    def wants(self, held: list[Batch], batch: Batch) -> bool:
        """The first batch with the beginning of a piece."""
        return not held and bool((batch["tokens"][:, 0] == BOS).any())

    def _bodies(self, split: str) -> list[np.ndarray]:
        view = self.data.view(split)
        order = np.random.default_rng(self.options.seed).permutation(len(view))
        return [view.body(i) for i in order.tolist()]

    def _held_out(self, num_bars: int) -> HeldOut:
        if self._index is None:
            scores = [self.tokenizer.decode(np.array(body)) for body in self._bodies("train")[:COPYING_PIECES]]
            self._index = NgramIndex(scores, names=[str(i) for i in range(len(scores))], lengths=[COPIED])
        if num_bars not in self._real:
            bodies = self._bodies("val")
            if len(bodies) < LEAST_REAL:
                log.warning("live_quality: there are %d held-out pieces, training pieces stand beside them", len(bodies))
                bodies += self._bodies("train")[: LEAST_REAL - len(bodies)]
            self._real[num_bars] = hold_out(
                bodies, tokenizer=self.tokenizer, num_bars=num_bars, count=self.options.num_real,
                num_samples=self.options.num_samples, index=self._index, seed=self.options.seed,
            )  # fmt: skip
        return self._real[num_bars]

    def _sample(self, num_tokens: int, on_step: Callable[[int], None] | None = None) -> Any:
        wish = self.options
        return self.task.sample(
            num_samples=wish.num_samples, max_new_tokens=num_tokens, temperature=wish.temperature, seed=wish.seed, on_step=on_step
        )

    def affordable(self, seconds: float) -> int:
        """Bars that samples may have so as to take about so many seconds, 1 to num_bars, from the time of some tokens."""
        times: list[float] = []
        self._sample(12, lambda _: times.append(self.options.clock()))
        a_token = (times[-1] - times[len(times) // 2]) / max(len(times) - 1 - len(times) // 2, 1)
        lengths = [(len(body), len(self.tokenizer.bar_starts(np.array(body)))) for body in self._bodies("train")[:COPYING_PIECES]]
        a_bar = sum(tokens for tokens, _ in lengths) / max(sum(bars for _, bars in lengths), 1)
        return max(1, min(self.options.num_bars, int(seconds / max(a_token * a_bar, 1e-9))))

    def measure(self, bars: int, batches: list[Batch]) -> Measured:
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
        return Measured(values, found, real.levels, lambda folder: self._show(samples, folder), sampling_seconds, once_seconds)

    def grammar_error(self, batch: Batch) -> float:
        """Of the beginnings of pieces in a batch, see `metrics.live.grammar_error`."""
        rows = (batch["tokens"][:, 0] == BOS).nonzero()[:GRAMMAR_ROWS, 0]
        short = {name: value[rows, :GRAMMAR_TOKENS] for name, value in batch.items() if value.ndim == 2}
        with torch.no_grad():
            likely_btv = self.task.logits(short).float().softmax(-1)
        first = short["documents"] == short["documents"][:, :1]
        arrays = (x.cpu().numpy() for x in (likely_btv, short["tokens"], first, first & (short["targets"] != -100)))
        return grammar_error(*arrays, tokenizer=self.tokenizer)

    def _show(self, samples: list[Any], folder: Path) -> Shown:
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
    """Data that knows whether what is held out is the same songs in every style."""

    paired: bool


class MelProbe:
    """Validation mels of a task that restyles, in every direction."""

    names = ("rhythm", "harmony", "style")

    def __init__(self, options: Options, task: Any, data: Any) -> None:
        self.options, self.task, self.data = options, task, data

    def wants(self, held: list[Batch], batch: Batch) -> bool:
        """As many batches as give num_samples mels of each style."""
        return sum(other["mel"].shape[1] for other in held) < self.options.num_samples

    def affordable(self, seconds: float) -> int:
        """Mels are of one length: whatever the time, the same."""
        return self.options.num_bars

    def measure(self, bars: int, batches: list[Batch]) -> Measured:
        contract, styles = self.task.contract, self.task.styles
        mel_sbmf = contract.denormalise(torch.cat([batch["mel"] for batch in batches], dim=1)[:, : self.options.num_samples])
        paired = isinstance(self.data, Paired) and self.data.paired
        real = mel_sbmf.double().cpu().numpy()
        ways = []
        for s, source in enumerate(styles):
            for t, target in enumerate(styles):
                if s != t:
                    fakes = self.task.translate(mel_sbmf[s], source=source, target=target).double().cpu().numpy()
                    ways.append((f"{source} to {target}", Restyled(real[s], fakes, real[t], paired)))
        found, judged = compare_restyled([way for _, way in ways], contract=contract, seed=self.options.seed)
        values = {name: found[name] for name in ("rhythm", "harmony", "style", "quality")}
        values |= {"turing": judged.score, "turing_low": judged.low, "turing_high": judged.high}
        return Measured(values, found, restyled_levels(found), lambda folder: self._show(ways, folder))

    def _show(self, ways: list[tuple[str, Restyled]], folder: Path) -> Shown:
        seconds = self.task.contract.hop_length / self.task.contract.sample_rate
        pictures = []
        for name, way in ways[: self.options.num_shown]:
            pictures.append(folder / f"{name.replace(' ', '_')}.png")
            panels = {"source": way.sources[0], name: way.fakes[0], "real": way.reals[0]}
            pictures[-1].write_bytes(mel_panels(panels, frame_seconds=seconds))
        return pictures, []
