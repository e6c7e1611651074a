"""Technique replay: pieces of earlier phases are kept in a memory and trained on beside those of the present phase."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.memory import Memory, check_memory
from etude.core.sections import check_every, check_sections, ends_now
from etude.core.task import Task
from etude.core.technique import BatchSlot, StepSlot, Technique

log = logging.getLogger(__name__)


class Replay(Technique):
    """Adds to every loss term the same term on pieces of earlier phases, as `replay_TERM` or `player/replay_TERM`.

    The memory holds `size` pieces: as many of each phase that has ended, chosen uniformly, as single pieces or windows of long
    ones that are cut at bars. Each step trains on `batch_size` of them. A step takes longer by the share of their tokens.

    When to use: phases on different data of which some may be kept; of the techniques against forgetting it is the one to try
    first. Suggested: a memory of a tenth of the pieces, strength 1.
    Source: Rolnick et al. 2019; Chaudhry et al. 2019 (tiny episodic memories), with a reservoir for each phase.

    Args:
        size: pieces in the memory, at least 1.
        batch_size: pieces of the memory in each step, at least 1.
        strength: factor of their loss, above 0.
        every: steps after which a section ends like a phase; None to go by the phases alone.
        seed: of what is kept and drawn.

    Raises:
        ValueError: an option out of its range, a single phase, or a memory larger than the data.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.SELECT
    step_slot: ClassVar[StepSlot] = StepSlot.PLAN

    def __init__(
        self, *, size: int = 32, batch_size: int = 4, strength: float = 1.0, every: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        for name, value in (("size", size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"technique.replay.{name} is {value}, must be at least 1 piece")
        if not strength > 0:
            raise ValueError(
                f"technique.replay.strength is {strength}, must be above 0; without it leave replay out of technique=[...]"
            )
        check_every(self.name, every)
        self.size, self.batch_size, self.strength, self.every = size, batch_size, strength, every
        self.memory = Memory(size=size, seed=seed)
        self._carried = 0  # sections of the run that this one goes on from

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

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batches = self.memory.draw(self.batch_size, self.generator(task.batches_trained), of=task)
        sums: dict[str, list[Tensor]] = {}
        for each in batches:
            for name, value in task.losses_at(each).items():
                sums.setdefault(name, []).append(value)
        return {_term(name): torch.stack(values).sum() / len(batches) for name, values in sums.items()}

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        weights = {_term(name): weight for name, weight in task.loss_weights.items()}
        mine = (name for name in losses if name.rpartition("/")[2].startswith("replay_"))
        return {name: self.strength * weights.get(name, 1.0) for name in mine}

    def after_step(self, task: Task) -> None:
        if ends_now(task, self.every):
            self.memory.end_section()

    def on_phase_end(self, task: Task) -> None:
        self.memory.end_section()
        log.warning(self.memory.told(self.name))

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {**self.memory.state_dict(), "carried": self._carried}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.memory.load_state_dict(state_dict)
        self._carried = state_dict["carried"]

    def carried_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        memory = Memory(size=self.size, seed=self.seed)
        memory.load_state_dict(state)
        memory.end_section()
        return {**memory.state_dict(), "carried": len(memory.ended)}


def _term(name: str) -> str:
    player, slash, term = name.rpartition("/")
    return f"{player}{slash}replay_{term}"
