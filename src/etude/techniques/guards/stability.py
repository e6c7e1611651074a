"""Technique stability: skips or undoes steps at which the loss spikes, and clips gradients by their recent norms."""

import logging
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from etude.core import lightning
from etude.core.optimizer_state import skip_next_step
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import GradientSlot, StepSlot, Technique
from etude.optim.faults import nonfinite_module, nonfinite_terms
from etude.wording import counted

log = logging.getLogger(__name__)
MIN_DEVIATION = 0.01  # as a share of the median: a smaller deviation is replaced by this


class Stability(Technique):
    """Skips or undoes steps whose loss spikes, and clips each player's gradient at a quantile of its recent norms.

    A step is a spike if loss > median + threshold * 1.4826 * MAD of the last `history` good losses (MAD: their median absolute
    deviation, at least 1 % of the median), and always if a loss or gradient is not finite. A warning then names the loss terms
    and the module in which it probably began. "skip" skips the step: weights and optimizer do not change. "rollback" also
    restores weights, buffers and optimizer of the last good step of which there is a copy; training continues with the next
    batches and the current learning rate. If the loss stays high for more than `patience` steps, it is accepted as the new
    normal and the history is cleared. If it is not finite for more than `patience` steps, the run ends.

    The gradient of each player is scaled down to the `quantile` of its last `history` norms. A smoothed loss (an exponential mean
    with bias correction) is logged as train/loss_smooth, the number of spikes as train/spikes.

    When to use: high learning rates, small batches, GANs, low precision. It acts after the trainer's own clipping
    (trainer.gradient_clip_val=null turns that off) and before technique finite, which then has nothing to skip. Suggested:
    quantile 0.5 to 0.9; lower values make training steadier. Use rollback if a spike is seen only after bad steps were made.

    Source: Seetharaman et al. 2020 (AutoClip), section 3, over recent norms instead of all; skipping and going back as in
    Chowdhery et al. 2022 (PaLM), section 5.1; the robust z-score is Iglewicz and Hoaglin's 1993.

    Args:
        action: "skip" or "rollback"; the latter keeps a copy of weights and optimizer in memory and in checkpoints.
        threshold: number of deviations above the median that make a spike, above 0; None: only a loss or gradient that is not
            finite is a spike.
        quantile: of the recent norms, in (0, 1]; None: no clipping.
        history: number of recent losses and norms that are kept, at least 4.
        warmup: good steps before spikes are detected and gradients clipped, in [2, history].
        smoothing: decay of the smoothed loss, in [0, 1).
        snapshot_every: good steps between two copies for rollback, at least 1.
        patience: number of spikes in a row that are skipped, at least 1.

    Raises:
        ValueError: a value is out of its range; in training, more than `patience` steps in a row are not finite.
    """

    gradient_slot: ClassVar[GradientSlot] = GradientSlot.CLIP
    step_slot: ClassVar[StepSlot] = StepSlot.REPAIR

    def __init__(
        self,
        *,
        action: Literal["skip", "rollback"] = "skip",
        threshold: float | None = 6.0,
        quantile: float | None = 0.9,
        history: int = 100,
        warmup: int = 50,
        smoothing: float = 0.98,
        snapshot_every: int = 50,
        patience: int = 5,
    ) -> None:
        super().__init__()
        for name, value, good, allowed in (
            ("action", action, action in ("skip", "rollback"), "skip or rollback"),
            ("threshold", threshold, threshold is None or threshold > 0, "above 0, in deviations, or null; 6 is a good start"),
            ("quantile", quantile, quantile is None or 0 < quantile <= 1, "in (0, 1] or null; 0.9 is a good start"),
            ("history", history, history >= 4, "at least 4 steps; 100 is a good start"),
            ("warmup", warmup, 2 <= warmup <= history, f"in [2, history = {history}] steps"),
            ("smoothing", smoothing, 0 <= smoothing < 1, "in [0, 1)"),
            ("snapshot_every", snapshot_every, snapshot_every >= 1, "at least 1 step; 50 is a good start"),
            ("patience", patience, patience >= 1, "at least 1 step; 5 is a good start"),
        ):
            if not good:
                raise ValueError(f"stability.{name} is {value!r}, must be {allowed}")
        self.action, self.threshold, self.quantile = action, threshold, quantile
        self.history, self.warmup, self.smoothing = history, warmup, smoothing
        self.snapshot_every, self.patience = snapshot_every, patience
        self.losses: list[float] = []
        self.norms: dict[str, list[float]] = {}
        self.good, self.spikes, self.in_a_row = 0, 0, 0
        self._mean = 0.0
        self._snapshot: dict[str, Any] = {}
        self._optimizer: Any = None  # the optimizer of the snapshot
        self._restore_counters: Callable[[], None] | None = None
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"train/loss_smooth", "train/spikes"})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if is_sharded(trainer):
            raise ValueError("technique stability measures whole gradients, but trainer=fsdp shards them; add technique=[]")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._optimizer = trainer.optimizers[0]  # a resumed snapshot belongs to it, even if it is replaced before the first step

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, Task)
        self._terms.append(pl_module.composition.terms)
        scaler = lightning.scaler_of(trainer)  # removes the loss scale of 16-mixed precision, which changes during training
        self._losses.append(loss.detach() / (scaler.get_scale() if scaler is not None else 1.0))

    def transform_gradients(self, task: Task) -> None:
        optimizer = task.trainer.optimizers[0]
        if optimizer is not self._optimizer:
            self._snapshot = {}  # the optimizer was replaced
        self._optimizer = optimizer
        loss, norms = self._measure(task)
        finite = all(math.isfinite(value) for value in (loss, *norms.values()))
        spike = self._is_spike(loss) if finite else True
        if spike and self._reject(task, loss, finite=finite):
            self._restore_counters = skip_next_step(task)
        else:
            self._accept(task, loss, norms)
        self._losses, self._terms = [], []

    def _measure(self, task: Task) -> tuple[float, dict[str, float]]:
        """Returns the step's loss, the mean over its batches and all ranks, and the norm of each player's gradient."""
        total = torch.stack(
            [x.float() for x in self._losses]
        ).sum()  # in an accumulated step, each is divided by their number already
        values = {"": task.trainer.strategy.reduce(total, reduce_op="mean")}
        values |= self._norms(task)
        found = torch.stack([value.to(total.device) for value in values.values()]).tolist()
        return found[0], dict(zip(list(values)[1:], found[1:], strict=True))

    def _norms(self, task: Task) -> dict[str, Tensor]:
        """Returns the norm of each player's gradient after the trainer's clipping, computed from the norm before if possible."""
        limit, algorithm = task.trainer.gradient_clip_val, task.trainer.gradient_clip_algorithm
        if (limit and algorithm == "value") or task.composition.changes_clipped_gradients(self):
            found = {player: _gradients(task, player) for player in task.players}
            return {player: nn.utils.get_total_norm(g).float() for player, g in found.items() if g}
        norms = {player: norm.float() for player, norm in task.gradient_norms.items()}
        return {player: norm * (limit / (norm + 1e-6)).clamp(max=1) for player, norm in norms.items()} if limit else norms

    def _is_spike(self, loss: float) -> bool:
        if self.threshold is None or len(self.losses) < self.warmup:
            return False
        median = float(np.median(self.losses))
        deviation = 1.4826 * float(np.median(np.abs(np.asarray(self.losses) - median)))
        return loss > median + self.threshold * max(deviation, MIN_DEVIATION * abs(median), 1e-12)

    def _reject(self, task: Task, loss: float, *, finite: bool) -> bool:
        """Counts and reports a bad step, and rolls back if chosen; returns False if the high loss has lasted and is accepted."""
        self.spikes += 1
        self.in_a_row += 1
        step = f"step {task.trainer.global_step + 1}"
        if finite:
            what = f"{step}: the loss of {loss:.4g} is a spike (the recent median is {np.median(self.losses):.4g})"
            if self.in_a_row > self.patience:
                log.warning(f"{what}, but it has lasted for {counted(self.patience, 'step')}: accepted from now on")
                self.losses, self.norms = [], {}
                return False
        else:
            what = f"{step}: not finite, terms {nonfinite_terms(self._terms)}, module {nonfinite_module(task)}"
            if self.in_a_row > self.patience:
                raise ValueError(
                    f"{what}; more than stability.patience = {self.patience} steps in a row: lower the learning rate, "
                    "clip gradients (trainer.gradient_clip_val) or examine the terms named"
                )
        back = self.action == "rollback" and self._roll_back(task)
        done = f"back to step {self._snapshot['step']}" if back else "skipped"
        log.warning(f"{what}; {done} ({self.spikes} so far)")
        return True

    def _accept(self, task: Task, loss: float, norms: dict[str, float]) -> None:
        """Clips the gradients, records loss and norms, and takes a snapshot if due: a normal loss means good weights."""
        self.in_a_row = 0
        if self.action == "rollback" and (not self._snapshot or self.good % self.snapshot_every == 0):
            self._take_snapshot(task)
        self.good += 1
        self._mean = self.smoothing * self._mean + (1 - self.smoothing) * loss
        self.losses = [*self.losses, loss][-self.history :]
        for player, norm in norms.items():
            recent = self.norms.get(player, [])
            if self.quantile is not None and len(recent) >= self.warmup:
                limit = float(np.quantile(recent, self.quantile))
                if norm > limit:
                    torch._foreach_mul_(_gradients(task, player), limit / norm)
            self.norms[player] = [*recent, norm][-self.history :]

    def _take_snapshot(self, task: Task) -> None:
        self._snapshot = {
            "step": task.trainer.global_step,
            "weights": {name: value.detach().clone() for name, value in task.state_dict().items()},
            "optimizer": deepcopy(self._optimizer.state_dict()),
        }

    @torch.no_grad()
    def _roll_back(self, task: Task) -> bool:
        now = task.state_dict()
        if not self._snapshot or now.keys() != self._snapshot["weights"].keys():
            return False  # there was no good step yet, or the network has changed
        for name, value in self._snapshot["weights"].items():
            now[name].copy_(value)
        rates = [group["lr"] for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(deepcopy(self._snapshot["optimizer"]))
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return True

    def after_step(self, task: Task) -> None:
        if self._restore_counters is not None:
            self._restore_counters()
            self._restore_counters = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.is_logged(trainer):
            return
        pl_module.log("train/spikes", float(self.spikes))
        if self.good:
            pl_module.log("train/loss_smooth", self._mean / (1 - self.smoothing**self.good))

    def state_dict(self) -> dict[str, Any]:
        names = ("losses", "norms", "good", "spikes", "in_a_row", "_mean", "_snapshot")
        return {name.removeprefix("_"): getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.norms = state_dict["losses"], state_dict["norms"]
        self.good, self.spikes, self.in_a_row = (state_dict[name] for name in ("good", "spikes", "in_a_row"))
        self._mean, self._snapshot = state_dict["mean"], state_dict["snapshot"]


def _gradients(task: Task, player: str) -> list[Tensor]:
    modules: list[nn.Module] = list(task.players[player])
    unique = {id(p): p.grad for module in modules for p in module.parameters() if p.grad is not None}
    return list(unique.values())
