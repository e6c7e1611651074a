"""Technique agem: the gradient never points against that of a sample of earlier phases (averaged GEM)."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from etude.core.batch import Batch
from etude.core.memory import Memory, check_memory
from etude.core.sections import check_every, check_sections, ends_now
from etude.core.task import Task
from etude.core.technique import BatchSlot, GradientSlot, StepSlot, Technique
from etude.optim.gradient_vectors import player_gradients, write_gradient
from etude.optim.projection import averaged_projection

log = logging.getLogger(__name__)


class Agem(Technique):
    """Projects the gradient g to g - (g . r / r . r) r where g . r < 0; r is the gradient on pieces of earlier phases.

    r is that of `batch_size` pieces, drawn anew at each step from a memory of `size` pieces of all phases that have ended. Each
    player of a GAN is projected by itself. A step takes longer by the share of their tokens.

    When to use: phases on different data of which a few pieces may be kept. `replay` learns from the same memory and usually
    forgets less; agem never trains on it, so it does not overfit it.
    Source: Chaudhry et al. 2019 (A-GEM), equation 11.

    Args:
        size: pieces in the memory, at least 1. batch_size: pieces of the memory in each step, at least 1.
        margin: at least 0; the product with r is at least margin times both lengths.
        every: steps after which a section ends like a phase; None to go by the phases alone.
        seed: of what is kept and drawn.

    Raises:
        ValueError: an option out of its range, a single phase, or a memory larger than the data.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.SELECT
    gradient_slot: ClassVar[GradientSlot] = GradientSlot.PROJECT
    step_slot: ClassVar[StepSlot] = StepSlot.PLAN

    def __init__(
        self, *, size: int = 32, batch_size: int = 8, margin: float = 0.0, every: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        for name, value in (("size", size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"technique.agem.{name} is {value}, must be at least 1 piece")
        if not margin >= 0:
            raise ValueError(f"technique.agem.margin is {margin}, must be at least 0")
        check_every(self.name, every)
        self.size, self.batch_size, self.margin, self.every = size, batch_size, margin, every
        self.memory = Memory(size=size, seed=seed)
        self.projected = 0  # steps whose gradient was changed
        self._carried = 0  # sections of the run that this one goes on from

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"agem/projected"})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            assert isinstance(pl_module, Task)
            check_memory(pl_module, self.name, "size", self.size)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        check_sections(pl_module, self.name, self.every, carried=self._carried, size=self.size)

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        self.memory.add(batch, of=task)
        return batch

    def transform_gradients(self, task: Task) -> None:
        batches = self.memory.draw(self.batch_size, self.generator(task.steps_trained), of=task)
        if not batches:
            return
        changed = False
        for own, (reference,) in player_gradients(task, [batches]):
            projected = averaged_projection(own.vector, reference, margin=self.margin)
            changed = changed or not torch.equal(projected, own.vector)
            write_gradient(own, projected)
        self.projected += changed

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_logged(trainer):
            pl_module.log("agem/projected", float(self.projected))

    def after_step(self, task: Task) -> None:
        if ends_now(task, self.every):
            self.memory.end_section()

    def on_phase_end(self, task: Task) -> None:
        self.memory.end_section()
        log.warning(self.memory.told(self.name))

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {**self.memory.state_dict(), "projected": self.projected, "carried": self._carried}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.memory.load_state_dict(state_dict)
        self.projected, self._carried = state_dict["projected"], state_dict["carried"]

    def carried_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        memory = Memory(size=self.size, seed=self.seed)
        memory.load_state_dict(state)
        memory.end_section()
        return {**memory.state_dict(), "projected": 0, "carried": len(memory.ended)}
