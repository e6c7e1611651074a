"""A guard against losses and gradients that are not finite: the step is left out, counted and explained."""

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
    """Leaves out a step whose loss or whose gradient is not finite, so that one bad batch does not end a run in NaN.

    All players' gradients are set to None: weights and optimizer states stay as they were. The count is logged as
    `train/skipped_steps`, and a warning names the loss terms and the module: of the parameters that have gone wrong
    themselves the first, otherwise, as what is not finite spreads from the loss backwards, the last one, in the order of
    the module's definition, whose gradient has. Nothing is changed while all is finite. Buffers that a forward pass
    writes (batch statistics) are not taken back.

    When to use: long runs nobody watches, mixed precision, losses with roots, logarithms or ratios. Costs one
    transfer from the device a step, and a norm of each gradient where nothing is clipped.

    Args:
        max_skipped: steps left out in a row that end the run, at least 1.

    Raises:
        ValueError: max_skipped below 1; in training, more bad steps in a row than that.
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
        self._put_back: Callable[[], None] | None = None
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, Task)
        self._terms.append(pl_module.composition.terms)
        self._losses.append(loss.detach())

    def transform_gradients(self, task: Task) -> None:
        # all ranks leave a step out or none does
        finite = task.trainer.strategy.reduce_boolean_decision(is_finite(task, self._losses, self), all=True)
        if not finite:
            self._skip(task)
        self.in_a_row = 0 if finite else self.in_a_row
        self._losses, self._terms = [], []

    def _skip(self, task: Task) -> None:
        self.skipped += 1
        self.in_a_row += 1
        report = (
            f"step {task.trainer.global_step + 1} is not finite and left out ({self.skipped} so far): "
            f"terms {nonfinite_terms(self._terms)}, module {nonfinite_module(task)}"
        )
        self._put_back = skip_next_step(task)
        log.warning(report)
        if self.in_a_row >= self.max_skipped:
            raise ValueError(
                f"{report}; that makes {self.in_a_row} in a row, finite.max_skipped allows less: lower the learning rate, "
                "clip gradients (trainer.gradient_clip_val) or look into the terms named"
            )

    def after_step(self, task: Task) -> None:
        if self._put_back is not None:
            self._put_back()
            self._put_back = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_logged(trainer):
            pl_module.log("train/skipped_steps", float(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
