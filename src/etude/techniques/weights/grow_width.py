"""Technique grow_width: hidden units are added to training a few at a time, each as a copy of one that learns already."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.optimizer_state import copies_of_weights
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import Power, StepSlot, Technique
from etude.core.unit_protocols import HasHiddenUnits
from etude.optim.pacing import check_share

SHARES = (0.25, 0.75)  # a new unit takes over a share of the outgoing weights between these


class GrowWidth(Technique):
    """Trains a part of the hidden units of each feed-forward layer at first, and adds the others over the first `end` of the run.

    All parameters exist from the start, so optimizer, averages and checkpoints keep their shapes. A unit that waits is left out
    of the forward pass: its outgoing weights are 0, its incoming ones those of another unit, its source, at every step. When it
    joins, it takes over a random share, between a quarter and three quarters, of its source's outgoing weights: the function does
    not change, nor does that of an average of the weights. As the shares differ, the two learn different things from then on.

    When to use: wide layers and long runs from random weights, to save time at the beginning. Not with weights=: it would
    overwrite units. `grow_layers` grows depth.
    Source: Chen et al. 2016 (Net2WiderNet), section 2.2, with unequal shares in place of noise on the copies.

    Args:
        start: share of the units that compute at the beginning, at least one unit a layer, in (0, 1].
        end: share of the run after which all do, in (0, 1].
        rounds: in how many steps of equal size the width grows, at least 1.
        seed: of the sources and shares.

    Raises:
        ValueError: an option out of its range; in setup, the task has no layer of hidden units, the length of the run is unknown,
            or weights are sharded over devices.
    """

    claims: ClassVar[frozenset[Power]] = frozenset({Power.INITIAL_WEIGHTS})
    step_slot: ClassVar[StepSlot] = StepSlot.WEIGHTS
    sets_weights: ClassVar[bool] = True

    def __init__(self, *, start: float = 0.5, end: float = 0.5, rounds: int = 4, seed: int = 0) -> None:
        super().__init__(seed=seed)
        check_share("grow_width.start", start)
        check_share("grow_width.end", end)
        if rounds < 1:
            raise ValueError(f"technique.grow_width.rounds is {rounds}, must be at least 1")
        self.start, self.end, self.rounds = start, end, rounds
        self._layers: list[HasHiddenUnits] = []
        self._sources: list[Tensor] = []  # of each layer, for each unit that waits at first
        self._shares: list[Tensor] = []
        self._steps = 1

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"grow_width/active"})

    @torch.no_grad()
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        who = type(pl_module).__name__
        assert isinstance(pl_module, Task)
        found = {name: layer for name, layer in pl_module.named_modules() if isinstance(layer, HasHiddenUnits)}
        trainable = pl_module.phases.trainable(pl_module)  # also those that the first phase freezes
        self._layers = [x for name, x in found.items() if f"{name}.output.weight" in trainable and x.num_units > 1]
        if not self._layers:
            raise ValueError(
                f"technique grow_width needs feed-forward layers that are trained, and {who} has none; remove it from "
                "technique=[...]"
            )
        if trainer.max_steps < 1:
            raise ValueError(f"technique grow_width needs the length of the run of {who} in steps; set max_steps")
        if is_sharded(trainer):
            raise ValueError(
                f"technique grow_width needs whole weights, but trainer=fsdp shards those of {who}; choose trainer=ddp"
            )
        self._steps = trainer.max_steps
        self._sources, self._shares = [], []
        for number, layer in enumerate(self._layers):
            first, draws = self._units(layer, 0), self.generator(number)
            waiting = layer.num_units - first
            self._sources.append(torch.randint(first, (waiting,), generator=draws))
            low, high = SHARES
            self._shares.append(low + (high - low) * torch.rand(waiting, generator=draws))
            layer.width = first
            self._hold(number, {})

    def _units(self, layer: HasHiddenUnits, rounds: int) -> int:
        """Returns how many units of a layer compute after so many rounds."""
        first = max(1, int(self.start * layer.num_units))
        return first + (layer.num_units - first) * rounds // self.rounds

    # --- after each step ---

    def after_step(self, task: Task) -> None:
        copies = copies_of_weights(task.trainer.optimizers)
        due = min(self.rounds, int(task.steps_trained * self.rounds / (self.end * self._steps)))
        for number, layer in enumerate(self._layers):
            if not layer.output.weight.requires_grad:  # frozen by a phase: it grows when it is trained again
                continue
            self._hold(number, copies)
            if (width := self._units(layer, due)) > (layer.width or 0):
                self._join(number, width, copies)

    def _hold(self, number: int, copies: dict[Tensor, list[Tensor]]) -> None:
        """Gives the units of a layer that wait the incoming weights of their sources and outgoing weights of 0."""
        layer = self._layers[number]
        assert layer.width is not None
        sources = self._sources[number][layer.width - self._units(layer, 0) :].to(layer.output.weight.device)
        for weight in (incoming.weight for incoming in layer.incoming):
            for place in (weight, *copies.get(weight, ())):
                place[layer.width :] = place[sources]
        for place in (layer.output.weight, *copies.get(layer.output.weight, ())):
            place[:, layer.width :] = 0

    def _join(self, number: int, width: int, copies: dict[Tensor, list[Tensor]]) -> None:
        """Lets the next units of a layer join, up to `width`."""
        layer = self._layers[number]
        assert layer.width is not None
        for place in (layer.output.weight, *copies.get(layer.output.weight, ())):
            for unit, source, share in self._joining(number, width):
                place[:, unit] = share * place[:, source]
                place[:, source] -= place[:, unit]
        layer.width = width

    def _joining(self, number: int, width: int) -> Iterator[tuple[int, int, float]]:
        """Yields each unit that joins with its source and its share."""
        layer = self._layers[number]
        first = self._units(layer, 0)
        for unit in range(layer.width or first, width):
            yield unit, int(self._sources[number][unit - first]), float(self._shares[number][unit - first])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_logged(trainer):
            pl_module.log("grow_width/active", float(sum(layer.width or 0 for layer in self._layers)))

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {"widths": [layer.width for layer in self._layers]}

    @classmethod
    def kept_options(cls, state: Any) -> frozenset[str]:
        return frozenset({"start", "rounds", "seed"})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for layer, width in zip(self._layers, state_dict["widths"], strict=True):
            layer.width = width
