"""A MAML inner loop as a technique that owns how the losses are made, against the quadratic oracle, resuming bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from etude.core.gradients import gradients_enabled
from etude.core.task import Task
from etude.core.technique import Batch, Power, Technique
from etude.techniques.weights.ema import Ema
from tests.paradigms.harness import KILLS, assert_resumes, fit
from tests.toys import PairsData, same, weights


class Episodes(Dataset[dict[str, Tensor]]):
    """Sines of a random height and phase, a function of the index: ten points to adapt to, ten to be judged on."""

    def __init__(self, length: int = 64) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        height, phase = 0.1 + 4.9 * torch.rand((), generator=generator), 3.14 * torch.rand((), generator=generator)
        x = 10 * torch.rand(20, 1, generator=generator) - 5
        y = height * torch.sin(x + phase)
        return {"x": x[:10], "y": y[:10], "query_x": x[10:], "query_y": y[10:]}


class EpisodeData(PairsData):
    dataset = Episodes


class Sines(Task):
    """Regression; in validation after three steps of adaptation, which need gradients there."""

    logged_metrics = ("val/query",)

    def __init__(self, **options: Any) -> None:
        options.setdefault("optimizer", partial(torch.optim.Adam, lr=1e-3))
        super().__init__(**options)
        self.net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"fit": F.mse_loss(self.net(batch["x"]), batch["y"])}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        with gradients_enabled():
            found = [Maml().adapted(self, episode)["fit"].detach() for episode in episodes(batch)]
        self.log("val/query", torch.stack(found).mean())


def episodes(batch: Batch) -> list[Batch]:
    return [{name: value[i] for name, value in batch.items()} for i in range(len(batch["x"]))]


class Maml(Technique):
    """Trains for what the weights become after a few steps on each episode (Finn et al. 2017, algorithm 1)."""

    claims: ClassVar[frozenset[Power]] = frozenset({Power.LOSSES})

    def __init__(self, *, rate: float = 0.02, steps: int = 3, second_order: bool = True) -> None:
        super().__init__()
        self.rate, self.steps, self.second_order = rate, steps, second_order

    def adapted(self, task: Task, episode: Batch) -> dict[str, Tensor]:
        weights = dict(task.named_parameters())
        for _ in range(self.steps):
            slope = task.gradient_of(episode, parameters=weights, create_graph=self.second_order)
            weights = {name: weight - self.rate * slope[name] for name, weight in weights.items()}
        query = {"x": episode["query_x"], "y": episode["query_y"]}
        return task.losses_at(query, parameters=weights)

    def make_losses(self, task: Task, batch: Batch) -> dict[str, Tensor]:
        found = [self.adapted(task, episode)["fit"] for episode in episodes(batch)]
        return {"query": torch.stack(found).mean()}


def sines() -> tuple[Task, pl.LightningDataModule]:
    torch.manual_seed(0)
    return Sines(seed=1), EpisodeData()


@pytest.mark.parametrize(("kill", "accumulate"), [(KILLS[1], 1), (KILLS[2], 2)])
def test_it_resumes(tmp_path: Path, kill: int, accumulate: int) -> None:
    assert_resumes(tmp_path, sines, lambda: [Maml(), Ema(decay=0.5)], kill=kill, accumulate_grad_batches=accumulate)


def test_it_is_not_joint_training_and_the_second_order_matters(tmp_path: Path) -> None:
    joint, first, second = (
        fit(tmp_path / name, sines, techniques, steps=3)
        for name, techniques in (("a", []), ("b", [Maml(second_order=False)]), ("c", [Maml()]))
    )
    assert not same(weights(joint), weights(first)) and not same(weights(first), weights(second))


def test_the_gradient_is_the_quadratic_oracles(tmp_path: Path) -> None:
    """One inner step on t'Ht/2 - c't, then the sum of cubes: the gradient is (I - a H) 3 w^2 at w = t - a (H t - c)."""
    generator = torch.Generator().manual_seed(3)
    root, c = torch.randn(4, 4, generator=generator).double(), torch.randn(4, generator=generator).double()
    hessian, rate = root @ root.T + torch.eye(4).double(), 0.05

    class Quadratic(Task):
        def __init__(self) -> None:
            super().__init__(optimizer=torch.optim.SGD)
            self.theta = nn.Parameter(torch.randn(4, generator=generator).double())

        def losses(self, batch: Batch) -> dict[str, Tensor]:
            t = self.theta
            return {"fit": (t**3).sum() if batch["x"] is None else 0.5 * t @ hessian @ t - c @ t}

    task = Quadratic()
    found = Maml(rate=rate, steps=1).adapted(task, {"x": 1, "y": None, "query_x": None, "query_y": None})["fit"]
    (meta,) = torch.autograd.grad(found, task.theta)
    theta = task.theta.detach()
    moved = theta - rate * (hessian @ theta - c)
    torch.testing.assert_close(meta, (torch.eye(4).double() - rate * hessian) @ (3 * moved**2), rtol=0, atol=1e-12)
