"""Technique mixup: trains on weighted means of two examples, with both labels or both next tokens."""

import math
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.alone import alone, owners
from etude.core.batch import Batch
from etude.core.class_protocols import MixesNextTokens, MixesTargets
from etude.core.continuous import check_inputs
from etude.core.task import Task
from etude.core.technique import BatchSlot, Technique


class Mixup(Technique):
    """Replaces each example by share * own + (1 - share) * another one of the batch; its loss is the same mean of both losses.

    share ~ Beta(alpha, alpha), one for each batch. Mels are added up as they are. Of scores the embeddings are: each document
    gets a row of its own; a shorter one ends in zeros, and features of tokens (such as the place in the bar) are those of the
    own document as long as it lasts. What a grader is to tell (defects of frames, quality) is mixed likewise.

    Of a language model, whose rows stay packed, the embeddings of each document are mixed with those of another one from its
    beginning on, as far as both last; the loss is the same mean of the losses of both next tokens. Where a document lasts longer
    than its partner, or has none, it is trained on as it is.

    When to use: few labelled examples. Suggested: alpha 0.2; more of it for networks that overfit.

    Args:
        alpha: of the beta distribution, above 0. share: a fixed share instead, in [0, 1]; 1 mixes nothing. None: drawn.
        seed: of the shares and the pairs.

    Raises:
        ValueError: an option out of its range; in setup, a task that is neither a classifier nor a language model, or whose
            network has no continuous inputs.

    Source: Zhang et al. 2018, section 2; Guo, Mao and Zhang 2019 (wordMixup, for embeddings); Guo, Kim and Rush 2020,
    with a share for the whole sequence instead of one for each token (next tokens).
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.MIX

    def __init__(self, *, alpha: float = 0.2, share: float | None = None, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if not alpha > 0:
            raise ValueError(f"technique.mixup.alpha is {alpha}, must be above 0; 0.2 is a good start")
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"technique.mixup.share is {share}, must be in [0, 1], or null to draw it")
        self.alpha, self.share = alpha, share

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_inputs("mixup", pl_module)
        if not isinstance(pl_module, MixesTargets | MixesNextTokens):
            raise ValueError(
                f"technique mixup is for classifiers and language models, and {type(pl_module).__name__} is neither; remove it "
                "from technique=[...]"
            )

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        draws = self.generator(task.batches_trained * 65_536 + task.global_rank)
        share = beta(self.alpha, draws) if self.share is None else self.share
        if isinstance(task, MixesNextTokens):
            return _mixed_music(task, batch, share, draws)
        assert isinstance(task, MixesTargets)
        batch = alone(task, batch)
        axis = task.example_axis or 0
        ((name, own),) = task.inputs(batch).items()
        count = own.shape[axis]
        order = torch.randperm(count, generator=draws).to(own.device)
        if "documents" in batch:
            real = (batch["documents"] >= 0)[..., None]
            own = own * real
        mixed = share * own + (1 - share) * own.index_select(axis, order)
        given = batch if "documents" not in batch or share == 1 else _joined(batch, order)
        targets = task.mixed_targets(given, order, torch.full((count,), share, device=own.device))
        return {**task.with_inputs(given, {name: mixed}), **targets}

    def state_dict(self) -> dict[str, Any]:
        return {}


def _mixed_music(task: MixesNextTokens, batch: Batch, share: float, draws: torch.Generator) -> Batch:
    """Returns packed rows in which each document is mixed with another one, token by token from the beginning of both."""
    ((name, own_btd),) = task.inputs(batch).items()
    owner = owners(batch["documents"])
    count = int(owner.max()) + 1
    place = torch.arange(owner.numel(), device=owner.device).view_as(owner)
    lengths = torch.bincount(owner[owner >= 0], minlength=count)
    starts = torch.full((count,), owner.numel(), device=owner.device)
    starts = starts.scatter_reduce(0, owner[owner >= 0], place[owner >= 0], "amin")
    order = torch.randperm(count, generator=draws).to(owner.device)
    known = owner.clamp(min=0)
    since = place - starts[known]
    mixed = (owner >= 0) & (since < lengths[order][known])
    partner = torch.where(mixed, starts[order][known] + since, place)
    share_bt = torch.where(mixed, share, 1.0)
    others = torch.where(mixed, batch["targets"].flatten()[partner], -100)
    share_bt1 = share_bt[..., None].to(own_btd)
    mixed_btd = share_bt1 * own_btd + (1 - share_bt1) * own_btd.flatten(0, 1)[partner]
    return {**task.with_inputs(batch, {name: mixed_btd}), **task.mixed_next_tokens(others, share_bt)}


def _joined(batch: Batch, order: Tensor) -> Batch:
    """Returns the batch whose documents reach to the end of the longer one of each pair; what follows the own end is the other's.

    Labels stay the own document's.
    """
    own = batch["documents"] >= 0
    other = own[order]
    found: Batch = {}
    for name, value in batch.items():
        if name.startswith("label_") or name == "piece":
            first = value[:, :1].expand_as(value)
            found[name] = torch.where(own | other, first, -1)
        else:
            where = own.reshape(*own.shape, *[1] * (value.ndim - 2))
            found[name] = torch.where(where, value, value[order])
    return found


def beta(alpha: float, draws: torch.Generator) -> float:
    """Returns a number drawn from Beta(alpha, alpha), by two gamma variables of Marsaglia and Tsang's method.

    Source: Marsaglia and Tsang 2000; for alpha below 1 by their section 6.
    """
    one, two = gamma(alpha, draws), gamma(alpha, draws)
    return one / (one + two) if one + two > 0 else 0.5


def gamma(alpha: float, draws: torch.Generator) -> float:
    """Returns a number drawn from Gamma(alpha, 1)."""

    def uniform() -> float:
        return torch.rand((), generator=draws, dtype=torch.float64).item()

    if alpha < 1:
        return gamma(alpha + 1, draws) * math.pow(uniform(), 1 / alpha)
    d = alpha - 1 / 3
    while True:
        x = float(torch.randn((), generator=draws, dtype=torch.float64))
        v = (1 + x / math.sqrt(9 * d)) ** 3
        if v > 0 and uniform() < 1 - 0.0331 * x**4:
            return d * v
