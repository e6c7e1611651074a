"""Technique agem: the gradient never points against that of a sample of earlier phases (averaged GEM)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from etude.core.rehearsal import Rehearsal
from etude.core.task import Task
from etude.core.technique import GradientSlot
from etude.optim.gradient_vectors import player_gradients, write_gradient
from etude.optim.projection import averaged_projection


class Agem(Rehearsal):
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

    gradient_slot: ClassVar[GradientSlot] = GradientSlot.PROJECT

    def __init__(
        self, *, size: int = 32, batch_size: int = 8, margin: float = 0.0, every: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(size=size, batch_size=batch_size, every=every, seed=seed)
        if not margin >= 0:
            raise ValueError(f"technique.agem.margin is {margin}, must be at least 0")
        self.margin = margin
        self.projected = 0  # steps whose gradient was changed

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"agem/projected"})

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

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "projected": self.projected}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.projected = state_dict["projected"]

    def carried_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        found = super().carried_state(state)
        return None if found is None else {**found, "projected": 0}
