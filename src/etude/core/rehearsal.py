"""What techniques share that keep some pieces of earlier phases: options, the memory, its checks and its state."""

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


class Rehearsal(Technique):
    """Fills a memory with pieces of every section of training; subclasses say what is done with them.

    Args:
        size: pieces in the memory, at least 1. batch_size: pieces of it in each step, at least 1.
        every: steps after which a section ends like a phase; None to go by the phases alone.
        seed: of what is kept and drawn.

    Raises:
        ValueError: an option out of its range; later a single phase, or a memory larger than the data.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.SELECT
    step_slot: ClassVar[StepSlot] = StepSlot.PLAN

    def __init__(self, *, size: int, batch_size: int, every: int | None, seed: int) -> None:
        super().__init__(seed=seed)
        for name, value in (("size", size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"technique.{self.name}.{name} is {value}, must be at least 1 piece")
        check_every(self.name, every)
        self.size, self.batch_size, self.every = size, batch_size, every
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

    def after_step(self, task: Task) -> None:
        if ends_now(task, self.every):
            self.memory.end_section()

    def on_phase_end(self, task: Task) -> None:
        self.memory.end_section()
        log.warning(self.memory.told(self.name))

    def rehearsed(self, task: Task, draws: torch.Generator) -> dict[str, Tensor]:
        """Returns each loss term of the task on drawn pieces of earlier sections, as `NAME_TERM` with the technique's name."""
        batches = self.memory.draw(self.batch_size, draws, of=task)
        sums: dict[str, list[Tensor]] = {}
        for each in batches:
            for name, value in task.losses_at(each).items():
                sums.setdefault(name, []).append(value)
        return {self._term(name): torch.stack(values).sum() / len(batches) for name, values in sums.items()}

    def weights_of_rehearsed(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        """Returns for each term of `rehearsed` the task's weight of the term that it repeats."""
        weights = {self._term(name): weight for name, weight in task.loss_weights.items()}
        mine = (name for name in losses if name.rpartition("/")[2].startswith(f"{self.name}_"))
        return {name: weights.get(name, 1.0) for name in mine}

    def _term(self, name: str) -> str:
        player, slash, term = name.rpartition("/")
        return f"{player}{slash}{self.name}_{term}"

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
