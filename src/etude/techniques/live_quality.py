"""Live quality: during training, samples are measured beside held-out music, within a budget of time."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch

from etude.core.budget import TimeBudget
from etude.core.media import log_pictures, log_sounds
from etude.core.technique import Batch, Technique
from etude.metrics.alarms import Level, alarms
from etude.metrics.copying import NgramIndex
from etude.metrics.live import COPIED, HeldOut, compare_samples, grammar_error, hold_out
from etude.metrics.restyled import Restyled, compare_restyled, restyled_levels
from etude.metrics.style_plots import mel_panels
from etude.music.grammar import BOS
from etude.music.rendering import piano_roll, render, write_audio
from etude.music.score import num_notes, trim

log = logging.getLogger(__name__)
COMMON = ("quality", "turing", "turing_low", "turing_high", "alerts", "seconds", "share")
FIRST = 0.5  # of the whole run's expected budget, that the first measurement's samples may take
LEAST_REAL = 8  # excerpts of held-out music; with fewer, training music stands beside it
COPYING_PIECES = 200  # of training, in which passages of the samples are looked for
GRAMMAR_ROWS, GRAMMAR_TOKENS = 4, 512
SAMPLE_RATE = 44_100
Shown = tuple[list[Path], list[Path]]


@dataclass
class Measured:
    """What one measurement found: values to log, what alarms compare, how it is shown, seconds that grow with the bars."""

    values: dict[str, float]
    found: dict[str, float]
    levels: dict[str, Level]
    show: Callable[[Path], Shown]
    sampling_seconds: float = 0.0


class LiveQuality(Technique):
    """Measures samples while a model trains: how musical they are, whether they are told from real music, whether they copy.

    Metrics, all at validation and under the evaluation weights, so after an averaging technique has swapped its own in:

    - Language models: `live/rhythm`, `live/harmony`, `live/melody`, `live/structure` (0..1, 1: as near to held-out music as
      that is to itself, see `metrics.dimensions`) and their mean `live/quality`; `live/grammar_error`, the probability
      that the model gives to ungrammatical tokens after held-out beginnings, before the decoder forbids them, 0..1;
      `live/copying`, the share of the samples' passages of twelve notes that stand in 200 training pieces.
    - Models that restyle mels: `live/rhythm` and `live/harmony`, kept from the source (or as in the truth, where the data is
      paired), `live/style`, closeness to real audio of the style, and their mean `live/quality`; see `metrics.restyled`.
    - Both: `live/turing` with the interval `live/turing_low` .. `live/turing_high`: accuracy of a cross-validated classifier
      that tells generated from real, 0.5 is indistinguishable; `live/alerts`, how many alarms ring (collapse, repetition,
      key drift, copying), each told in a warning when it begins; `live/seconds` spent here and their `live/share` of the
      rest of training.

    A measurement runs at a validation when what was spent and what it is predicted to cost stay within `budget` of the rest
    of training. The first validation is always measured, since whoever watches a metric wants it: with as few bars as half
    the whole run's expected budget pays for, at least one; later ones wait until that is earned back, so that only a run
    too short for its first measurement exceeds the budget. Between measurements the last values are logged again. Nothing
    here touches training, but the clock decides when it measures: what watches a live metric (early stopping, stages)
    repeats exactly only with `every`.

    Some samples go, as MIDI, piano rolls or mels and audio, to <run>/live/<step>/ and to loggers that show pictures and sounds.

    When to use: whenever samples matter more than likelihood; val/nll goes on falling where music has stopped improving.

    Args:
        budget: most seconds spent a second of the rest of training, in (0, 1].
        every: validations between two measurements in place of the budget, at least 1; None keeps the budget.
        num_samples: pieces drawn, or mels of each style restyled, at least 4.
        num_bars: bars of a piece, at least 1; a first measurement may take fewer.
        num_real: most excerpts of held-out music beside them, at least 4.
        temperature: of the samples, above 0.
        tolerance: standard deviations of real music by which samples may repeat, drift or copy more before an alarm, above 0.
        num_shown: samples written and shown at each measurement, 0 for none.
        audio: render them, too (scores only).
        seed: of samples, folds and excerpts; the same at each measurement.

    Raises:
        ValueError: a number out of its range; at setup, a task that neither samples scores nor restyles mels.
    """

    observes: ClassVar[bool] = True

    def __init__(
        self, *, budget: float = 0.03, every: int | None = None, num_samples: int = 16, num_bars: int = 4, num_real: int = 64,
        temperature: float = 1.0, tolerance: float = 1.0, num_shown: int = 1, audio: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(seed=seed)
        if not 0 < budget <= 1:
            raise ValueError(
                f"live_quality.budget is {budget}, must be in (0, 1]: a budget of {budget:g} leaves no time to measure; "
                "0.03 is 3 % of training, or take live_quality out of technique=[...]"
            )
        for name, value, least in (
            ("every", every, 1), ("num_samples", num_samples, 4), ("num_bars", num_bars, 1), ("num_real", num_real, 4),
            ("num_shown", num_shown, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f"live_quality.{name} is {value}, must be at least {least}")
        for name, number in (("temperature", temperature), ("tolerance", tolerance)):
            if not 0 < number < math.inf:
                raise ValueError(f"live_quality.{name} is {number}, must be above 0; 1 is a good start")
        self.every, self.num_samples, self.num_bars, self.num_real = every, num_samples, num_bars, num_real
        self.temperature, self.tolerance, self.num_shown, self.audio = temperature, tolerance, num_shown, audio
        self.budget = TimeBudget(budget)
        self.values: dict[str, float] = {}
        self.validations = self.measurements = 0
        self.predicted = 0.0  # seconds of the next measurement
        self.running_diversity: float | None = None
        self.ringing: list[str] = []
        self._probe: _Music | _Mels | None = None
        self._due = False
        self._batches: list[Batch] = []

    @property
    def logs(self) -> frozenset[str]:
        own = {*_Music.names, *_Mels.names} if self._probe is None else self._probe.names
        return frozenset(f"live/{name}" for name in (*own, *COMMON))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        kind, data = type(pl_module).__name__, getattr(trainer, "datamodule", None)
        if type(trainer.strategy).__name__ in ("ModelParallelStrategy", "FSDPStrategy"):
            raise ValueError(f"technique live_quality samples from {kind} on one rank, trainer=fsdp splits it; use trainer=ddp")
        if all(hasattr(pl_module, name) for name in ("sample", "tokenizer", "logits")):
            if not hasattr(data, "view"):
                raise ValueError(
                    f"technique live_quality measures {kind} beside held-out pieces, {type(data).__name__} gives none; "
                    "train on a datamodule of scores such as data=folder"
                )
            self._probe = _Music(self, pl_module, data)
        elif all(hasattr(pl_module, name) for name in ("translate", "styles", "contract")):
            self._probe = _Mels(self, pl_module, data)
        else:
            raise ValueError(
                f"technique live_quality needs a task that samples scores or restyles mels, {kind} does neither; take it out of "
                "technique=[...] or choose task=language_model or task=style_transfer"
            )

    # --- when ---

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.budget.start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.budget.running:
            self.budget.stop()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches = []
        if not self.budget.running:  # a check before training, or validation alone
            self._due = False
            return
        turn = self.validations % self.every == 0 if self.every else self.budget.fits(self.predicted)
        self._due = bool(trainer.strategy.broadcast(turn or not self.values))  # all ranks do as the first
        self.validations += 1

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if self._due and self._probe is not None and self._probe.wants(self._batches, batch):
            self._batches.append(batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.budget.running:
            return
        if self._due:
            if trainer.is_global_zero:
                with self.budget.spending():
                    self._measure(trainer)
            self.values = trainer.strategy.broadcast(self.values)
            self._batches, self._due = [], False
        told = trainer.strategy.broadcast({**self.values, "seconds": self.budget.spent, "share": self.budget.share_spent})
        pl_module.log_dict({f"live/{name}": value for name, value in told.items()}, sync_dist=True)

    # --- what ---

    def _measure(self, trainer: pl.Trainer) -> None:
        assert self._probe is not None
        began = self.budget.clock()
        bars = self.num_bars if self.every or self.measurements else self._probe.affordable(self._allowance(trainer))
        measured = self._probe.measure(bars, self._batches)
        ringing = alarms(measured.found, measured.levels, running_diversity=self.running_diversity, tolerance=self.tolerance)
        for name, reason in ringing.items():
            if name not in self.ringing:
                log.warning("live_quality, step %d, %s: %s", trainer.global_step, name, reason)
        self.ringing = sorted(ringing)
        own = measured.found["diversity"]
        self.running_diversity = own if self.running_diversity is None else (self.running_diversity + own) / 2
        self.values = {**measured.values, "alerts": float(len(ringing))}
        self.measurements += 1
        if self.num_shown:
            folder = Path(trainer.default_root_dir) / "live" / f"{trainer.global_step:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            pictures, sounds = measured.show(folder)
            log_pictures(trainer, "live", pictures)
            log_sounds(trainer, "live", sounds)
        seconds = self.budget.clock() - began
        self.predicted = seconds + measured.sampling_seconds * (self.num_bars / bars - 1)

    def _allowance(self, trainer: pl.Trainer) -> float:
        """Seconds that the first measurement's samples may take."""
        steps, total = max(trainer.global_step, 1), float(trainer.estimated_stepping_batches)
        left = min(total / steps, 1e6) if math.isfinite(total) else 4.0  # an endless run is at least as long again
        return FIRST * self.budget.share * self.budget.rest * max(left, 1.0)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": dict(self.values), "validations": self.validations, "measurements": self.measurements,
            "predicted": self.predicted, "running_diversity": self.running_diversity, "ringing": list(self.ringing),
            "budget": self.budget.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values, self.ringing = dict(state_dict["values"]), list(state_dict["ringing"])
        self.validations, self.measurements = state_dict["validations"], state_dict["measurements"]
        self.predicted, self.running_diversity = state_dict["predicted"], state_dict["running_diversity"]
        self.budget.load_state_dict(state_dict["budget"])


