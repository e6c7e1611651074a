"""Technique bandit: a multi-armed bandit that chooses pieces of which the loss decreases fastest."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.protocols import PieceTable, PredictsTokens
from etude.core.task import Task
from etude.core.technique import Technique


class Bandit(Technique):
    """Divides the pieces into arms (bins of difficulty, or genres) and draws more of the arms on which the model improves.

    After every window of `every` batches, each arm in it gets a reward: the decrease of its mean loss per token since the arm
    was last seen, rescaled to [-1, 1] by the 20th and 80th percentile of all rewards so far (Graves et al. 2017, section 4).
    Then the weights are updated by Exp3.S (Auer et al. 2002, section 8; equation 6 of Graves et al.):

        w_k <- log((1 - share) e^(w_k + rate r_k) + share / (K - 1) sum_{j != k} e^(w_j + rate r_j))
        p_k = (1 - explore) e^(w_k) / sum_j e^(w_j) + explore / K

    A window holds several arms, so rewards are not divided by their probabilities. A piece of arm k is admitted with a
    probability proportional to p_k / (share of the pieces in k), where the largest is 1. The share of an arm among the training
    tokens is then about p_k. Batches that loader workers have drawn ahead are not affected.

    When to use: data of several genres or difficulties, some of which are already learned or can't be learned.

    Args:
        arms: difficulty (mean rank of the complexity features) or genre. num_arms: number of bins of difficulty, at least 2.
        every: batches of a window, at least 1. rate: learning rate of the weights, above 0.
        explore: probability of a uniform choice of the arm, in (0, 1]. share: of the weights that is distributed to the other
            arms at each update, in [0, 1).

    Raises:
        ValueError: an option is out of its range; in setup, the data have no table of pieces, the task does not predict tokens,
            or there are fewer than two arms.
    """

    def __init__(
        self,
        *,
        arms: str = "difficulty",
        num_arms: int = 5,
        every: int = 10,
        rate: float = 0.3,
        explore: float = 0.2,
        share: float = 0.01,
    ) -> None:
        super().__init__()
        if arms not in ("difficulty", "genre"):
            raise ValueError(f"technique.bandit.arms is {arms!r}; choose difficulty or genre")
        if num_arms < 2 or every < 1 or rate <= 0:
            raise ValueError(
                f"technique.bandit: num_arms={num_arms} (at least 2), every={every} (at least 1), rate={rate} (above 0)"
            )
        if not 0 < explore <= 1 or not 0 <= share < 1:
            raise ValueError(f"technique.bandit.explore is {explore}, must be in (0, 1], and share {share}, in [0, 1)")
        self.arms, self.num_arms, self.every = arms, num_arms, every
        self.rate, self.explore, self.share = rate, explore, share
        self.names: Any = ()  # of the arms; set in setup
        self.weights: list[float] = []
        self.before: list[float] = []  # mean loss of each arm when it was last seen; NaN if never
        self.rewards: list[float] = []
        self.changes: list[list[Any]] = []  # [first batch, probabilities of the arms], in order
        self._sums = torch.zeros(2, 0, dtype=torch.float64)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, PieceTable) or not isinstance(pl_module, PredictsTokens):
            raise ValueError(
                f"technique bandit chooses pieces by the losses of their tokens, but {type(pl_module).__name__} predicts none, "
                f"or {type(data).__name__} has no table of pieces; remove it from technique=[...]"
            )
        columns = data.pieces()
        if self.arms == "genre":
            self.names, self._arm = np.unique(columns["genre"].astype(str), return_inverse=True)
        else:
            features = [v for name, v in columns.items() if name.startswith("complexity_")]
            rank = np.mean([np.nan_to_num(v).argsort().argsort() for v in features], axis=0).argsort().argsort()
            count = min(self.num_arms, len(rank))
            self._arm, self.names = rank * count // len(rank), np.array([f"difficulty_{i + 1}" for i in range(count)])
        if len(self.names) < 2:
            raise ValueError(
                f"technique bandit has only one arm for this {type(pl_module).__name__}, {self.names.tolist()}; choose "
                "technique.bandit.arms=difficulty, or more genres"
            )
        self._lookahead = data.lookahead
        size = len(self.names)
        if not self.weights:
            self.weights, self.before = [0.0] * size, [float("nan")] * size
            self.changes = [[0, [1 / size] * size]]
            self._sums = torch.zeros(2, size, dtype=torch.float64)
        self._pieces = np.bincount(self._arm, minlength=size) / len(self._arm)
        data.admit("bandit", self.rule)

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset(f"bandit/{name}" for name in self.names)

    def rule(self, rows: np.ndarray, draw: int) -> np.ndarray:
        """Returns the probability with which each of `rows` (of the manifest) is admitted to batch number `draw`."""
        chosen = next(probabilities for first, probabilities in reversed(self.changes) if first <= draw)
        density = np.asarray(chosen) / self._pieces
        admitted: np.ndarray = (density / density.max())[self._arm[rows]]
        return admitted

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nll = task.trace["token_nll"].detach()
        counted = (batch["targets"] != -100) & (batch["piece"] >= 0) & nll.isfinite()
        arm = torch.from_numpy(self._arm)[batch["piece"][counted].cpu()]
        nll = nll[counted].double().cpu()
        self._sums[0].index_add_(0, arm, nll)
        self._sums[1].index_add_(0, arm, torch.ones_like(nll))
        return {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        now = pl_module.batches_trained
        if now % self.every == 0:
            sums = self._sums
            if trainer.world_size > 1:  # all ranks choose alike
                sums = trainer.strategy.reduce(sums.to(pl_module.device), reduce_op="sum").cpu()
            self._update(now, sums)
        if self.is_logged(trainer):
            pl_module.log_dict({f"bandit/{name}": share for name, share in zip(self.names, self.changes[-1][1], strict=True)})

    def _update(self, now: int, sums: Tensor) -> None:
        progress = [0.0] * len(self.weights)
        for arm, (total, count) in enumerate(sums.T.tolist()):
            if not count:
                continue
            loss = total / count
            if self.before[arm] == self.before[arm]:
                progress[arm] = self.before[arm] - loss
                self.rewards.append(progress[arm])
            self.before[arm] = loss
        self._sums.zero_()
        self.rewards = self.rewards[-1000:]
        if not self.rewards:
            return
        low, high = np.quantile(self.rewards, [0.2, 0.8])
        rewards = [float(np.clip(2 * (r - low) / max(high - low, 1e-9) - 1, -1, 1)) if r else 0.0 for r in progress]
        self.weights = exp3s(self.weights, rewards, rate=self.rate, share=self.share)
        current = max(i for i, (first, _) in enumerate(self.changes) if first <= now)
        self.changes = [*self.changes[current:], [now + self._lookahead, probabilities(self.weights, explore=self.explore)]]

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights, "before": self.before, "rewards": self.rewards, "changes": self.changes, "sums": self._sums,
        }  # fmt: skip

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"arms", "num_arms"})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights, self.before, self.rewards = (list(state_dict[name]) for name in ("weights", "before", "rewards"))
        self.changes = [[first, list(chosen)] for first, chosen in state_dict["changes"]]
        self._sums = state_dict["sums"]


def exp3s(weights: list[float], rewards: list[float], *, rate: float, share: float) -> list[float]:
    """Returns the log weights after one update of Exp3.S, shifted by a constant so that the largest is 0."""
    grown = np.asarray(weights) + rate * np.asarray(rewards)
    exponential = np.exp(grown - grown.max())
    others = (exponential.sum() - exponential) * share / (len(weights) - 1)
    updated = np.log((1 - share) * exponential + others)
    return [float(w) for w in updated - updated.max()]


def probabilities(weights: list[float], *, explore: float) -> list[float]:
    """Returns the probability of each arm from the log weights."""
    exponential = np.exp(np.asarray(weights) - max(weights))
    return [float(p) for p in (1 - explore) * exponential / exponential.sum() + explore / len(weights)]
