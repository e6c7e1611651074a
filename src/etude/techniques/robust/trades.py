"""Technique trades: predictions must stay the same under the change of the inputs that moves them most."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.attacks.budget import check_snr, within_snr
from etude.attacks.gradient import pgd
from etude.core.batch import Batch
from etude.core.continuous import ContinuousInput, check_inputs, predictions
from etude.core.task import Task
from etude.core.technique import Technique
from etude.losses.divergence import mean_kl


class Trades(Technique):
    """Adds `trades` = KL(prediction of the inputs || prediction of changed inputs), a mean over predictions in nats.

    The change maximises that divergence by PGD within a signal-to-noise ratio. The task's own terms stay those of the unchanged
    inputs; `weight` trades their accuracy for robustness. Both predictions share one dropout mask, so without a change (snr_db
    .inf) the term and its gradient are 0. A step takes about 2 + steps passes more.

    When to use: as `adversarial_training`, where clean accuracy matters. Suggested: weight 6.

    Args:
        weight: beta, 1 / lambda of the paper, above 0.
        snr_db: least signal-to-noise ratio of the change in each example, in dB, at least 0; .inf allows none. norm: linf or
            l2, see `within_snr`.
        steps: of PGD, at least 1. step_size: as a share of the budget, above 0; None for 2.5 / steps.
        seed: of the random starts.

    Raises:
        ValueError: an option out of its range; in setup, a task without continuous inputs of one network, or without
            predictions.

    Source: Zhang et al. 2019, equation 5 and algorithm 1. Deviation: PGD starts anywhere in the budget, and dropout is on in it.
    """

    def __init__(
        self,
        *,
        weight: float = 6.0,
        snr_db: float = 40.0,
        norm: str = "linf",
        steps: int = 5,
        step_size: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        check_snr(snr_db, "technique.trades.snr_db")
        if norm not in ("linf", "l2"):
            raise ValueError(f"technique.trades.norm is {norm!r}; choose linf or l2")
        if not weight > 0:
            raise ValueError(f"technique.trades.weight is {weight}, must be above 0; 6 is a good start")
        if steps < 1 or (step_size is not None and step_size <= 0):
            raise ValueError(f"technique.trades.steps is {steps}, must be at least 1, and step_size {step_size}, above 0 or null")
        self.weight, self.snr_db, self.norm, self.steps, self.step_size = weight, snr_db, norm, steps, step_size

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            check_inputs("trades", pl_module, predicts=True)

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = ContinuousInput(task, batch)
        budget = within_snr(given.values, self.snr_db, norm=self.norm, counted=given.counted)
        said = predictions(task, batch)
        fixed = {name: logits.detach() for name, logits in said.items()}
        draws = self.generator(task.batches_trained * 65_536 + task.global_rank, task.device)

        def divergence_of(values: Tensor) -> Tensor:
            return mean_kl(fixed, predictions(task, given.replaced(values)))

        moved = pgd(divergence_of, given.values, budget, steps=self.steps, step_size=self.step_size, generator=draws)
        return {"trades": mean_kl(said, predictions(task, given.changed(torch.sub(moved, given.values))))}

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        return {"trades": self.weight}

    def state_dict(self) -> dict[str, Any]:
        return {}
