"""Technique ewc: weights that mattered for earlier phases are held near their values (elastic weight consolidation)."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.examples import batches_of
from etude.core.memory import Memory, check_memory
from etude.core.sections import check_every, check_sections, ends_now
from etude.core.task import Task
from etude.core.technique import BatchSlot, StepSlot, Technique
from etude.optim.consolidation import fisher_diagonal, holds_any, like, quadratic, term_of
from etude.wording import counted

log = logging.getLogger(__name__)


class Ewc(Technique):
    """Adds strength / 2 * sum_i F_i (w_i - c_i)^2, where F_i says how much the loss of earlier phases depends on weight i.

    At the end of a phase F is computed from `samples` of its pieces: the mean of the squared gradients of single pieces, without
    dropout. Without `decay` the penalties of all phases add up, each around the weights with which its phase ended; their sum is
    one quadratic around its own centre c, up to a constant. With `decay` (online EWC) F of the earlier phases is multiplied by it
    and c are the latest weights.

    A run that starts from the weights of a run with this technique (weights=RUN) holds on to what that run learned.

    When to use: phases on different data, where earlier pieces may not be kept. Suggested: strength so that the term is about a
    tenth of the loss at the middle of the second phase; `replay` forgets less where pieces may be kept.

    Source: Kirkpatrick et al. 2017, equation 3; online: Schwarz et al. 2018, section 3.2. F is empirical (targets of the data).

    Args:
        strength: factor of the penalty, above 0.
        decay: of the earlier F, in (0, 1]; None keeps a penalty for each phase.
        samples: pieces of a phase of which F is computed, at least 1; of a long piece it is a window.
        every: steps after which a section ends like a phase; None to go by the phases alone.
        seed: of the choice of pieces.

    Raises:
        ValueError: an option out of its range, a single phase, or more samples than pieces.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.SELECT
    step_slot: ClassVar[StepSlot] = StepSlot.PLAN

    def __init__(
        self, *, strength: float = 1000.0, decay: float | None = None, samples: int = 64, every: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        if not strength > 0:
            raise ValueError(f"technique.ewc.strength is {strength}, must be above 0; or leave ewc out of technique=[...]")
        if decay is not None and not 0 < decay <= 1:
            raise ValueError(f"technique.ewc.decay is {decay}, must be in (0, 1], or null for a penalty of each phase")
        if samples < 1:
            raise ValueError(f"technique.ewc.samples is {samples}, must be at least 1; 64 is a good start")
        check_every(self.name, every)
        self.strength, self.decay, self.samples, self.every = strength, decay, samples, every
        self.fisher: dict[str, Tensor] = {}
        self.centre: dict[str, Tensor] = {}
        self.memory = Memory(size=samples, seed=seed)
        self._carried = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            assert isinstance(pl_module, Task)
            check_memory(pl_module, self.name, "samples", self.samples)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        device = pl_module.device
        self.fisher, self.centre = ({n: v.to(device) for n, v in held.items()} for held in (self.fisher, self.centre))
        check_sections(pl_module, self.name, self.every, carried=self._carried or bool(self.fisher))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._carried:
            assert isinstance(pl_module, Task)
            self._consolidate(pl_module)
            self._carried = False

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        self.memory.add(batch, of=task)
        return batch

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value / 2 for name, value in quadratic(task, self.name, self.fisher, self.centre).items()}

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        names = (term_of(player, self.name, task) for player in task.players)
        return {name: self.strength for name in names if name in losses}

    def after_step(self, task: Task) -> None:
        if ends_now(task, self.every):
            self._consolidate(task)

    def on_phase_end(self, task: Task) -> None:
        if self.memory.current:
            self._consolidate(task)

    def on_phase_start(self, task: Task) -> None:
        if self.fisher and not holds_any(task, self.fisher):
            log.warning(f"ewc: nothing is held in {task.phase.name}, since no weight of earlier phases is trained in it")

    @torch.no_grad()
    def _consolidate(self, task: Task) -> None:
        """Adds the penalty of the section that ends."""
        examples = [batch for kept in self.memory.current for batch in batches_of([kept.example], of=task, device=task.device)]
        weights = dict(task.named_parameters())
        for name, new in fisher_diagonal(task, examples, seed=self.seed).items():
            weight = weights[name].detach().clone()
            if name not in self.fisher:
                self.fisher[name], self.centre[name] = new, weight
                continue
            old, centre = new.new_zeros(new.shape), weight.clone()
            like(old, self.fisher[name]).copy_(self.fisher[name])
            like(centre, self.centre[name]).copy_(self.centre[name])
            if self.decay is not None:
                self.fisher[name], self.centre[name] = self.decay * old + new, weight
                continue
            both = old + new
            self.fisher[name] = both
            self.centre[name] = torch.where(both > 0, (old * centre + new * weight) / both.where(both > 0, 1), weight)
        what = counted(len(examples), "piece", "pieces")
        log.warning(f"ewc: {what} of {task.phase.name or 'this section'} say which weights to hold")
        self.memory = Memory(size=self.samples, seed=self.seed)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        held = {"fisher": dict(self.fisher), "centre": dict(self.centre)}
        return {**held, "memory": self.memory.state_dict(), "carried": self._carried}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fisher, self.centre = dict(state_dict["fisher"]), dict(state_dict["centre"])
        self.memory.load_state_dict(state_dict["memory"])
        self._carried = state_dict["carried"]

    def carried_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        return {**state, "carried": bool(state["memory"]["current"])}
