"""Technique packnet: each phase keeps some weights for itself, which later phases use but do not change."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.optimizer_state import copies_of_weights
from etude.core.sections import check_every, check_sections, ends_now
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import GradientSlot, StepSlot, Technique
from etude.optim.consolidation import like, players_of

log = logging.getLogger(__name__)


class PackNet(Technique):
    """Gives each phase a share of the free weights of every matrix: the largest ones. Later phases may not change them.

    A phase trains all free weights at first. When a share `retrain` of its steps is left, the largest of them become its own, the
    others are set to 0 and stay there while its own go on learning. When it ends, its own weights are held for the rest of the
    run: their gradients are 0, and after each step they are put back, since an optimizer moves weights without a gradient, too
    (decay, moments). Vectors (biases, norms) belong to the first phase. The last phase keeps all that is left.

    A phase is recalled by its own weights and those of the phases before, all others 0: the technique `forgetting` measures it
    so. Checkpoints hold all weights, which suit the latest phase.

    When to use: if the phase of a piece is known when the model is used, and nothing may be forgotten. The network must be large
    enough for all phases.
    Source: Mallya and Lazebnik 2018 (PackNet), section 3.

    Args:
        keep: share of the free weights that a phase keeps, in (0, 1]; None for equal shares of all phases.
        retrain: share of the steps of a phase that follow on its choice, in [0, 1).
        every: steps of a section, in a run without phases; None to go by the phases.

    Raises:
        ValueError: an option out of its range, a single phase, a phase of unknown length, or weights sharded over devices.
    """

    gradient_slot: ClassVar[GradientSlot] = GradientSlot.MASK
    step_slot: ClassVar[StepSlot] = StepSlot.WEIGHTS
    holds_weights: ClassVar[bool] = True

    def __init__(self, *, keep: float | None = None, retrain: float = 0.3, every: int | None = None) -> None:
        super().__init__()
        if keep is not None and not 0 < keep <= 1:
            raise ValueError(f"technique.packnet.keep is {keep}, must be in (0, 1], or null for equal shares")
        if not 0 <= retrain < 1:
            raise ValueError(f"technique.packnet.retrain is {retrain}, must be in [0, 1), a share of a phase")
        check_every(self.name, every)
        self.keep, self.retrain, self.every = keep, retrain, every
        self.ended = 0  # phases or sections
        self.chosen = False  # whether the present phase has chosen its own weights
        self.owner: dict[str, Tensor] = {}  # int16: the phase that a weight belongs to, from 1; 0 for a free one
        self.held: dict[str, Tensor] = {}  # the weights when the latest phase ended

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and is_sharded(trainer):
            raise ValueError(
                f"technique packnet needs whole weights, but trainer=fsdp shards those of {type(pl_module).__name__}; "
                "choose trainer=ddp"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        check_sections(pl_module, self.name, self.every)
        if self.every is not None and pl_module.phases.sequence:
            raise ValueError(
                f"technique packnet divides the weights of {type(pl_module).__name__} among phases or among sections of `every` "
                "steps, not both; set technique.packnet.every=null, or leave the phases out"
            )
        for held in (self.owner, self.held):
            held.update({name: value.to(pl_module.device) for name, value in held.items()})
        for phase in pl_module.phases.sequence[:-1]:
            if self.retrain and self.every is None and phase.max_steps is None:
                raise ValueError(
                    f"technique packnet retrains at the end of a phase of {type(pl_module).__name__}, and that of {phase.name} "
                    "is not known; give it max_steps, or set technique.packnet.retrain=0"
                )

    # --- how long a section is ---

    def _sections(self, task: Task) -> int:
        """How many sections the run has."""
        if self.every is None:
            return len(task.phases.sequence)
        return max(2, -(-int(task.trainer.max_steps) // self.every))

    def _chooses_now(self, task: Task) -> bool:
        length = self.every or task.phase.max_steps
        if length is None or self.ended + 1 >= self._sections(task):
            return False
        done = (task.steps_trained - task.phases.start_step) % length or length
        return done >= length - round(self.retrain * length)

    # --- what is held ---

    def _held(self, name: str) -> Tensor:
        """Which entries of a weight may not change now, bool."""
        owner = self.owner[name]
        earlier = (owner > 0) & (owner <= self.ended)
        return earlier | (owner == 0) if self.chosen else earlier

    def transform_gradients(self, task: Task) -> None:
        for name, weight in task.named_parameters():
            if name in self.owner and weight.grad is not None:
                weight.grad.masked_fill_(self._held(name), 0)

    def after_step(self, task: Task) -> None:
        if not self.chosen and self._chooses_now(task):
            self._choose(task)
        self._put_back(task)
        if ends_now(task, self.every) and self.ended + 1 < self._sections(task):
            self._end(task)

    def _put_back(self, task: Task) -> None:
        """Sets the held entries to their values, in the optimizer's copies of the weights, too."""
        copies = copies_of_weights(task.trainer.optimizers)
        for name, weight in task.named_parameters():
            if name in self.owner:
                fixed, value = self._held(name), torch.where(self.owner[name] == 0, 0, self.held[name])
                for place in (weight, *copies.get(weight, ())):
                    place.copy_(torch.where(fixed, value, place))

    @torch.no_grad()
    def _choose(self, task: Task) -> None:
        """Gives the present phase its own weights."""
        share = 1 / (self._sections(task) - self.ended) if self.keep is None else self.keep
        own = total = 0
        for weights in players_of(task).values():
            for name, weight in weights.items():
                owner = self.owner.setdefault(name, torch.zeros_like(weight, dtype=torch.int16))
                self.held.setdefault(name, weight.detach().clone())
                free = owner == 0
                count = round(share * int(free.sum()))
                if weight.ndim < 2:  # they belong to the first phase, as a whole
                    owner[free] = self.ended + 1
                elif count:
                    sizes = torch.where(free, weight.detach().abs(), -1.0).flatten()
                    owner.view(-1)[sizes.topk(count).indices] = self.ended + 1
                own, total = own + int((owner == self.ended + 1).sum()), total + owner.numel()
        self.chosen = True
        log.info(f"packnet: {task.phase.name or f'section {self.ended + 1}'} keeps {own:,} of {total:,} weights")

    @torch.no_grad()
    def _end(self, task: Task) -> None:
        """Holds what the section that ends has learned."""
        if not self.chosen:
            self._choose(task)
            self._put_back(task)
        for name, weight in task.named_parameters():
            if name in self.owner:
                self.held[name] = weight.detach().clone()
        self.ended, self.chosen = self.ended + 1, False

    @torch.no_grad()
    def on_phase_end(self, task: Task) -> None:
        self._end(task)

    def on_phase_start(self, task: Task) -> None:
        for name, weight in task.named_parameters():
            if name in self.owner and self.owner[name].shape != weight.shape:  # new entries are free
                owner, held = torch.zeros_like(weight, dtype=torch.int16), weight.detach().clone()
                like(owner, self.owner[name]).copy_(self.owner[name])
                like(held, self.held[name]).copy_(self.held[name])
                self.owner[name], self.held[name] = owner, held

    # --- recalling ---

    @contextmanager
    def recalled(self, task: Task, phase: int) -> Iterator[None]:
        """Within this context the task has the weights of a phase, counted from 0: its own, and those of the phases before.

        A phase that has not ended has all weights.
        """
        if phase >= self.ended:
            yield
            return
        weights = {name: p for name, p in task.named_parameters() if name in self.owner}
        whole = {name: p.detach().clone() for name, p in weights.items()}
        with torch.no_grad():
            for name, p in weights.items():
                own = (self.owner[name] > 0) & (self.owner[name] <= phase + 1)
                p.masked_fill_(~own, 0)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in weights.items():
                    p.copy_(whole[name])

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self.ended, "chosen": self.chosen, "owner": dict(self.owner), "held": dict(self.held)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ended, self.chosen = state_dict["ended"], state_dict["chosen"]
        self.owner, self.held = dict(state_dict["owner"]), dict(state_dict["held"])
