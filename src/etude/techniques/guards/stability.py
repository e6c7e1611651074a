"""Keeps one bad batch from spoiling a run: spikes of the loss are skipped or undone, gradients clipped by their own history."""

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
from etude.core.task import Task
from etude.core.technique import GradientSlot, StepSlot, Technique
from etude.optim.faults import nonfinite_module, nonfinite_terms

log = logging.getLogger(__name__)
FLOOR = 0.01  # of the median's size: the smallest deviation that counts as one


class Stability(Technique):
    """Leaves out or undoes steps whose loss spikes, and clips each player's gradient at a quantile of its recent norms.

    A step is a spike where loss > median + threshold * 1.4826 * MAD of the last `history` good losses (MAD: their median
    absolute deviation, at least 1 % of the median), and always where a loss or gradient is not finite: a warning then names
    the loss terms and the module where it began. "skip" leaves the step out, weights and optimizer stay as they are;
    "rollback" also goes back to the last good step kept, weights, buffers and optimizer alike, and on with the next batches
    and today's learning rate. A spike that lasts for `patience` steps is a new level: it is accepted and the history begins
    anew; what is not finite for so long ends the run.

    Player p's gradient is scaled to at most the `quantile` of its last `history` norms. The learning curve is logged smooth
    (train/loss_smooth, an exponential mean without bias) beside the count of spikes (train/spikes).

    When to use: high learning rates, small batches, GANs, low precision. It acts after the trainer's own clipping
    (trainer.gradient_clip_val=null leaves it to this alone) and before technique finite, which then finds nothing to do but
    count. Suggested: quantile 0.5 to 0.9, the lower the calmer; rollback where a spike shows only after the damage is done.

    Source: Seetharaman et al. 2020 (AutoClip), section 3, over recent norms instead of all; skipping and going back as in
    Chowdhery et al. 2022 (PaLM), section 5.1; the robust z-score is Iglewicz and Hoaglin's 1993.

    Args:
        action: "skip" or "rollback"; the latter keeps a copy of weights and optimizer in memory and in checkpoints.
        threshold: deviations that make a spike, above 0; None for what is not finite alone.
        quantile: of the recent norms, in (0, 1]; None leaves gradients as they are.
        history: losses and norms remembered, at least 4.
        warmup: good steps before anything but what is not finite is acted on, in [2, history].
        smoothing: decay of the logged loss, in [0, 1).
        snapshot_every: good steps between two copies for rollback, at least 1.
        patience: spikes in a row that are borne, at least 1.

    Raises:
        ValueError: a value out of range; in training, `patience` steps in a row that are not finite.
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
        self._optimizer: Any = None  # whose snapshot it is
        self._put_back: Callable[[], None] | None = None
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"train/loss_smooth", "train/spikes"})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy).__name__ in ("ModelParallelStrategy", "FSDPStrategy"):
            raise ValueError("technique stability measures whole gradients, trainer=fsdp splits them; add technique=[]")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, Task)
        self._terms.append(pl_module.composition.terms)
        scaler = lightning.scaler_of(trainer)  # half precision scales the loss by what changes in training
        self._losses.append(loss.detach() / (scaler.get_scale() if scaler is not None else 1.0))

    def transform_gradients(self, task: Task) -> None:
        optimizer = task.trainer.optimizers[0]
        if optimizer is not self._optimizer and self._optimizer is not None:
            self._snapshot = {}  # another optimizer has taken over
        self._optimizer = optimizer
        loss, norms = self._measure(task)
        finite = all(math.isfinite(value) for value in (loss, *norms.values()))
        spike = self._is_spike(loss) if finite else True
        if spike and self._bear(task, loss, finite=finite):
            self._put_back = skip_next_step(task)
        else:
            self._accept(task, loss, norms)
        self._losses, self._terms = [], []

    def _measure(self, task: Task) -> tuple[float, dict[str, float]]:
        """Returns the step's loss, the mean over its batches and all ranks, and the norm of each player's gradient."""
        total = torch.stack([x.float() for x in self._losses]).sum()  # of an accumulated step, each comes divided by their number
        values = {"": task.trainer.strategy.reduce(total, reduce_op="mean")}
        values |= self._norms(task)
        found = torch.stack([value.to(total.device) for value in values.values()]).tolist()
        return found[0], dict(zip(list(values)[1:], found[1:], strict=True))

    def _norms(self, task: Task) -> dict[str, Tensor]:
        """The norm of each player's gradient as it is now: after the trainer's clipping, which has told it before."""
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
        return loss > median + self.threshold * max(deviation, FLOOR * abs(median), 1e-12)

    def _bear(self, task: Task, loss: float, *, finite: bool) -> bool:
        """Counts and tells a bad step, goes back where that is asked for; False where the loss has found a new level."""
        self.spikes += 1
        self.in_a_row += 1
        step = f"step {task.trainer.global_step + 1}"
        if finite:
            what = f"{step}: the loss of {loss:.4g} is a spike beside a median of {np.median(self.losses):.4g}"
            if self.in_a_row > self.patience:
                log.warning(f"{what}, but has lasted for {self.patience} steps: taken for a new level")
                self.losses, self.norms = [], {}
                return False
        else:
            what = f"{step}: not finite, terms {nonfinite_terms(self._terms)}, module {nonfinite_module(task)}"
            if self.in_a_row > self.patience:
                raise ValueError(
                    f"{what}; stability.patience = {self.patience} bears no more in a row: lower the learning rate, "
                    "clip gradients (trainer.gradient_clip_val) or look into the terms named"
                )
        back = self.action == "rollback" and self._roll_back(task)
        done = f"back to step {self._snapshot['step']}" if back else "left out"
        log.warning(f"{what}; {done} ({self.spikes} so far)")
        return True

    def _accept(self, task: Task, loss: float, norms: dict[str, float]) -> None:
        """Clips, remembers, and keeps a copy for going back: a loss that is no spike has shown that the weights are good."""
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
            return False  # no good step yet, or of another network
        for name, value in self._snapshot["weights"].items():
            now[name].copy_(value)
        rates = [group["lr"] for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(deepcopy(self._snapshot["optimizer"]))
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return True

    def after_step(self, task: Task) -> None:
        if self._put_back is not None:
            self._put_back()
            self._put_back = None

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
