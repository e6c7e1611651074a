"""Technique si: weights whose changes lowered the loss in earlier phases are held near their values (synaptic intelligence)."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.sections import check_every, check_sections, ends_now
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import StepSlot, Technique
from etude.optim.consolidation import holds_any, like, players_of, quadratic, term_of

log = logging.getLogger(__name__)


class Si(Technique):
    """Adds strength * sum_i O_i (w_i - c_i)^2, where O_i says how much changes of weight i lowered the loss of earlier phases.

    While a phase trains, each step adds -g_i d_i to the path integral of weight i: its gradient, without that of this penalty,
    times what the optimizer changed. When the phase ends, O_i grows by max(0, integral) / (D_i^2 + damping), D_i being the whole
    change of the weight in the phase, and c_i are the weights with which it ended. Nothing of the data is kept, and a step costs
    two passes over the weights.

    A run that starts from the weights of a run with this technique (weights=RUN) holds on to what that run learned.

    When to use: phases on different data, where earlier pieces may not be kept. Suggested: damping 0.001 to 0.1.
    Source: Zenke et al. 2017, equations 3 to 5. An integral below 0 counts as 0, since the penalty would have no minimum.

    Args:
        strength: factor of the penalty, above 0.
        damping: above 0; bounds O of weights that hardly moved.
        every: steps after which a section ends like a phase; None to go by the phases alone.

    Raises:
        ValueError: an option out of its range, a single phase, or weights sharded over devices.
    """

    step_slot: ClassVar[StepSlot] = StepSlot.AVERAGE

    def __init__(self, *, strength: float = 1.0, damping: float = 0.01, every: int | None = None) -> None:
        super().__init__()
        for name, value in (("strength", strength), ("damping", damping)):
            if not value > 0:
                raise ValueError(f"technique.si.{name} is {value}, must be above 0; without it leave si out of technique=[...]")
        check_every(self.name, every)
        self.strength, self.damping, self.every = strength, damping, every
        self.importance: dict[str, Tensor] = {}
        self.centre: dict[str, Tensor] = {}
        self.integral: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}  # the weights with which the section began
        self._before: dict[str, tuple[Tensor, Tensor]] = {}  # weight and gradient before the step
        self._carried = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and is_sharded(trainer):
            raise ValueError(
                f"technique si needs whole weights, but trainer=fsdp shards those of {type(pl_module).__name__}; "
                "choose trainer=ddp"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        for held in (self.importance, self.centre, self.integral, self.start):
            held.update({name: value.to(pl_module.device) for name, value in held.items()})
        check_sections(pl_module, self.name, self.every, carried=self._carried or bool(self.importance))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if self._carried:
            self._consolidate(pl_module)
            self._carried = False
        if not self.start:
            self._begin(pl_module)

    def _weights(self, task: Task) -> dict[str, Tensor]:
        return {name: p for weights in players_of(task).values() for name, p in weights.items()}

    def _begin(self, task: Task) -> None:
        self.start = {name: p.detach().clone() for name, p in self._weights(task).items()}
        self.integral = {name: torch.zeros_like(value) for name, value in self.start.items()}

    # --- the penalty ---

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return quadratic(task, self.name, self.importance, self.centre)

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        names = (term_of(player, self.name, task) for player in task.players)
        return {name: self.strength for name in names if name in losses}

    # --- the path integral ---

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, Task)
        self._before = {}
        for player, weights in players_of(pl_module).items():
            term = term_of(player, self.name, pl_module)
            factor = 2 * pl_module.weights_of([term])[term]
            for name, p in weights.items():
                if p.grad is None or name not in self.integral:
                    continue
                slope = p.grad.detach().clone()
                if name in self.importance:
                    mine = like(slope, self.importance[name])
                    mine -= factor * self.importance[name] * (like(p.detach(), self.centre[name]) - self.centre[name])
                self._before[name] = p.detach().clone(), slope

    def after_step(self, task: Task) -> None:
        weights = dict(task.named_parameters())
        for name, (before, slope) in self._before.items():
            change = weights[name].detach() - before
            self.integral[name] -= torch.where(change != 0, slope * change, 0.0)  # a skipped step may have a slope of NaN
        self._before = {}
        if ends_now(task, self.every):
            self._consolidate(task)
            self._begin(task)

    def on_phase_end(self, task: Task) -> None:
        self._consolidate(task)

    def on_phase_start(self, task: Task) -> None:
        self._begin(task)
        if self.importance and not holds_any(task, self.importance):
            log.warning(f"si: nothing is held in {task.phase.name}, since no weight of earlier phases is trained in it")

    @torch.no_grad()
    def _consolidate(self, task: Task) -> None:
        """Adds the importance that the section that ends has found."""
        weights = dict(task.named_parameters())
        for name, integral in self.integral.items():
            weight = weights[name].detach()
            found = integral.clamp(min=0) / ((like(weight, integral) - self.start[name]).square() + self.damping)
            both = torch.zeros_like(weight)
            like(both, found).add_(found)
            if name in self.importance:
                like(both, self.importance[name]).add_(self.importance[name])
            self.importance[name], self.centre[name] = both, weight.clone()

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "importance": dict(self.importance), "centre": dict(self.centre), "integral": dict(self.integral),
            "start": dict(self.start), "carried": self._carried,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.importance, self.centre = dict(state_dict["importance"]), dict(state_dict["centre"])
        self.integral, self.start = dict(state_dict["integral"]), dict(state_dict["start"])
        self._carried = state_dict["carried"]

    def carried_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        return {**state, "carried": True}
