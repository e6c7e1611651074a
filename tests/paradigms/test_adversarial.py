"""PGD on embeddings as an extra loss, and a task with two heads under it and under balancing, resuming bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from etude.core.task import Task
from etude.core.technique import Batch, Technique
from etude.techniques.loss.balance import Balance
from tests.paradigms.harness import KILLS, assert_resumes, fit
from tests.toys import PairsData, same, weights


class Words(Dataset[dict[str, Tensor]]):
    """Rows of ten tokens with two labels: how large the tokens are, and which comes first."""

    def __init__(self, length: int = 64) -> None:
        self.tokens = torch.randint(0, 12, (length, 10), generator=torch.Generator().manual_seed(length))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.tokens[index]
        return {"tokens": row, "size": (row > 5).sum().clamp(3, 7) - 3, "first": row[0] % 3}


class WordData(PairsData):
    dataset = Words

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Words(16), batch_size=8)


class TwoHeads(Task):
    """Two classifiers on one body with BatchNorm and dropout; embeddings in the batch stand in for those of its tokens."""

    terms = ("size", "first")
    logged_metrics = ("val/size", "val/first")

    def __init__(self, **options: Any) -> None:
        options.setdefault("optimizer", partial(torch.optim.AdamW, lr=3e-3))
        super().__init__(**options)
        self.embedding = nn.Embedding(12, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({"size": nn.Linear(32, 5), "first": nn.Linear(32, 3)})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        embedded = batch["embedded"] if "embedded" in batch else self.embedding(batch["tokens"])
        hidden = self.body(embedded.mean(1))
        self.trace = {name: head(hidden) for name, head in self.heads.items()}
        return {name: F.cross_entropy(logits, batch[name]) for name, logits in self.trace.items()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.losses(batch).items()})


class Pgd(Technique):
    """Adds the loss on embeddings moved against the model (Madry et al. 2018, section 2.1, in the largest component)."""

    def __init__(self, *, radius: float = 1.0, steps: int = 3, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.radius, self.steps = radius, steps
        self.gains: list[float] = []  # how much the attack raises the loss, for the tests

    def extra_losses(self, task: Any, batch: Batch, losses: Any) -> dict[str, Tensor]:
        clean = task.embedding(batch["tokens"]).detach()
        draws = torch.rand(clean.shape, generator=self.generator(task.batches_trained))
        moved = (2 * draws - 1) * self.radius
        first = self._loss(task, batch, clean + moved).detach()
        for _ in range(self.steps):
            moved.requires_grad_()
            (slope,) = torch.autograd.grad(self._loss(task, batch, clean + moved), moved)
            moved = (moved + 2.5 * self.radius / self.steps * slope.sign()).clamp(-self.radius, self.radius).detach()
        found = self._loss(task, batch, task.embedding(batch["tokens"]) + moved)
        self.gains.append(float(found.detach() - first))
        return {"adversarial": found}

    @staticmethod
    def _loss(task: Task, batch: Batch, embedded: Tensor) -> Tensor:
        return task.losses_at({**batch, "embedded": embedded})["size"]


class Sees(Technique):
    """Looks at the trace after the attack, by its name."""

    only_observes: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    @property
    def name(self) -> str:
        return "sees"

    def extra_losses(self, task: Task, batch: Batch, losses: Any) -> dict[str, Tensor]:
        self.seen.append(task.trace["size"].detach().clone())
        return {}


def heads() -> tuple[Task, pl.LightningDataModule]:
    torch.manual_seed(0)
    return TwoHeads(seed=1), WordData()


@pytest.mark.parametrize(("kill", "accumulate"), [(KILLS[1], 1), (KILLS[3], 2)])
def test_an_attack_resumes(tmp_path: Path, kill: int, accumulate: int) -> None:
    assert_resumes(tmp_path, heads, lambda: [Pgd()], kill=kill, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize("method", ["fixed", "uncertainty", "pcgrad"])
def test_two_heads_resume_under_balancing(tmp_path: Path, method: str) -> None:
    assert_resumes(tmp_path, heads, lambda: [Balance(method=method), Pgd()], kill=KILLS[2])


def test_an_attack_raises_the_loss_and_leaves_the_clean_pass_alone(tmp_path: Path) -> None:
    attack, with_it, without = Pgd(), Sees(), Sees()
    attacked = fit(tmp_path / "a", heads, [attack, with_it], steps=3)
    plain = fit(tmp_path / "b", heads, [without], steps=3)
    assert min(attack.gains) > 0
    assert torch.equal(with_it.seen[0], without.seen[0])  # the first batch, before any weight differs
    assert not same(weights(attacked), weights(plain))
    assert int(attacked.body[1].num_batches_tracked) == int(plain.body[1].num_batches_tracked) == 3  # type: ignore[union-attr, index, operator]
    one = fit(tmp_path / "c", heads, [Pgd()], steps=1), fit(tmp_path / "d", heads, steps=1)
    assert torch.equal(*(task.body[1].running_mean for task in one))  # type: ignore[union-attr, index, arg-type]
