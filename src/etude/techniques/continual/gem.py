"""Technique gem: the gradient never points against that of any earlier phase (gradient episodic memory)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from etude.core.rehearsal import Rehearsal
from etude.core.task import Task
from etude.core.technique import GradientSlot
from etude.optim.gradient_vectors import player_gradients, write_gradient
from etude.optim.projection import episodic_projection


class Gem(Rehearsal):
    """Replaces the gradient by the nearest vector whose product with the gradient of each earlier phase is not negative.

    Each phase that has ended has its share of a memory of `size` pieces; its gradient is that of `batch_size` of them, drawn anew
    at each step. Each player of a GAN is projected by itself. A step takes a backward pass more for each earlier phase.

    When to use: few phases on different data, of which a few pieces may be kept; with many phases `agem` costs less.
    Source: Lopez-Paz and Ranzato 2017 (GEM), equations 8 to 11; there the whole memory of a phase gives its gradient.

    Args:
        size: pieces in the memory, at least 1. batch_size: pieces of each phase in each step, at least 1.
        margin: at least 0; how far the vector is pushed towards the memories' gradients, in multiples of their directions.
        every: steps after which a section ends like a phase; None to go by the phases alone.
        seed: of what is kept and drawn.

    Raises:
        ValueError: an option out of its range, a single phase, or a memory larger than the data.
    """

    gradient_slot: ClassVar[GradientSlot] = GradientSlot.PROJECT

    def __init__(
        self, *, size: int = 32, batch_size: int = 8, margin: float = 0.0, every: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(size=size, batch_size=batch_size, every=every, seed=seed)
        if not margin >= 0:
            raise ValueError(f"technique.gem.margin is {margin}, must be at least 0")
        self.margin = margin
        self.projected = 0  # steps whose gradient was changed

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"gem/projected"})

    def transform_gradients(self, task: Task) -> None:
        sections = self.memory.draw_each(self.batch_size, self.generator(task.steps_trained), of=task)
        if not sections:
            return
        changed = False
        for own, references in player_gradients(task, sections):
            projected = episodic_projection(own.vector, torch.stack(references), margin=self.margin)
            changed = changed or not torch.equal(projected, own.vector)
            write_gradient(own, projected)
        self.projected += changed

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_logged(trainer):
            pl_module.log("gem/projected", float(self.projected))

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "projected": self.projected}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.projected = state_dict["projected"]

    def carried_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        found = super().carried_state(state)
        return None if found is None else {**found, "projected": 0}
