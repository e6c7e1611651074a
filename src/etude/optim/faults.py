"""Finds losses and gradients that are not finite (NaN or infinite), for the techniques that guard against them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from etude.core.task import Task
    from etude.core.technique import Technique


def is_finite(task: "Task", losses: Sequence[Tensor], guard: "Technique") -> bool:
    """Returns whether the losses and the norms of all gradients are finite; needs one transfer from the device.

    The norms are those measured by clipping. They are computed again if a technique other than `guard` has changed gradients
    after clipping. A gradient whose norm overflows counts as not finite.
    """
    norms = list(task.gradient_norms.values())
    if task.composition.changes_clipped_gradients(guard):
        gradients = [local_shard(p.grad) for p in task.parameters() if p.grad is not None]
        norms += [nn.utils.get_total_norm(gradients)] if gradients else []
    values = [*norms, *losses]
    return not values or bool(torch.isfinite(torch.stack([x.float().to(values[0].device) for x in values])).all())


def nonfinite_terms(terms: Iterable[dict[str, Tensor]]) -> str:
    """Returns the names of the loss terms that are not finite in at least one of the batches, for messages."""
    names = sorted({name for batch in terms for name, value in batch.items() if not torch.isfinite(value)})
    return ", ".join(names) or "all finite"


def nonfinite_module(task: pl.LightningModule) -> str:
    """Returns the name of the module in which values that are not finite probably began, for messages.

    That is the first module with a parameter that is not finite. If there is none, it is the last module, in the order of
    definition, with a gradient that is not finite: such gradients spread from the loss backwards.
    """
    parameters = _nonfinite_names(task.named_parameters())
    gradients = _nonfinite_names((name, p.grad) for name, p in task.named_parameters())
    if parameters:
        return f"{parameters[0].rpartition('.')[0]} (its {parameters[0].rpartition('.')[2]} itself)"
    return gradients[-1].rpartition(".")[0] if gradients else "none (the gradients are finite)"


def local_shard(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a sharded tensor (trainer=fsdp), otherwise the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _nonfinite_names(values: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    return [name for name, value in values if value is not None and not torch.isfinite(local_shard(value)).all()]
