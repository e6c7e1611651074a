"""Technique live_quality: compares samples with held-out music during training, every few validations."""

import logging
import math
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl

from etude.core.batch import Batch
from etude.core.protocols import Samples, TokenViews, Translates
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import Technique
from etude.evaluation.budget import TimeBudget
from etude.evaluation.probes import MelProbe, MusicProbe, ProbeOptions
from etude.metrics.scores.alarms import alarms
from etude.report.media import log_pictures, log_sounds

log = logging.getLogger(__name__)
COMMON = ("quality", "turing", "turing_low", "turing_high", "alerts", "seconds", "share")
FIRST_SHARE = 0.25  # of the whole run's expected budget that the samples of the first measurement may take
MARGIN = 1.2  # safety factor of predicted times
SHOW_SECONDS = 0.3  # assumed time to write and show a sample, until it was measured


class LiveQuality(Technique):
    """Measures during training how musical samples are, whether they can be told from real music, and whether they copy.

    Metrics, all computed in validation, with the averaged weights if a technique validates with an average:

    - Language models, on `live/bars` bars: `live/rhythm`, `live/harmony`, `live/melody`, `live/structure`
      (0..1; 1: as close to held-out music as that is to itself, see `metrics.dimensions`) and their mean `live/quality`;
      `live/grammar_error`, the probability of ungrammatical tokens after the beginnings of held-out pieces, before the
      decoder excludes them, 0..1; `live/copying`, the share of the samples' passages of twelve notes that also occur in 100
      training pieces.
    - Models that translate mels: `live/rhythm` and `live/harmony`, compared with the source (or with the true target, if the
      data are paired), `live/style`, closeness to real audio of the style, and their mean `live/quality`; `live/squeals`, the
      share of frames with a band more than 6 dB above all training frames; see `metrics.audio.restyled`.
    - Both: `live/turing` with the interval `live/turing_low` .. `live/turing_high`: accuracy of a cross-validated classifier
      that tells generated from real, 0.5 is indistinguishable; `live/alerts`, the number of active alarms (collapse, repetition,
      key drift, copying), each with a warning when it begins; `live/seconds`, the time spent here, and `live/share`, that time
      divided by the rest of training.

    A measurement is made at the first validation and at each `every`-th after it, on all bars. In between, the last values are
    logged again. Measurements do not depend on time and do not change training, so a technique that monitors a live metric
    (early stopping, stages) can be repeated exactly.

    With `budget`, a measurement is also delayed until the time spent so far plus its predicted time are within that share of the
    rest of training. The first measurement is always made, with as many bars as fit into a quarter of the whole run's expected
    budget, at least one; if even that takes too long, no samples are shown. Its time counts, so only a run that is too short for
    the first measurement exceeds the budget. Later measurements use more bars if at least two of them fit into the rest of the
    budget. The times and sizes of measurements then depend on the speed of the machine, and a run that monitors a live metric can
    not be repeated exactly.

    Some samples are written to <run>/live/<step>/ (MIDI and piano rolls, or mels and audio) and sent to loggers that show images
    and sounds.

    When to use: if samples matter more than likelihood; val/nll often still falls when the music no longer improves.

    Args:
        every: validations from one measurement to the next, at least 1.
        budget: largest time for measurements as a share of the rest of training, in (0, 1]; None sets no limit.
        num_samples: number of sampled pieces, or of translated mels of each style, at least 4.
        num_bars: bars of a piece, at least 1; with a budget possibly fewer.
        num_real: largest number of held-out excerpts to compare with, at least 4.
        temperature: of the samples, above 0.
        tolerance: an alarm begins if samples repeat, drift or copy more than real music by so many of its standard deviations,
            above 0.
        num_shown: number of samples that are written and shown at each measurement, 0 for none.
        audio: also render them as audio (scores only).
        seed: of samples, cross-validation folds and excerpts; the same at each measurement.

    Raises:
        ValueError: a number is out of its range; in setup, the task neither samples scores nor translates mels.
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
        self.fixed_seconds = self.bar_seconds = (
            0.0  # time of a measurement: the part that does not depend on bars, and the part for each bar
        )
        self.running_diversity: float | None = None
        self.active_alarms: list[str] = []
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
        if is_sharded(trainer):
            raise ValueError(
                f"technique live_quality samples from {kind} on one rank, but trainer=fsdp shards it; use trainer=ddp"
            )
        if isinstance(pl_module, Samples):
            if not isinstance(data, TokenViews):
                raise ValueError(
                    f"technique live_quality compares samples of {kind} with held-out pieces, {type(data).__name__} has none; "
                    "train on a datamodule of scores such as data=folder"
                )
            self._probe = MusicProbe(options, pl_module, data)
        elif isinstance(pl_module, Translates):
            self._probe = MelProbe(options, pl_module, data)
        else:
            raise ValueError(
                f"technique live_quality needs a task that samples scores or translates mels, {kind} does neither; remove it "
                "from technique=[...] or choose task=language_model or task=style_transfer"
            )

    # --- when to measure ---

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.budget.start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.budget.running:
            self.budget.stop()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches = []
        if not self.budget.running:  # the sanity check before training, or `trainer.validate`
            self._due = False
            return
        turn = self.validations % self.every == 0
        if self.limited:
            turn = turn and self.budget.fits(self._predicted_seconds(self._next_bars(trainer)))
        self._due = bool(trainer.strategy.broadcast(turn or not self.values))  # all ranks follow the first
        self.validations += 1

    def on_validation_interrupted(self, task: Task) -> None:
        self.validations -= 1

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

    # --- the measurement ---

    def _measure(self, trainer: pl.Trainer) -> None:
        assert self._probe is not None
        began = self.budget.clock()
        first, allowance = not self.values, FIRST_SHARE * self._expected_budget(trainer) if self.limited else math.inf
        bars = self._next_bars(trainer) if not (first and self.limited) else self._probe.bars_within(allowance)
        measuring = self.budget.clock()
        measured = self._probe.measure(bars, self._batches)
        active = alarms(measured.found, measured.reference, running_diversity=self.running_diversity, tolerance=self.tolerance)
        for name, reason in active.items():
            if name not in self.active_alarms:
                log.warning("live_quality, step %d, %s: %s", trainer.global_step, name, reason)
        self.active_alarms = sorted(active)
        own = measured.found["diversity"]
        if math.isfinite(own):
            self.running_diversity = own if self.running_diversity is None else (self.running_diversity + own) / 2
        self.values = {**measured.values, "alerts": float(len(active))}
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

    def _predicted_seconds(self, bars: int) -> float:
        return MARGIN * (self.fixed_seconds + self.bar_seconds * bars)

    def _next_bars(self, trainer: pl.Trainer) -> int:
        """Returns the number of bars to measure; within a budget as before, or more if two such measurements still fit."""
        left = self._expected_budget(trainer) - self.budget.spent if self.limited else math.inf
        more = (bars for bars in range(self.num_bars, self.bars, -1) if 2 * self._predicted_seconds(bars) <= left)
        return next(more, min(max(self.bars, 1), self.num_bars))

    def _expected_budget(self, trainer: pl.Trainer) -> float:
        """Returns the budget of the whole run in seconds, predicted from the speed so far."""
        steps, total = max(trainer.global_step, 1), float(trainer.estimated_stepping_batches)
        # a run without an end is expected to last four times as long as it has so far
        times = total / steps if math.isfinite(total) else 4.0
        return self.budget.share * self.budget.training_seconds * max(times, 1.0)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": dict(self.values), "validations": self.validations, "measurements": self.measurements, "bars": self.bars,
            "costs": [self.fixed_seconds, self.bar_seconds], "running_diversity": self.running_diversity,
            "ringing": list(self.active_alarms), "budget": self.budget.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values, self.active_alarms = dict(state_dict["values"]), list(state_dict["ringing"])
        self.validations, self.measurements = state_dict["validations"], state_dict["measurements"]
        self.bars, self.running_diversity = state_dict["bars"], state_dict["running_diversity"]
        self.fixed_seconds, self.bar_seconds = state_dict["costs"]
        self.budget.load_state_dict(state_dict["budget"])
