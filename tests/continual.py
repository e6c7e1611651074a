"""A task whose every optimum is known, and two phases of data for it: tests of techniques against forgetting."""

from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from etude.core.task import Task
from etude.core.technique import Technique
from etude.techniques.optim.stages import Stages
from tests.toys import PairsData, Shuffled, trainer

SIZE, EACH = 4, 32  # of a vector; vectors of a phase


class Points(Dataset[dict[str, Tensor]]):
    """Vectors x of two phases, EACH of the first, then EACH of the second; one after the other, again and again."""

    def __init__(self, length: int = 2 * EACH) -> None:
        draws = torch.Generator().manual_seed(5)
        scale = torch.tensor([2.0, 1.0, 0.5, 0.1])
        first = torch.randn(EACH, SIZE, generator=draws) * scale + 1
        second = torch.randn(EACH, SIZE, generator=draws) - 1
        self.x = torch.cat([first, second])[:length].double()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "piece": torch.tensor(index)}


class InOrder(Shuffled):
    """The whole first half again and again for so many batches, then the second."""

    def __init__(self, *, batches: int) -> None:
        super().__init__(2 * batches * EACH, batch_size=EACH, shuffle=False)
        self.batches = batches

    def __iter__(self) -> Any:
        for number in range(2 * self.batches):
            start = EACH * (number >= self.batches)
            yield list(range(start, start + EACH))


class PointData(PairsData):
    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        return DataLoader(Points(), batch_sampler=InOrder(batches=self.batches))

    def val_dataloader(self) -> Any:
        return DataLoader(Points(8), batch_size=4)


class Mean(Task):
    """Learns w, which minimizes the mean of |w - x|^2 / 2: the mean of what it sees. In float64."""

    example_axis = 0
    logged_metrics = ("val/half",)

    def __init__(self, **options: Any) -> None:
        options.setdefault("optimizer", partial(torch.optim.SGD, lr=0.1))
        super().__init__(**options)
        self.w = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"half": (self.w - batch["x"]).square().sum(1).mean() / 2}


def two_phases(folder: Path, technique: Technique, *, steps: int = 50, task: Task | None = None, **options: Any) -> Task:
    """Trains `steps` steps on the first points, then as many on the second."""
    torch.manual_seed(0)
    task = task or Mean()
    phases = Stages(stages=[{"name": "first", "max_steps": steps}, {"name": "second"}])
    run = trainer(folder, max_steps=2 * steps, callbacks=[phases, technique], limit_val_batches=0, **options)
    run.fit(task, PointData(steps))
    return task


class Watch(pl.Callback):
    """Calls a function after each batch."""

    def __init__(self, look: Any) -> None:
        self.look = look

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.look(pl_module)
