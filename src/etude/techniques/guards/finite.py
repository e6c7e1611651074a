"""Technique finite: skips optimizer steps whose loss or gradient is not finite (NaN or infinite)."""

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import pytorch_lightning as pl
from torch import Tensor

from etude.core.optimizer_state import skip_next_step
from etude.core.task import Task
from etude.core.technique import GradientSlot, StepSlot, Technique
from etude.optim.faults import is_finite, nonfinite_module, nonfinite_terms

log = logging.getLogger(__name__)


class Finite(Technique):
    """Skips a step whose loss or gradient is not finite, so that one bad batch does not spoil all weights with NaN.

    The gradients of all players are removed, so weights and optimizer states do not change. The number of skipped steps is
    logged as `train/skipped_steps`. A warning names the loss terms and the module in which the problem probably began (see
    `etude.optim.faults.nonfinite_module`). As long as everything is finite, nothing changes. Buffers that a forward pass writes
    (BatchNorm statistics) are not restored.

    When to use: long unattended runs, mixed precision, losses with roots, logarithms or ratios. Each step costs one transfer from
    the device and, if gradients are not clipped, their norm.

    Args:
        max_skipped: number of skipped steps in a row that ends the run, at least 1.

    Raises:
        ValueError: max_skipped is below 1; in training, so many steps in a row are not finite.
    """

    gradient_slot: ClassVar[GradientSlot] = GradientSlot.SKIP
    step_slot: ClassVar[StepSlot] = StepSlot.REPAIR
    is_guard: ClassVar[bool] = True

    def __init__(self, *, max_skipped: int = 10) -> None:
        super().__init__()
        if max_skipped < 1:
            raise ValueError(f"finite.max_skipped is {max_skipped}, must be at least 1; 10 is a good start")
        self.max_skipped = max_skipped
        self.skipped = 0
        self.in_a_row = 0
        self._restore_counters: Callable[[], None] | None = None
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, Task)
        self._terms.append(pl_module.composition.terms)
        self._losses.append(loss.detach())

    def transform_gradients(self, task: Task) -> None:
        # either all ranks skip a step or none
        finite = task.trainer.strategy.reduce_boolean_decision(is_finite(task, self._losses, self), all=True)
        if not finite:
            self._skip(task)
        self.in_a_row = 0 if finite else self.in_a_row
        self._losses, self._terms = [], []

    def _skip(self, task: Task) -> None:
        self.skipped += 1
        self.in_a_row += 1
        report = (
            f"step {task.trainer.global_step + 1} is not finite and was skipped ({self.skipped} so far): "
            f"terms {nonfinite_terms(self._terms)}, module {nonfinite_module(task)}"
        )
        self._restore_counters = skip_next_step(task)
        log.warning(report)
        if self.in_a_row >= self.max_skipped:
            raise ValueError(
                f"{report}; that makes {self.in_a_row} in a row, finite.max_skipped is {self.max_skipped}: lower the learning "
                "rate, clip gradients (trainer.gradient_clip_val) or examine the terms named"
            )

    def after_step(self, task: Task) -> None:
        if self._restore_counters is not None:
            self._restore_counters()
            self._restore_counters = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_logged(trainer):
            pl_module.log("train/skipped_steps", float(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
