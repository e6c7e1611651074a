"""Technique rdrop: two passes with different dropout must predict the same."""

from collections.abc import Mapping

import pytorch_lightning as pl
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core.batch import Batch
from etude.core.protocols import PredictsTokens
from etude.core.task import Task
from etude.core.technique import Technique


class RDrop(Technique):
    """Passes each batch through the network a second time, with other dropout, and adds what the two predictions differ by.

    It adds two terms: `rdrop` = weight * (KL(p1 || p2) + KL(p2 || p1)) / 2, a mean over counted tokens in nats, and
    `rdrop_second` = (nll of p2 - nll of p1) / 2, so that its sum with the task's `nll` is the mean of both passes. A step takes
    about twice as long.

    When to use: a model that overfits little data, with dropout of 0.2 or more. Suggested: weight 1.
    Source: Liang et al. 2021 (R-Drop), eq. 3 and 4.

    Args:
        weight: of the divergence, above 0.

    Raises:
        ValueError: weight is not above 0; in setup, the task does not predict tokens, or its network has no dropout.
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(
                f"technique.rdrop.weight is {weight}, must be above 0; without the term remove it from technique=[...]"
            )
        self.weight = weight

    @property
    def corrections(self) -> dict[str, str]:
        return {"rdrop_second": "nll"}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        kind = type(pl_module).__name__
        predicts = isinstance(pl_module, PredictsTokens)
        if not isinstance(pl_module, Task) or not predicts or type(pl_module).recompute_trace is Task.recompute_trace:
            raise ValueError(f"technique rdrop needs a language model, this is a {kind}; remove it from technique=[...]")
        if not any(drops(network) for network in pl_module.children()):  # the task's label_dropout is the data's
            raise ValueError(
                "technique rdrop compares two passes with different dropout, but this network has none; set "
                "model.dropout=0.2, or remove it from technique=[...]"
            )

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        again = task.recompute_trace(batch, task.trace)
        first, second = task.trace["logits"], again["logits"]
        counted = batch["targets"] != -100
        one, two = (logits[counted].float().log_softmax(-1) for logits in (first, second))
        targets = batch["targets"][counted]
        count = counted.sum().clamp(min=1)
        divergence = ((one.exp() - two.exp()) * (one - two)).sum() / (2 * count)
        second_nll = again.get("nll", F.nll_loss(two, targets, reduction="sum") / count)  # given for mixtures of two pieces
        return {"rdrop": self.weight * divergence, "rdrop_second": (second_nll - losses["nll"]) / 2}


def drops(module: nn.Module) -> bool:
    """Returns whether any part of a network drops something in training."""
    parts = (value for part in module.modules() for name, value in vars(part).items() if name.endswith("dropout"))
    return any(isinstance(value, float | int) and value > 0 for value in parts) or any(
        isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules()
    )
