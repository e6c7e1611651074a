"""A-GEM over three genres: the gradient never points against that of what was learned before; resuming is bit for bit."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from etude.core.task import Task
from etude.core.technique import Batch, GradientSlot, Technique
from etude.techniques.weights.ema import Ema
from tests.paradigms.harness import KILLS, STEPS, assert_resumes, fit
from tests.toys import PairsData, Shuffled, same, weights

BATCH = 16


class Genres(Dataset[dict[str, Tensor]]):
    """Vectors of three genres, each with a map of its own from vector to class; one genre after the other."""

    def __init__(self, length: int = 192) -> None:
        maps = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(7))
        self.genre = torch.arange(length) * 3 // length
        self.x = torch.randn(length, 12, generator=torch.Generator().manual_seed(length))
        self.y = torch.einsum("ni,nio->no", self.x, maps[self.genre]).argmax(1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index], "genre": self.genre[index]}


class InOrder(Shuffled):
    """Batches in the order of the data."""

    def __iter__(self) -> Iterator[list[int]]:
        self.shuffle = False
        return super().__iter__()


class GenreData(PairsData):
    def train_dataloader(self) -> StatefulDataLoader:
        data = Genres()
        return StatefulDataLoader(data, batch_sampler=InOrder(len(data), batch_size=BATCH))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Genres(48), batch_size=BATCH)


class Classifier(Task):
    logged_metrics = ("val/nll",)

    def __init__(self, **options: Any) -> None:
        options.setdefault("optimizer", partial(torch.optim.AdamW, lr=1e-2))
        super().__init__(**options)
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.trace = {"logits": self.net(batch["x"])}
        return {"nll": F.cross_entropy(self.trace["logits"], batch["y"])}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/nll", self.losses(batch)["nll"])


class Agem(Technique):
    """Projects the gradient so that it does not raise the loss on what earlier genres left (Chaudhry et al. 2019, eq. 11)."""

    gradient_slot: ClassVar[GradientSlot] = GradientSlot.PROJECT

    def __init__(self, *, size: int = 8, replayed: int = 12, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.size, self.replayed = size, replayed
        self.memory: dict[int, dict[str, Tensor]] = {}
        self.worst, self.projected = 1.0, 0

    def extra_losses(self, task: Task, batch: Batch, losses: Any) -> dict[str, Tensor]:
        for genre in batch["genre"].unique().tolist():
            of = batch["genre"] == genre
            self.memory[genre] = {name: value[of][: self.size].clone() for name, value in batch.items()}
        self.current = int(batch["genre"][-1])
        return {}

    def transform_gradients(self, task: Task) -> None:
        earlier = [rows for genre, rows in sorted(self.memory.items()) if genre < self.current]
        if not earlier:
            return
        rows = {name: torch.cat([kept[name] for kept in earlier]) for name in earlier[0]}
        order = torch.randperm(len(rows["x"]), generator=self.generator(task.steps_trained))[: self.replayed]
        reference = task.gradient_of({name: value[order] for name, value in rows.items()}, reduce=True)
        own = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
        against = torch.stack([(own[name] * value).sum() for name, value in reference.items()]).sum()
        if against < 0:
            self.projected += 1
            length = torch.stack([value.square().sum() for value in reference.values()]).sum()
            for name, value in reference.items():
                own[name].sub_(against / length * value)
        left = torch.stack([(own[name] * value).sum() for name, value in reference.items()]).sum()
        self.worst = min(self.worst, float(left))

    def state_dict(self) -> dict[str, Any]:
        return {"memory": {str(genre): rows for genre, rows in self.memory.items()}, "projected": self.projected}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.memory = {int(genre): rows for genre, rows in state_dict["memory"].items()}
        self.projected = state_dict["projected"]


def genres() -> tuple[Task, pl.LightningDataModule]:
    torch.manual_seed(0)
    return Classifier(seed=1), GenreData()


@pytest.mark.parametrize(("kill", "options"), [(KILLS[2], {}), (KILLS[4], {"precision": "bf16-mixed"})])
def test_it_resumes(tmp_path: Path, kill: int, options: dict[str, Any]) -> None:
    assert_resumes(tmp_path, genres, lambda: [Agem(), Ema(decay=0.5)], kill=kill, **options)


def test_no_step_points_against_what_was_learned(tmp_path: Path) -> None:
    technique = Agem()
    guarded = fit(tmp_path / "a", genres, [technique])
    assert guarded.steps_trained == STEPS and sorted(technique.memory) == [0, 1, 2]  # all three genres have come
    assert technique.projected > 0 and technique.worst > -1e-6
    assert not same(weights(guarded), weights(fit(tmp_path / "b", genres)))
