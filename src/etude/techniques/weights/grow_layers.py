"""Technique grow_layers: residual blocks are added to training one after another, each starting as the identity."""

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from etude.core.task import Task
from etude.core.technique import Power, Technique
from etude.optim.pacing import check_share


class GrowLayers(Technique):
    """Trains only a part of the residual blocks at first and adds the others, evenly over the first `end` of the run.

    All parameters exist from the start, so optimizer, averages and checkpoints keep their shapes. The last layers of an inactive
    block are set to 0, which makes it the identity, in samples and checkpoints, too. It is skipped in the forward pass, its
    gradients are None and its optimizer state does not change. When the block becomes active, the function of the network
    therefore does not change suddenly (Gong et al. 2019 copy the block below instead). If there are several equal networks, such
    as the generators of a GAN, all grow in the same way.

    When to use: deep networks and long runs from random weights, to save time at the beginning. Not with weights=: it would
    overwrite the last layers of the blocks.
    Source: Chen et al. 2016 (Net2Net: growing without changing the function); Gong et al. 2019 (progressive stacking).

    Args:
        start: share of the blocks that are active at the beginning, at least one block, in (0, 1].
        end: share of the run after which all are active, in (0, 1].

    Raises:
        ValueError: a share is out of its range; in setup, the task has fewer than two residual blocks.
    """

    claims: ClassVar[frozenset[Power]] = frozenset({Power.INITIAL_WEIGHTS})

    def __init__(self, *, start: float = 0.5, end: float = 0.5) -> None:
        super().__init__()
        check_share("grow_layers.start", start)
        check_share("grow_layers.end", end)
        self.start, self.end = start, end
        self.active = 0
        self._networks: list[list[nn.Module]] = []
        self._span = 1.0

    @property
    def acts_on_layers(self) -> bool:
        return True

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"grow_layers/active"})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, Task)
        kind = type(pl_module).__name__
        self._networks = _networks(pl_module)
        if not self._networks or len(self._networks[0]) < 2:
            raise ValueError(
                f"technique grow_layers needs networks of at least two residual blocks, {kind} has "
                f"{len(self._networks[0]) if self._networks else 'none'}; remove it from technique=[...]"
            )
        if trainer.max_steps < 1:
            raise ValueError("technique grow_layers needs the length of the run; set max_steps")
        self._span = max(1.0, self.end * trainer.max_steps * trainer.accumulate_grad_batches)
        for blocks in self._networks:
            for block in blocks[max(1, int(self.start * len(blocks))) :]:
                _make_identity(block)
            for number, block in enumerate(blocks):
                block.forward = _skipped_until_active(block.forward, self, number)

    def _active_blocks(self, task: Task) -> int:
        count = len(self._networks[0])
        first = max(1, int(self.start * count))
        return min(count, first + int((count - first) * task.batches_trained / self._span))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, Task)
        self.active = self._active_blocks(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_logged(trainer):
            pl_module.log("grow_layers/active", float(self.active))

    def state_dict(self) -> dict[str, Any]:
        return {"active": self.active}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.active = state_dict["active"]


def _networks(task: Task) -> list[list[nn.Module]]:
    """Returns the residual blocks of each network; the blocks of one network are in the same ModuleList."""
    names = {id(module): name for name, module in task.named_modules()}
    found: dict[str, list[nn.Module]] = {}
    for block in task.residual_blocks:
        found.setdefault(names[id(block)].rpartition(".")[0], []).append(block)
    return list(found.values())


def _skipped_until_active(forward: Any, technique: GrowLayers, number: int) -> Any:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x if number >= technique.active > 0 else forward(x, *args, **kwargs)

    return run


@torch.no_grad()
def _make_identity(block: nn.Module) -> None:
    """Sets the last layer of each branch of a residual block to 0, so that the block returns its input."""
    last = [
        m
        for name, m in block.named_modules()
        if name.rpartition(".")[2] in ("output", "project") and "weight" in dict(m.named_parameters())
    ]
    if not last:
        raise ValueError(f"technique grow_layers: {type(block).__name__} has no layer named output or project to set to 0")
    for layer in last:
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