class _Music:
    """Samples of a task that draws scores, beside held-out pieces of its datamodule."""

    names = ("rhythm", "harmony", "melody", "structure", "grammar_error", "copying")

    def __init__(self, options: LiveQuality, task: Any, data: Any) -> None:
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
        self._sample(12, lambda _: times.append(self.options.budget.clock()))
        a_token = (times[-1] - times[len(times) // 2]) / max(len(times) - 1 - len(times) // 2, 1)
        lengths = [(len(body), len(self.tokenizer.bar_starts(np.array(body)))) for body in self._bodies("train")[:COPYING_PIECES]]
        a_bar = sum(tokens for tokens, _ in lengths) / max(sum(bars for _, bars in lengths), 1)
        return max(1, min(self.options.num_bars, int(seconds / max(a_token * a_bar, 1e-9))))

    def measure(self, bars: int, batches: list[Batch]) -> Measured:
        real = self._held_out(bars)
        assert self._index is not None
        clock = self.options.budget.clock
        began = clock()
        samples = [trim(score, num_bars=bars) for score in self._sample(real.num_tokens)]
        sampling_seconds = clock() - began
        values, found = compare_samples(samples, real, index=self._index, seed=self.options.seed)
        values["grammar_error"] = self.grammar_error(batches[0]) if batches else math.nan
        return Measured(values, found, real.levels, lambda folder: self._show(samples, folder), sampling_seconds)

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


class _Mels:
    """Validation mels of a task that restyles, in every direction."""

    names = ("rhythm", "harmony", "style")

    def __init__(self, options: LiveQuality, task: Any, data: Any) -> None:
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
        paired = bool(getattr(self.data, "paired", False))
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
