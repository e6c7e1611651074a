"""Technique prune: attention heads, hidden units and whole blocks that matter least are switched off during training."""

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from etude.core.optimizer_state import copies_of_weights
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import GradientSlot, StepSlot, Technique
from etude.core.unit_protocols import HasHiddenUnits, HasUnits
from etude.optim.pacing import check_share

log = logging.getLogger(__name__)

RULES = ("gradient", "magnitude")
ALMOST = 1e-9  # so that rounding does not take one off a count


class Prune(Technique):
    """Sets the outgoing weights of a share of all heads, hidden units and blocks to 0, for good, and trains on without them.

    What is pruned is what matters least. With rule=gradient that is I_h = mean over batches of |sum(W_h * dL/dW_h)|, where W_h
    are the outgoing weights of a head or unit h: the sum is the derivative of the loss by a gate on what h adds, so I_h tells to
    first order what removing h would change. With rule=magnitude it is the length of W_h. Heads are compared with all heads and
    units with all units, each score divided by the length of the scores of its layer; of each layer at least one is left. A block
    is scored by the sum over both of its branches, and not divided. Pruning goes in `rounds` equal steps between two shares of
    the run; after each, the network repairs itself while scores are counted anew.

    Pruned weights stay 0 under any optimizer. They are still there, so checkpoints keep their shapes and a step its time. An
    average of the weights (`ema`, `swa`) still holds a part of what they were before.

    When to use: to see how large a network a task needs, or as a strong regularizer on little data. Suggested: rule gradient, up
    to 0.4 of the heads and 0.5 of the units. Not with `packnet`, which promises that weights keep their values.
    Source: Michel et al. 2019, equation 2, with gradients of batches in place of single examples; Molchanov et al. 2017 (the
    division by layer, and pruning in rounds). Han et al. 2015 (magnitude).

    Args:
        heads, units, layers: shares of attention heads, hidden units and residual blocks to prune, in (0, 1); None for none.
        rule: gradient or magnitude.
        start, end: shares of the run at which the first and the last round come, in (0, 1], the first not behind the last.
        rounds: how many rounds, at least 1; a single one comes at `start`.

    Raises:
        ValueError: an option out of its range; in setup, the task lacks what shall be pruned, the length of the run is unknown,
            or weights are sharded over devices.
    """

    gradient_slot: ClassVar[GradientSlot] = GradientSlot.MASK
    step_slot: ClassVar[StepSlot] = StepSlot.WEIGHTS
    sets_weights: ClassVar[bool] = True

    def __init__(
        self,
        *,
        heads: float | None = 0.25,
        units: float | None = 0.25,
        layers: float | None = None,
        rule: str = "gradient",
        start: float = 0.25,
        end: float = 0.75,
        rounds: int = 4,
    ) -> None:
        super().__init__()
        self.shares = {
            kind: share for kind, share in (("layers", layers), ("heads", heads), ("units", units)) if share is not None
        }
        for kind, share in self.shares.items():
            if not 0 < share < 1:
                raise ValueError(f"technique.prune.{kind} is {share}, must be in (0, 1), a share of them, or null for none")
        if not self.shares:
            raise ValueError("technique.prune: heads, units and layers are all null; give a share for one, such as heads=0.25")
        if rule not in RULES:
            raise ValueError(f"technique.prune.rule is {rule!r}, must be one of {', '.join(RULES)}")
        check_share("prune.start", start)
        check_share("prune.end", end)
        if start > end:
            raise ValueError(f"technique.prune.start is {start}, must not be above technique.prune.end, {end}")
        if rounds < 1:
            raise ValueError(f"technique.prune.rounds is {rounds}, must be at least 1")
        self.rule, self.start, self.end, self.rounds = rule, start, end, rounds
        self.done = 0  # rounds
        self.sums: dict[str, Tensor] = {}  # of a layer: for each unit; of a block: a scalar; sums of |derivative by a gate|
        self.pruned: dict[str, Tensor] = {}  # of a layer: bool, for each unit
        self.pruned_blocks: list[str] = []
        self._units: dict[str, HasUnits] = {}
        self._steps = 1

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset(f"prune/{kind}" for kind in self.shares)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, Task)
        who = type(pl_module).__name__
        self._units = _layers_with_units(pl_module)
        trainable = pl_module.phases.trainable(pl_module)  # also what the first phase freezes
        for kind, share in self.shares.items():
            count = len(self._blocks(pl_module, trainable))
            if kind != "layers":
                count = sum(layer.num_units for layer in self._layers(kind, trainable).values())
            if count < 2:
                raise ValueError(
                    f"technique prune needs at least two {kind} that are trained, and {who} has {count or 'none'}; set "
                    f"technique.prune.{kind}=null, or remove prune from technique=[...]"
                )
            if int(share * count + ALMOST) < 1:
                raise ValueError(
                    f"technique prune would prune none of the {count} {kind} of {who}, since technique.prune.{kind} is {share}; "
                    f"set it to 1/{count} or more, or to null"
                )
        if trainer.max_steps < 1:
            raise ValueError(f"technique prune needs the length of the run of {who} in steps; set max_steps")
        if is_sharded(trainer):
            raise ValueError(f"technique prune needs whole weights, but trainer=fsdp shards those of {who}; choose trainer=ddp")
        self._steps = trainer.max_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self._units = _layers_with_units(pl_module)  # a checkpoint may have added some

    def on_phase_start(self, task: Task) -> None:
        self._units = _layers_with_units(task)

    def _layers(self, kind: str, trained: Collection[str] | None = None) -> dict[str, HasUnits]:
        """Returns the layers of heads, or of hidden units, that are trained: now, or those whose weights `trained` names."""
        return {n: layer for n, layer in self._units.items() if layer.unit_name == kind and self._is_trained(n, trained)}

    def _blocks(self, task: Task, trained: Collection[str] | None = None) -> dict[str, list[str]]:
        """Returns the names of the layers with units in each residual block that is trained, by the name of the block."""
        names = {id(module): name for name, module in task.named_modules()}
        found = {names[id(block)]: list(_inside(names[id(block)], self._units)) for block in task.residual_blocks}
        return {block: own for block, own in found.items() if own and all(self._is_trained(name, trained) for name in own)}

    def _is_trained(self, name: str, trained: Collection[str] | None) -> bool:
        return self._units[name].output.weight.requires_grad if trained is None else f"{name}.output.weight" in trained

    # --- scores ---

    @torch.no_grad()
    def transform_gradients(self, task: Task) -> None:
        if self.rule == "gradient" and self.done < self.rounds:
            for name, values in self._derivatives(task).items():
                sizes = values.abs().where(values.isfinite(), 0)  # a guard skips a step whose gradient is not
                self.sums[name] = self.sums[name].to(sizes) + sizes if name in self.sums else sizes
        for name, layer in self._units.items():
            if name in self.pruned and layer.output.weight.grad is not None:
                _columns(layer, layer.output.weight.grad)[:, self.pruned[name].to(layer.output.weight.device)] = 0

    def _derivatives(self, task: Task) -> dict[str, Tensor]:
        """Returns the derivative of the loss by a gate on each unit of each layer, and on each block, by name."""
        found = {
            name: (_columns(layer, layer.output.weight) * _columns(layer, layer.output.weight.grad)).sum((0, 2))
            for name, layer in self._units.items()
            if layer.output.weight.grad is not None
        }
        for block, layers in (self._blocks(task) if "layers" in self.shares else {}).items():
            if own := [found[name].sum() for name in layers if name in found]:
                found[block] = torch.stack(own).sum()
        return found

    def _scores(self, task: Task) -> dict[str, Tensor]:
        """Returns how much each unit of each layer, and each block, matters, by name."""
        if self.rule == "gradient":
            return self.sums
        found = {
            name: _columns(layer, layer.output.weight.detach()).square().sum((0, 2)).sqrt() for name, layer in self._units.items()
        }
        blocks = {block: [found[name].square().sum() for name in layers] for block, layers in self._blocks(task).items()}
        return {**found, **{block: torch.stack(squares).sum().sqrt() for block, squares in blocks.items()}}

    # --- rounds ---

    def after_step(self, task: Task) -> None:
        due = sum(task.steps_trained >= self._at(number) for number in range(self.rounds))
        if due > self.done:
            self.done = due
            self._prune(task)
            self.sums = {}
        self._put_back(task)

    def _at(self, number: int) -> int:
        """Returns the step after which round `number`, from 0, comes."""
        share = self.start + (self.end - self.start) * number / max(1, self.rounds - 1)
        return max(1, round(share * self._steps))

    def _prune(self, task: Task) -> None:
        scores = self._scores(task)
        if "layers" in self.shares:
            blocks = self._blocks(task)
            wanted = min(len(blocks) - 1, self._wanted("layers", len(blocks)))
            order = sorted((name for name in blocks if name in scores), key=lambda name: float(scores[name]))
            left = [name for name in order if name not in self.pruned_blocks]
            gone_before = sum(name in self.pruned_blocks for name in blocks)  # not those that a phase has frozen
            self.pruned_blocks += left[: max(0, wanted - gone_before)]
            for name in (name for block in self.pruned_blocks for name in blocks.get(block, ())):
                self.pruned[name] = torch.ones(self._units[name].num_units, dtype=torch.bool)
        gone = {name for block, layers in self._blocks(task).items() if block in self.pruned_blocks for name in layers}
        for kind in self.shares.keys() - {"layers"}:
            self._prune_units(kind, {n: layer for n, layer in self._layers(kind).items() if n not in gone}, scores)
        told = ", ".join(f"{share:.0%} of the {kind}" for kind, share in self._shares_now(task).items())
        log.info(f"prune: round {self.done} of {self.rounds} at step {task.steps_trained}; {told} are pruned")

    def _wanted(self, kind: str, count: int) -> int:
        return int(self.shares[kind] * count * self.done / self.rounds + ALMOST)

    def _prune_units(self, kind: str, layers: Mapping[str, HasUnits], scores: Mapping[str, Tensor]) -> None:
        """Prunes the heads or units that matter least, up to the share that is due."""
        counts = {name: _computing(layer) for name, layer in layers.items() if name in scores}
        for name in counts:
            self.pruned.setdefault(name, torch.zeros(layers[name].num_units, dtype=torch.bool))
        missing = self._wanted(kind, sum(counts.values())) - sum(int(self.pruned[name].sum()) for name in counts)
        candidates = sorted(
            (float(value), name, unit)
            for name, count in counts.items()
            for unit, value in enumerate((scores[name] / scores[name].norm().clamp(min=1e-30))[:count].tolist())
            if not self.pruned[name][unit]
        )
        for _, name, unit in candidates:
            if missing <= 0:
                break
            if int(self.pruned[name].sum()) + 1 < counts[name]:  # one is left
                self.pruned[name][unit] = True
                missing -= 1

    def _put_back(self, task: Task) -> None:
        """Sets the outgoing weights of what is pruned to 0, in the optimizer's copies, too."""
        if not self.pruned:
            return
        copies = copies_of_weights(task.trainer.optimizers)
        for name, layer in self._units.items():
            if name in self.pruned and self.pruned[name].any():
                for place in (layer.output.weight, *copies.get(layer.output.weight, ())):
                    _columns(layer, place)[:, self.pruned[name].to(place.device)] = 0

    def _shares_now(self, task: Task) -> dict[str, float]:
        found = {}
        for kind in self.shares:
            if kind == "layers":
                blocks = self._blocks(task)
                found[kind] = sum(name in self.pruned_blocks for name in blocks) / max(1, len(blocks))
            else:
                own = [mask for name, mask in self.pruned.items() if name in self._layers(kind)]
                found[kind] = sum(int(mask.sum()) for mask in own) / max(1, sum(len(mask) for mask in own))
        return found

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        if self.is_logged(trainer):
            for kind, share in self._shares_now(pl_module).items():
                pl_module.log(f"prune/{kind}", share)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "sums": self.sums, "pruned": self.pruned, "blocks": list(self.pruned_blocks)}

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"rounds"})  # in which `done` is counted

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done, self.pruned_blocks = state_dict["done"], list(state_dict["blocks"])
        self.sums, self.pruned = dict(state_dict["sums"]), {name: mask.cpu() for name, mask in state_dict["pruned"].items()}


def _layers_with_units(task: Task) -> dict[str, HasUnits]:
    """Returns the layers with units by name, without those whose weight is computed from others."""
    return {
        name: module
        for name, module in task.named_modules()
        if isinstance(module, HasUnits) and isinstance(module.output.weight, nn.Parameter)
    }


def _inside(block: str, layers: Mapping[str, HasUnits]) -> Iterator[str]:
    return (name for name in layers if name.startswith(f"{block}."))


def _columns(layer: HasUnits, weight: Tensor | None) -> Tensor:
    """Returns a view of a weight [out, in] in which each unit has its columns: [out, units, in / units]."""
    assert weight is not None
    return weight.view(weight.shape[0], layer.num_units, -1)


def _computing(layer: HasUnits) -> int:
    """Returns how many units of a layer compute; others wait until they join."""
    return layer.num_units if not isinstance(layer, HasHiddenUnits) or layer.width is None else layer.width
