"""Trains a trained encoder, and one with random weights, further on few labels: what the weights are worth as a start.

Shapes: n documents or segments, d features, c classes.
"""

import copy
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core.stopping import find_stopped
from etude.core.task import Task

RULE = "few_labels"  # the name of the rule by which training draws only pieces with a label that may be used
WARMUP = 0.1  # share of the steps


class FineTuning(Task):
    """An encoder with a linear head for one column of labels; both are trained.

    Args:
        encoder: a task with `features(batch)` and `documents(batch, name)`. dim: d. num_classes: c. label: the column.
        lr: of AdamW, after a warm-up, falling linearly to 0. steps: of the training.
    """

    terms = ("nll",)

    def __init__(self, encoder: Any, *, dim: int, num_classes: int, label: str, lr: float, steps: int, seed: int) -> None:
        def schedule(optimizer: torch.optim.Optimizer, **_: Any) -> torch.optim.lr_scheduler.LRScheduler:
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, steps))

        super().__init__(optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=0.01), scheduler=schedule, seed=seed)
        self.encoder, self.label = encoder, f"label_{label}"
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)
        nn.init.zeros_(self.head.weight)

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the logits of each document, [n, c]."""
        found: Tensor = self.head(self.norm(self.encoder.features(batch).float()))
        return found

    def documents(self, batch: Mapping[str, Tensor], name: str = "piece") -> Tensor:
        """Returns the batch's entry `name` once for each document."""
        found: Tensor = self.encoder.documents(batch, name)
        return found

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the mean cross-entropy over the documents with a label, in nats."""
        true = self.documents(batch, self.label)
        logits, known = self.features(batch), true >= 0
        return {"nll": F.cross_entropy(logits[known], true[known]) if known.any() else logits.sum() * 0.0}


class Admitted:
    """The rule by which training draws only some pieces; with `rows` None it admits all."""

    def __init__(self) -> None:
        self.rows: np.ndarray | None = None

    def __call__(self, rows: np.ndarray, number: int) -> np.ndarray:
        """Returns 1 for each row that is admitted, else 0, float64 [n]."""
        return np.ones(len(rows)) if self.rows is None else np.isin(rows, self.rows).astype(np.float64)


def fine_tuned(
    encoder: Any, datamodule: Any, *, label: str, rows: np.ndarray, num_classes: int, steps: int, lr: float, seed: int
) -> FineTuning:
    """Returns a copy of the encoder with a head, trained on the labels of some training pieces.

    Args:
        encoder: a task with `features` and `documents`; it stays as it is. datamodule: its data, with the label as a target.
        label: the column. rows: the training pieces whose labels are used, rows of the manifest. num_classes: c.
        steps, lr, seed: of the training.
    """
    admitted = Admitted()
    admitted.rows = rows
    own = copy.deepcopy(encoder).train()
    batch = next(iter(datamodule.evaluation_loader("train")))
    with torch.no_grad():
        dim = own.features({name: value.to(own.device) for name, value in batch.items()}).shape[1]
    with torch.random.fork_rng(devices=[own.device] if own.device.type == "cuda" else []):
        torch.manual_seed(seed)
        task = FineTuning(own.requires_grad_(True), dim=dim, num_classes=num_classes, label=label, lr=lr, steps=steps, seed=seed)
        datamodule.admit(RULE, admitted)
        try:
            with _Quiet():
                trainer = pl.Trainer(
                    accelerator="gpu" if own.device.type == "cuda" else "cpu", devices=1, max_steps=steps, limit_val_batches=0,
                    num_sanity_val_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                    enable_model_summary=False, gradient_clip_val=1.0, use_distributed_sampler=False,
                )  # fmt: skip
                trainer.fit(task, datamodule.train_dataloader(), datamodule.val_dataloader())
        except SystemExit as end:  # Lightning's, which says nothing of the signal
            raise find_stopped(end) from end
        finally:
            admitted.rows = None
    return task.to(encoder.device).eval()


def _factor(step: int, steps: int) -> float:
    rise = max(1, round(WARMUP * steps))
    return min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))


class _Quiet:
    """Silences the notes of Lightning about devices and ends."""

    def __enter__(self) -> None:
        self._log = logging.getLogger("pytorch_lightning")
        self._level = self._log.level
        self._log.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._log.setLevel(self._level)
