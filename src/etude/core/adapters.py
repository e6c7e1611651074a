"""Low-rank adapters of linear layers, and checkpoints of tasks that have them.

An adapted layer computes with the weight W + (alpha / r) B A, of which W is frozen. PyTorch's parametrization puts the sum in the
place of the layer's `weight`, so all code that reads that weight, such as the fast path of sampling, sees it.

In a checkpoint the entry `state_dict` holds the sums under the usual names: who loads it needs to know of no adapter. W, A and B
stand in the entry `adapters`, from which training goes on bit for bit.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from etude.core import lightning
from etude.core.any_task import AnyTask

ENTRY = "adapters"  # of a checkpoint
PLACE = "parametrizations.weight"  # where PyTorch keeps the parts of an adapted layer's weight
PARTS = ("original", "0.a", "0.b")  # their names there: W, A, B


class LowRank(nn.Module):
    """Adds (alpha / r) B A to a weight [out, in]; B is 0 at first, so that the sum is the weight.

    Source: Hu et al. 2021 (LoRA), section 4.1. A is drawn from U(-1 / sqrt(in), 1 / sqrt(in)), as in the authors' code; the paper
    says Gaussian.

    Args:
        weight: the weight, of which the shape, the device and the precision are taken.
        rank: r, at least 1. alpha: factor of the update, above 0.
        draws: the random generator of A.
    """

    def __init__(self, weight: Tensor, *, rank: int, alpha: float, draws: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = alpha / rank
        bound = columns**-0.5
        drawn = torch.empty(rank, columns).uniform_(-bound, bound, generator=draws)
        self.a = nn.Parameter(drawn.to(weight))  # [r, in]
        self.b = nn.Parameter(torch.zeros(rows, rank).to(weight))  # [out, r]

    def forward(self, weight: Tensor) -> Tensor:
        return merged(weight, self.a, self.b, scale=self.scale)


def merged(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """Returns weight + scale * b a in the precision of the weight, also within autocast, so that no bit is lost.

    weight [out, in], a [r, in], b [out, r]; scale: alpha / r.
    """
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight, b, a, alpha=scale)


def adapters_of(task: nn.Module) -> dict[str, LowRank]:
    """Returns the adapters of a task by the names of their layers."""
    end = f".{PLACE}.0"
    return {name.removesuffix(end): part for name, part in task.named_modules() if isinstance(part, LowRank)}


def adaptable_layers(task: nn.Module) -> dict[str, nn.Linear]:
    """Returns the linear layers that can be adapted, by name.

    Left out are layers whose weight another module has, too, such as an output that shares the embedding, and those that compute
    their weight in another way already.
    """
    owners: dict[int, int] = {}
    for module in task.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name: layer
        for name, layer in task.named_modules()
        if isinstance(layer, nn.Linear) and not parametrize.is_parametrized(layer) and owners[id(layer.weight)] == 1
    }


def add_adapter(layer: nn.Linear, *, rank: int, alpha: float, draws: torch.Generator) -> None:
    """Adapts a linear layer: its weight becomes W + (alpha / r) B A, with W frozen."""
    layer.weight.requires_grad_(False)
    adapter = LowRank(layer.weight, rank=rank, alpha=alpha, draws=draws)
    parametrize.register_parametrization(layer, "weight", adapter)


# --- checkpoints ---


def merge_adapters(task: AnyTask, checkpoint: dict[str, Any]) -> None:
    """Puts the sums into a checkpoint's `state_dict`, and W, A and B into its entry `adapters`.

    Call it last, since averages replace W, A and B before. Does nothing for a task without adapters.
    """
    if not (adapters := adapters_of(task)):
        return
    weights: dict[str, Tensor] = dict(checkpoint["state_dict"])
    parts: dict[str, Tensor] = {}
    for layer, adapter in adapters.items():
        own = {f"{layer}.{PLACE}.{part}": weights.pop(f"{layer}.{PLACE}.{part}") for part in PARTS}
        with torch.no_grad():
            weights[f"{layer}.weight"] = merged(*own.values(), scale=adapter.scale)
        parts |= own
    checkpoint["state_dict"] = weights
    checkpoint[ENTRY] = {"parts": parts, "scales": {layer: adapter.scale for layer, adapter in adapters.items()}}


def unmerge_adapters(task: AnyTask, checkpoint: dict[str, Any]) -> None:
    """Undoes `merge_adapters` in a checkpoint from which training is about to go on.

    Raises: ValueError if the task has other adapters than the run of the checkpoint, or only one of them has any.
    """
    trainer = lightning.trainer_of(task)
    if trainer is None or trainer.state.fn != "fit":
        return
    scales = {layer: adapter.scale for layer, adapter in adapters_of(task).items()}
    saved: Mapping[str, Any] = checkpoint.get(ENTRY) or {"parts": {}, "scales": {}}
    shapes = {name: value.shape for name, value in task.state_dict().items()}
    fits = saved["scales"] == scales and all(shapes.get(name) == value.shape for name, value in saved["parts"].items())
    if not fits:
        raise ValueError(
            f"its run has {_told(saved['scales'])}, and this one {_told(scales)}; give the technique.lora options of its run, or "
            "start a new run from its weights: weights= instead of ckpt="
        )
    weights = {name: value for name, value in checkpoint["state_dict"].items() if name.removesuffix(".weight") not in scales}
    checkpoint["state_dict"] = {**weights, **saved["parts"]}


def _told(scales: Mapping[str, float]) -> str:
    return f"adapters of {len(scales)} layers (technique=[lora])" if scales else "no adapters"
