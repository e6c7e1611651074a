"""Technique adversarial_training: trains on inputs that are changed, within a budget, so that the loss rises."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.attacks.budget import Budget, check_snr, within_snr
from etude.attacks.gradient import loss_and_gradient, pgd
from etude.core.batch import Batch
from etude.core.continuous import ContinuousInput, check_inputs, predictions
from etude.core.task import Task
from etude.core.technique import BatchSlot, Power, Technique
from etude.losses.divergence import mean_kl

STEPS = {"pgd": 5, "freelb": 3, "vat": 1}
STEP_SIZES = {"pgd": 0.5, "freelb": 0.5, "vat": 0.1}
MOST_STEPS_TIMES_BUDGET = 2.5  # pgd: steps * step_size where step_size is null


class AdversarialTraining(Technique):
    """Trains on inputs (mels, embeddings) after a change that raises the loss and stays within a signal-to-noise ratio.

    - pgd: each batch is replaced by its attacked version, except for a share `clean` of the rows (Madry et al. 2018, eq. 2.1).
      A step takes 1 + steps forward and backward passes.
    - freelb: the loss is its mean at the points of an ascent of `steps` steps, the gradients of which are those of the same
      passes (Zhu et al. 2020, algorithm 1); for embeddings. `steps` passes; needs their memory at once.
    - vat: adds `vat` = KL(prediction || prediction after the change), where the change is the one that moves the prediction
      most, by `steps` power iterations; labels are not used, so unlabelled music helps, too (Miyato et al. 2018, eq. 5 to 9).

    The attack runs in training mode; dropout masks are those of the step, state such as BatchNorm's is left alone.

    When to use: classifiers that must withstand small changes of their inputs; `evaluate.py robustness=ensemble` measures it.
    Clean accuracy often falls. Suggested: pgd at the ratio that is to be withstood.

    Args:
        method: pgd, freelb or vat.
        snr_db: least signal-to-noise ratio of the change in each example, in dB, at least 0; .inf allows none. norm: linf or
            l2, see `within_snr`.
        steps: of the ascent, at least 1; None for 5 (pgd), 3 (freelb), 1 (vat).
        step_size: as a share of the budget, above 0; None for 2.5 / steps (pgd), 0.5 (freelb), 0.1 (vat: the finite difference).
        clean: pgd: share of rows that stay as they are, in [0, 1); None for 0.
        weight: vat: of its term, above 0; None for 1.
        seed: of the random starts and of the rows that stay.

    Raises:
        ValueError: an option out of its range, or one that the method does not use; in setup, a task without continuous inputs
            of one network, or vat without predictions.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.ADVERSARIAL
    claims: frozenset[Power] = frozenset({Power.LOSSES})  # type: ignore[misc]

    def __init__(
        self,
        *,
        method: str = "pgd",
        snr_db: float = 40.0,
        norm: str = "linf",
        steps: int | None = None,
        step_size: float | None = None,
        clean: float | None = None,
        weight: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if method not in STEPS:
            raise ValueError(f"technique.adversarial_training.method is {method!r}; choose {', '.join(STEPS)}")
        check_snr(snr_db, "technique.adversarial_training.snr_db")
        if norm not in ("linf", "l2"):
            raise ValueError(f"technique.adversarial_training.norm is {norm!r}; choose linf or l2")
        for name, value, valid, span in (
            ("steps", steps, steps is None or steps >= 1, "at least 1"),
            ("step_size", step_size, step_size is None or step_size > 0, "above 0, as a share of the budget"),
            ("clean", clean, clean is None or 0 <= clean < 1, "in [0, 1)"),
            ("weight", weight, weight is None or weight > 0, "above 0"),
        ):
            if not valid:
                raise ValueError(f"technique.adversarial_training.{name} is {value}, must be {span}")
        for name, value, owner in (("clean", clean, "pgd"), ("weight", weight, "vat")):
            if value is not None and method != owner:
                raise ValueError(
                    f"technique.adversarial_training.{name}={value} is for method={owner}, not {method}; leave it out"
                )
        self.method, self.snr_db, self.norm, self.clean, self.weight = method, snr_db, norm, clean or 0.0, weight or 1.0
        self.steps = STEPS[method] if steps is None else steps
        default = MOST_STEPS_TIMES_BUDGET / self.steps if method == "pgd" else STEP_SIZES[method]
        self.step_size = default if step_size is None else step_size
        self.claims = frozenset({Power.LOSSES}) if method == "freelb" else frozenset()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            check_inputs("adversarial_training", pl_module, predicts=self.method == "vat")

    def _budget(self, given: ContinuousInput) -> Budget:
        return within_snr(given.values, self.snr_db, norm=self.norm, counted=given.counted)

    def _draws(self, task: Task) -> torch.Generator:
        return self.generator(task.batches_trained * 65_536 + task.global_rank, task.device)

    # --- pgd ---

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        if self.method != "pgd":
            return batch
        given, draws = ContinuousInput(task, batch), self._draws(task)
        stays = torch.rand(len(given.values), generator=draws, device=task.device) < self.clean
        budget = self._budget(given)
        moved = pgd(given.loss_of(), given.values, budget, steps=self.steps, step_size=self.step_size, generator=draws)
        change = moved - given.values
        change[stays] = 0
        return given.changed(change)

    # --- freelb ---

    def make_losses(self, task: Task, batch: Batch) -> dict[str, Tensor]:
        given = ContinuousInput(task, batch)
        budget = self._budget(given)
        change = budget.random(given.values, self._draws(task))
        sums: dict[str, Tensor] = {}
        for step in range(self.steps):
            change.requires_grad_()
            losses = task.losses_at(given.changed(change)) if step else task.losses(given.changed(change))
            for name, value in losses.items():
                sums[name] = sums[name] + value if name in sums else value
            if step < self.steps - 1:
                gradient = torch.autograd.grad(_weighted(task, losses), change, retain_graph=True)[0]
                ascent = change.detach() + self.step_size * budget.like(gradient) * budget.steepest(gradient)
                change = budget.projected(ascent)
        return {name: value / self.steps for name, value in sums.items()}

    # --- vat ---

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.method != "vat":
            return {}
        given = ContinuousInput(task, batch)
        budget = self._budget(given)
        with torch.no_grad():
            said = predictions(task, batch)
        # a fixed length of the finite difference, whatever the random length of the draw
        direction = budget.steepest(torch.randn(given.values.shape, generator=self._draws(task), device=task.device))
        for _ in range(self.steps):
            start = given.values + self.step_size * budget.like(direction) * direction
            _, gradient = loss_and_gradient(lambda x: mean_kl(said, predictions(task, given.replaced(x))), start)
            direction = budget.steepest(gradient)
        found = mean_kl(said, predictions(task, given.changed(budget.like(direction) * direction)))
        return {"vat": found}

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        return {"vat": self.weight} if "vat" in losses else {}

    def state_dict(self) -> dict[str, Any]:
        return {}


def _weighted(task: Task, losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([task.loss_weights.get(name, 1.0) * losses[name] for name in sorted(losses)]).sum()
