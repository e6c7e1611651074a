"""A MoCo-like queue of keys, filled after each step from what its batches left: not by validation, not by `losses_at`."""

import copy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.core.task import Task
from etude.core.technique import Technique
from tests.paradigms.harness import KILLS, assert_resumes, fit
from tests.toys import PairsData, same, weights


class Moco(Task):
    """Tells a vector's other view from the keys of earlier vectors (He et al. 2020, algorithm 1)."""

    logged_metrics = ("val/moco",)
    step_trace_names: ClassVar[tuple[str, ...]] = ("keys",)
    queue: Tensor
    place: Tensor

    def __init__(self, **options: Any) -> None:
        options.setdefault("optimizer", partial(torch.optim.SGD, lr=0.1))
        super().__init__(**options)
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(24, 8), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        one, two = (batch["a"] + 0.3 * torch.randn_like(batch["a"]) for _ in range(2))
        query = F.normalize(self.encoder(one), dim=1)
        with torch.no_grad():
            keys = F.normalize(self.teacher(two), dim=1)
        self.trace = {"keys": keys}
        logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ self.queue.clone().T], dim=1) / 0.2
        return {"moco": F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))}

    def after_step(self) -> None:
        for own, other in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            own.lerp_(other, 0.1)
        keys = torch.cat(self.step_trace["keys"])
        self.queue[(self.place + torch.arange(len(keys))) % len(self.queue)] = keys
        self.place.add_(len(keys)).remainder_(len(self.queue))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/moco", self.losses(batch)["moco"])


class Asks(Technique):
    def extra_losses(self, task: Task, batch: Any, losses: Any) -> dict[str, Tensor]:
        task.losses_at(batch)
        return {}


def moco() -> tuple[Task, pl.LightningDataModule]:
    torch.manual_seed(0)
    return Moco(seed=1), PairsData()


@pytest.mark.parametrize(("kill", "accumulate"), [(KILLS[1], 1), (KILLS[2], 2)])
def test_it_resumes(tmp_path: Path, kill: int, accumulate: int) -> None:
    assert_resumes(tmp_path, moco, kill=kill, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize(("accumulate", "batches"), [(1, 12), (2, 24)])
def test_the_queue_takes_every_batch_once_whoever_else_asks(tmp_path: Path, accumulate: int, batches: int) -> None:
    often = fit(tmp_path / "a", moco, [Asks()], accumulate_grad_batches=accumulate)
    never = fit(tmp_path / "b", moco, accumulate_grad_batches=accumulate, limit_val_batches=0)
    assert isinstance(never, Moco) and int(never.place) == batches * 4 % 24 and not never.step_trace
    assert same(weights(often), weights(never))
