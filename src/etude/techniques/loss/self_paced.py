"""Technique self_paced: weights the pieces of a batch by their own loss, so that easy pieces count more."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.protocols import PredictsTokens
from etude.core.task import Task
from etude.core.technique import Technique
from etude.losses.self_paced import hard_weights, linear_weights, superloss_weights
from etude.optim.pacing import check_share

METHODS = ("superloss", "linear", "hard")


class SelfPaced(Technique):
    """Gives each piece of a batch a weight w that depends on its mean loss.

    It adds the term `self_paced` = mean(w nll) - mean(nll) over counted tokens. Its sum with the task's term `nll` is the
    weighted loss, if both have the same weight. No gradient flows through w. The weights of `linear` and `hard` are divided by
    their mean, so that the gradient keeps its size.

    - superloss: w = exp(-W((l - tau) / (2 lambda))), with the Lambert W function and tau the running mean of the losses.
    - hard: 1 for pieces whose loss is among the lowest share c(t) of recent losses, 0 for the others.
    - linear: 1 - loss / threshold, with the threshold below which a share c(t) of recent losses lies; at least 0.

    c(t) grows linearly from `start` to 1 over the first `end` of the run; superloss does not use it.

    When to use: data with errors or unsuitable pieces. Suggested: superloss, strength 1.
    Source: see `etude.losses.self_paced`.

    Args:
        method: superloss, linear or hard.
        start: c at the beginning, in (0, 1]. end: share of the run after which c is 1, in (0, 1].
        strength: lambda of superloss, above 0. momentum: of its running mean, in [0, 1).
        history: number of recent losses that determine the threshold, at least 2.

    Raises:
        ValueError: an option is out of its range; in setup, the task does not predict tokens.
    """

    def __init__(
        self,
        *,
        method: str = "superloss",
        start: float = 0.5,
        end: float = 0.5,
        strength: float = 1.0,
        momentum: float = 0.9,
        history: int = 256,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"technique.self_paced.method is {method!r}; choose from {', '.join(METHODS)}")
        check_share("self_paced.start", start)
        check_share("self_paced.end", end)
        if strength <= 0 or not 0 <= momentum < 1 or history < 2:
            raise ValueError(
                f"technique.self_paced: strength is {strength}, must be above 0; momentum {momentum}, in [0, 1); history "
                f"{history}, at least 2"
            )
        self.method, self.start, self.end, self.strength = method, start, end, strength
        self.momentum, self.history = momentum, history
        self.usual = float("nan")
        self._losses = torch.empty(0)
        self._share = 1.0
        self._span = 1.0
        self._spread = torch.tensor(0.0)

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"self_paced/weight_spread"})

    @property
    def corrections(self) -> dict[str, str]:
        return {"self_paced": "nll"}  # the weighted loss minus the loss

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, PredictsTokens):
            raise ValueError(
                f"technique self_paced needs tokens, {type(pl_module).__name__} has none; remove it from technique=[...]"
            )
        if trainer.max_steps < 1:
            raise ValueError("technique self_paced needs the length of the run; set max_steps")
        self._span = max(1.0, self.end * trainer.max_steps * trainer.accumulate_grad_batches)

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        counted = batch["targets"] != -100
        nll_n = task.trace["token_nll"][counted].float()
        row = torch.arange(len(counted), device=counted.device)[:, None].expand_as(counted)[counted]
        piece = row * (batch["documents"].shape[1] + 1) + batch["documents"][counted].long()
        _, place_n = piece.unique(return_inverse=True)
        size = place_n.bincount()
        loss = torch.zeros(len(size), device=nll_n.device).index_add_(0, place_n, nll_n.detach()) / size
        weight_n = self._weights(loss, task)[place_n]
        if self.method != "superloss":
            weight_n = weight_n / weight_n.mean().clamp(min=1e-6)
        self._spread = weight_n.std(correction=0)
        if "token_weight" in task.trace:  # mixtures count only a part of each token's own loss
            return {"self_paced": ((weight_n - 1) * task.trace["token_weight"][counted] * nll_n).sum()}
        return {"self_paced": ((weight_n - 1) * nll_n).mean()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_logged(trainer):
            pl_module.log("self_paced/weight_spread", self._spread)

    def _weights(self, loss: Tensor, task: Task) -> Tensor:
        finite = loss[loss.isfinite()]
        if len(finite) == 0:
            return torch.ones_like(loss)
        mean = float(finite.mean())
        self.usual = mean if self.usual != self.usual else self.momentum * self.usual + (1 - self.momentum) * mean
        if self.method == "superloss":
            return superloss_weights(loss, self.usual, self.strength)
        self._losses = torch.cat([self._losses, finite.cpu() - self.usual])[-self.history :]
        share = min(1.0, self.start + (1 - self.start) * task.batches_trained / self._span)
        if share >= 1:
            return torch.ones_like(loss)
        # relative to the present mean, since older losses were higher; the easiest piece always counts
        threshold = max(self.usual + float(self._losses.quantile(share)), float(finite.min()) + 1e-6)
        return hard_weights(loss, threshold) if self.method == "hard" else linear_weights(loss, threshold)

    def state_dict(self) -> dict[str, Any]:
        return {"usual": self.usual, "losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.usual, self._losses = state_dict["usual"], state_dict["losses"]
