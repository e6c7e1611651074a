"""Technique meta_replay: replay, and after every few steps the weights go only part of the way (meta-experience replay)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.optimizer_state import copies_of_weights
from etude.core.rehearsal import Rehearsal
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import StepSlot


class MetaReplay(Rehearsal):
    """Trains on remembered pieces, too, and after every `cycle` steps sets the weights to w0 + interpolation * (w - w0).

    w0 are the weights with which the cycle began. The first step of a cycle lowers the losses of its batch; the later ones then
    start from there, so to second order the difference w - w0 also raises the inner products of the gradients of the batches of
    a cycle: what is learned from one piece, be it new or remembered, helps with the others instead of undoing it (Reptile). Each
    loss term of the task is added on remembered pieces, as `meta_replay_TERM` or `player/meta_replay_TERM`. A phase begins a
    cycle of its own; the steps of one that it cuts short count in full. With interpolation 1 this is `replay` of strength 1.

    When to use: as `replay`, where the phases pull in different directions; with a higher learning rate, since the weights go
    only part of the way. Suggested: cycles of 5 steps, interpolation 0.5.
    Source: Riemer et al. 2019 (MER), the Reptile update across batches of algorithm 1 and its reservoir, with one for each phase;
    Nichol et al. 2018 (Reptile). Deviations: the inner steps are those of the run's optimizer, on whole batches, beside which
    remembered pieces enter as a loss term, not one example after the other by plain gradient descent; there is no second
    interpolation within a batch.

    Args:
        size: pieces in the memory, at least 1.
        batch_size: pieces of the memory in each step, at least 1.
        cycle: steps between two interpolations, at least 2 (with 1 it would only lower the learning rate).
        interpolation: share of the way that the weights go, in (0, 1].
        every: steps after which a section ends like a phase; None to go by the phases alone.
        seed: of what is kept and drawn.

    Raises:
        ValueError: an option out of its range, a single phase, a memory larger than the data, or weights sharded over devices.
    """

    step_slot: ClassVar[StepSlot] = StepSlot.WEIGHTS

    def __init__(
        self,
        *,
        size: int = 32,
        batch_size: int = 4,
        cycle: int = 5,
        interpolation: float = 0.5,
        every: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(size=size, batch_size=batch_size, every=every, seed=seed)
        if cycle < 2:
            raise ValueError(f"technique.meta_replay.cycle is {cycle}, must be at least 2 steps; 5 is a good start")
        if not 0 < interpolation <= 1:
            raise ValueError(f"technique.meta_replay.interpolation is {interpolation}, must be in (0, 1]; 0.5 is a good start")
        self.cycle, self.interpolation = cycle, interpolation
        self.taken = 0  # steps of the present cycle
        self.began: dict[str, Tensor] = {}  # the weights with which it began
        self.began_copies: dict[str, list[Tensor]] = {}  # those of the optimizer's copies

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and is_sharded(trainer):
            raise ValueError(
                f"technique meta_replay needs whole weights, but trainer=fsdp shards those of {type(pl_module).__name__}; "
                "choose trainer=ddp"
            )
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if not self.began:
            self._begin(pl_module)
        for name, weight in pl_module.named_parameters():
            if name in self.began:
                self.began[name] = self.began[name].to(weight.device)
                self.began_copies[name] = [copy.to(weight.device) for copy in self.began_copies[name]]

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.rehearsed(task, self.generator(task.batches_trained))

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        return self.weights_of_rehearsed(task, losses)

    # --- cycles ---

    def after_step(self, task: Task) -> None:
        super().after_step(task)
        self.taken += 1
        if self.taken < self.cycle:
            return
        if self.interpolation < 1:
            self._interpolate(task)
        self._begin(task)

    def on_phase_start(self, task: Task) -> None:
        self._begin(task)

    @torch.no_grad()
    def _interpolate(self, task: Task) -> None:
        """Sets the trained weights, and the optimizer's copies of them, to where they go from the beginning of the cycle."""
        copies = copies_of_weights(task.trainer.optimizers)
        for name, weight in task.named_parameters():
            if name not in self.began:
                continue
            places: list[tuple[Tensor, Tensor]] = [(weight, self.began[name])]
            before = self.began_copies[name]
            for number, copy in enumerate(copies.get(weight, ())):  # at its first step an optimizer copies the weights
                places.append((copy, before[number] if number < len(before) else self.began[name]))
            for place, start in places:
                place.copy_(torch.lerp(start, place, self.interpolation))

    def _begin(self, task: Task) -> None:
        copies = copies_of_weights(task.trainer.optimizers)
        trained = {name: weight for name, weight in task.named_parameters() if weight.requires_grad}
        self.taken = 0
        self.began = {name: weight.detach().clone() for name, weight in trained.items()}
        self.began_copies = {name: [copy.clone() for copy in copies.get(weight, ())] for name, weight in trained.items()}

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        own = {"taken": self.taken, "began": self.began, "began_copies": self.began_copies}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.taken, self.began = state_dict["taken"], dict(state_dict["began"])
        self.began_copies = {name: list(copies) for name, copies in state_dict["began_copies"].items()}

    def carried_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        found = super().carried_state(state)
        return None if found is None else {**found, "taken": 0, "began": {}, "began_copies": {}}
