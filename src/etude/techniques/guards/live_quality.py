"""Live quality: during training, samples are measured beside held-out music, every few validations."""

import logging
import math
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl

from etude.core.batch import Batch
from etude.core.protocols import Samples, TokenViews, Translates
from etude.core.technique import Technique
from etude.evaluation.budget import TimeBudget
from etude.evaluation.probes import MelProbe, MusicProbe, ProbeOptions
from etude.metrics.scores.alarms import alarms
from etude.report.media import log_pictures, log_sounds

log = logging.getLogger(__name__)
COMMON = ("quality", "turing", "turing_low", "turing_high", "alerts", "seconds", "share")
FIRST = 0.25  # of the whole run's expected budget, that the first measurement's samples may take
MARGIN = 1.2  # of a prediction: the next measurement may take longer than the last
SHOW_SECONDS = 0.3  # of a sample that is shown, until it is known


class LiveQuality(Technique):
    """Measures samples while a model trains: how musical they are, whether they are told from real music, whether they copy.

    Metrics, all at validation and under the evaluation weights, so after an averaging technique has swapped its own in:

    - Language models, on `live/bars` bars: `live/rhythm`, `live/harmony`, `live/melody`, `live/structure`
      (0..1, 1: as near to held-out music as that is to itself, see `metrics.dimensions`) and their mean `live/quality`;
      `live/grammar_error`, the probability that the model gives to ungrammatical tokens after held-out beginnings, before
      the decoder forbids them, 0..1; `live/copying`, the share of the samples' passages of twelve notes that stand in 100
      training pieces.
    - Models that restyle mels: `live/rhythm` and `live/harmony`, kept from the source (or as in the truth, where the data is
      paired), `live/style`, closeness to real audio of the style, and their mean `live/quality`; see `metrics.restyled`.
    - Both: `live/turing` with the interval `live/turing_low` .. `live/turing_high`: accuracy of a cross-validated classifier
      that tells generated from real, 0.5 is indistinguishable; `live/alerts`, how many alarms ring (collapse, repetition,
      key drift, copying), each told in a warning when it begins; `live/seconds` spent here and their `live/share` of the
      rest of training.

    A measurement runs at the first validation and at each `every`-th after it, on all bars; between measurements the last
    values are logged again. No clock decides, and nothing here touches training: what watches a live metric (early stopping,
    stages) repeats exactly. How long it takes is logged in `live/seconds` and `live/share`.

    With `budget`, a measurement that is due also waits until what was spent and what it is predicted to cost stay within that
    share of the rest of training. The first is always made: with as few bars as a quarter of the whole run's expected budget
    pays for, at least one, and nothing shown where that is spent; it is earned back before the next, so that only a run too
    short for its first measurement exceeds the budget. Later ones take more bars where at least two of them can still be paid
    for. Then the clock decides when and on how many bars it measures, and what watches a live metric does not repeat exactly.

    Some samples go, as MIDI, piano rolls or mels and audio, to <run>/live/<step>/ and to loggers that show pictures and sounds.

    When to use: whenever samples matter more than likelihood; val/nll goes on falling where music has stopped improving.

    Args:
        every: validations from one measurement to the next, at least 1.
        budget: most seconds spent a second of the rest of training, in (0, 1]; None sets no limit.
        num_samples: pieces drawn, or mels of each style restyled, at least 4.
        num_bars: bars of a piece, at least 1; fewer where the budget is short.
        num_real: most excerpts of held-out music beside them, at least 4.
        temperature: of the samples, above 0.
        tolerance: standard deviations of real music by which samples may repeat, drift or copy more before an alarm, above 0.
        num_shown: samples written and shown at each measurement, 0 for none.
        audio: render them, too (scores only).
        seed: of samples, folds and excerpts; the same at each measurement.

    Raises:
        ValueError: a number out of its range; at setup, a task that neither samples scores nor restyles mels.
    """

    only_observes: ClassVar[bool] = True

    def __init__(
        self, *, every: int = 3, budget: float | None = None, num_samples: int = 16, num_bars: int = 4, num_real: int = 64,
        temperature: float = 1.0, tolerance: float = 1.0, num_shown: int = 1, audio: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(seed=seed)
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(
                f"live_quality.budget is {budget}, must be in (0, 1]: a budget of {budget:g} leaves no time to measure; "
                "0.03 is 3 % of training, null sets no limit, or take live_quality out of technique=[...]"
            )
        for name, value, least in (
            ("every", every, 1), ("num_samples", num_samples, 4), ("num_bars", num_bars, 1), ("num_real", num_real, 4),
            ("num_shown", num_shown, 0),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"live_quality.{name} is {value}, must be at least {least}")
        for name, number in (("temperature", temperature), ("tolerance", tolerance)):
            if not 0 < number < math.inf:
                raise ValueError(f"live_quality.{name} is {number}, must be above 0; 1 is a good start")
        self.every, self.num_samples, self.num_bars, self.num_real = every, num_samples, num_bars, num_real
        self.temperature, self.tolerance, self.num_shown, self.audio = temperature, tolerance, num_shown, audio
        self.limited = budget is not None
        self.budget = TimeBudget(math.inf if budget is None else budget)
        self.values: dict[str, float] = {}
        self.validations = self.measurements = 0
        self.bars = 0  # of the last measurement
        self.fixed_seconds = self.bar_seconds = 0.0  # of a measurement, beside its bars and for each of them
        self.running_diversity: float | None = None
        self.ringing: list[str] = []
        self._probe: MusicProbe | MelProbe | None = None
        self._due = False
        self._batches: list[Batch] = []

    @property
    def logged_metrics(self) -> frozenset[str]:
        own = {*MusicProbe.names, *MelProbe.names} if self._probe is None else self._probe.names
        return frozenset(f"live/{name}" for name in (*own, *COMMON))

    @property
    def maximized_metrics(self) -> frozenset[str]:
        return frozenset({"live/quality"})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        options = ProbeOptions(
            num_samples=self.num_samples, num_bars=self.num_bars, num_real=self.num_real, temperature=self.temperature,
            num_shown=self.num_shown, audio=self.audio, seed=self.seed, clock=lambda: self.budget.clock(),
        )  # fmt: skip
        kind, data = type(pl_module).__name__, trainer.datamodule  # type: ignore[attr-defined]
        if type(trainer.strategy).__name__ in ("ModelParallelStrategy", "FSDPStrategy"):
            raise ValueError(f"technique live_quality samples from {kind} on one rank, trainer=fsdp splits it; use trainer=ddp")
        if isinstance(pl_module, Samples):
            if not isinstance(data, TokenViews):
                raise ValueError(
                    f"technique live_quality measures {kind} beside held-out pieces, {type(data).__name__} gives none; "
                    "train on a datamodule of scores such as data=folder"
                )
            self._probe = MusicProbe(options, pl_module, data)
        elif isinstance(pl_module, Translates):
            self._probe = MelProbe(options, pl_module, data)
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
        turn = self.validations % self.every == 0
        if self.limited:
            turn = turn and self.budget.fits(self._seconds(self._next_bars(trainer)))
        self._due = bool(trainer.strategy.broadcast(turn or not self.values))  # all ranks do as the first
        self.validations += 1

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if self._due and self._probe is not None and self._probe.needs(self._batches, batch):
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
        first, allowance = not self.values, FIRST * self._expected(trainer) if self.limited else math.inf
        bars = self._next_bars(trainer) if not (first and self.limited) else self._probe.bars_within(allowance)
        measuring = self.budget.clock()
        measured = self._probe.measure(bars, self._batches)
        ringing = alarms(measured.found, measured.reference, running_diversity=self.running_diversity, tolerance=self.tolerance)
        for name, reason in ringing.items():
            if name not in self.ringing:
                log.warning("live_quality, step %d, %s: %s", trainer.global_step, name, reason)
        self.ringing = sorted(ringing)
        own = measured.found["diversity"]
        if math.isfinite(own):
            self.running_diversity = own if self.running_diversity is None else (self.running_diversity + own) / 2
        self.values = {**measured.values, "alerts": float(len(ringing))}
        self.measurements += 1
        shown = not (first and self.budget.clock() - began > allowance)
        if self.num_shown and shown:
            folder = Path(trainer.default_root_dir) / "live" / f"{trainer.global_step:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            pictures, sounds = measured.write_media(folder)
            log_pictures(trainer, "live", pictures)
            log_sounds(trainer, "live", sounds)
        self.bars, self.bar_seconds = bars, measured.sampling_seconds / bars
        self.fixed_seconds = self.budget.clock() - measuring - measured.sampling_seconds - measured.once_seconds
        self.fixed_seconds += 0.0 if shown else SHOW_SECONDS * self.num_shown

    def _seconds(self, bars: int) -> float:
        return MARGIN * (self.fixed_seconds + self.bar_seconds * bars)

    def _next_bars(self, trainer: pl.Trainer) -> int:
        """All bars; within a budget as many as before, or the most of which the rest of the run pays for two measurements."""
        left = self._expected(trainer) - self.budget.spent if self.limited else math.inf
        more = (bars for bars in range(self.num_bars, self.bars, -1) if 2 * self._seconds(bars) <= left)
        return next(more, max(self.bars, 1))

    def _expected(self, trainer: pl.Trainer) -> float:
        """Seconds that the whole run's budget will come to, at the pace so far."""
        steps, total = max(trainer.global_step, 1), float(trainer.estimated_stepping_batches)
        times = total / steps if math.isfinite(total) else 4.0  # an endless run goes on for as long again, and again
        return self.budget.share * self.budget.training_seconds * max(times, 1.0)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": dict(self.values), "validations": self.validations, "measurements": self.measurements, "bars": self.bars,
            "costs": [self.fixed_seconds, self.bar_seconds], "running_diversity": self.running_diversity,
            "ringing": list(self.ringing), "budget": self.budget.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values, self.ringing = dict(state_dict["values"]), list(state_dict["ringing"])
        self.validations, self.measurements = state_dict["validations"], state_dict["measurements"]
        self.bars, self.running_diversity = state_dict["bars"], state_dict["running_diversity"]
        self.fixed_seconds, self.bar_seconds = state_dict["costs"]
        self.budget.load_state_dict(state_dict["budget"])
