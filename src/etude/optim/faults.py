"""Where something that is not finite began, for those who guard a run against it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from etude.core.task import Task
    from etude.core.technique import Technique


def is_finite(task: "Task", losses: Sequence[Tensor], guard: "Technique") -> bool:
    """Whether the losses and the norms of all gradients are finite; one transfer from the device.

    The norms are those that clipping took, unless a technique other than `guard` has changed gradients after it. A gradient
    whose norm overflows is as useless as one that is infinite.
    """
    norms = list(task.gradient_norms.values())
    if task.composition.changes_clipped_gradients(guard):
        gradients = [local(p.grad) for p in task.parameters() if p.grad is not None]
        norms += [nn.utils.get_total_norm(gradients)] if gradients else []
    values = [*norms, *losses]
    return not values or bool(torch.isfinite(torch.stack([x.float().to(values[0].device) for x in values])).all())


def nonfinite_terms(terms: Iterable[dict[str, Tensor]]) -> str:
    """Names of the loss terms that are not finite in any of the batches, for a report."""
    names = sorted({name for batch in terms for name, value in batch.items() if not torch.isfinite(value)})
    return ", ".join(names) or "all finite"


def nonfinite_module(task: pl.LightningModule) -> str:
    """Where it seems to have begun: a module with a bad parameter, else the one nearest the loss with a bad gradient.

    Of the parameters that have gone wrong themselves the first, otherwise, as what is not finite spreads from the loss
    backwards, the last one, in the order of the module's definition, whose gradient has.
    """
    parameters = _names(task.named_parameters())
    gradients = _names((name, p.grad) for name, p in task.named_parameters())
    if parameters:
        return f"{parameters[0].rpartition('.')[0]} (its {parameters[0].rpartition('.')[2]} itself)"
    return gradients[-1].rpartition(".")[0] if gradients else "none (the gradients are finite)"


def local(tensor: Tensor) -> Tensor:
    """A tensor's own part where the strategy splits it (trainer=fsdp), else the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _names(values: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    return [name for name, value in values if value is not None and not torch.isfinite(local(value)).all()]
