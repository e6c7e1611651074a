"""A toy GAN, toy data and a way to train them: small enough for exact comparisons, real enough to hold the core honest."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from etude.core.task import Task, frozen
from etude.data.base import ResumableLoader

accelerator = "cpu"  # set by tests/conftest.py


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


class ToyGan(Task):
    """CycleGAN on vectors: least squares, cycle loss, noise on the discriminator's inputs so that draws matter."""

    logged_metrics = ("val/cycle",)
    example_axis = 0

    def __init__(self, *, noise: float = 0.1, **options: Any) -> None:
        options.setdefault("optimizer", partial(torch.optim.Adam, lr=1e-4, betas=(0.5, 0.999)))
        options.setdefault("player_lr", {"generator": 2e-4})
        options.setdefault("loss_weights", {"generator/cycle": 10.0, "discriminator/all": 0.5})
        super().__init__(**options)
        self.noise = noise
        self.ab, self.ba, self.da, self.db = mlp(8, 8), mlp(8, 8), mlp(8, 1), mlp(8, 1)

    @property
    def players(self) -> dict[str, Sequence[nn.Module]]:
        return {"generator": [self.ab, self.ba], "discriminator": [self.da, self.db]}

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        a, b = batch["a"], batch["b"]
        if self.noise:
            a = a + self.noise * torch.randn_like(a)
        fake_b, fake_a = self.ab(a), self.ba(b)
        self.trace = {"a": a, "b": b, "generator/output": torch.cat([fake_b, fake_a])}
        with frozen(self.da, self.db):
            adversarial = ((self.db(fake_b) - 1) ** 2).mean() + ((self.da(fake_a) - 1) ** 2).mean()
        cycle = (self.ba(fake_b) - a).abs().mean() + (self.ab(fake_a) - b).abs().mean()
        real = ((self.db(b) - 1) ** 2).mean() + ((self.da(a) - 1) ** 2).mean()
        fake = (self.db(fake_b.detach()) ** 2).mean() + (self.da(fake_a.detach()) ** 2).mean()
        return {"generator/adversarial": adversarial, "generator/cycle": cycle, "discriminator/all": real + fake}

    def recompute_trace(self, batch: dict[str, Tensor], trace: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"generator/output": torch.cat([self.ab(trace["a"]), self.ba(trace["b"])])}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/cycle", self.losses(batch)["generator/cycle"])


class Pairs(Dataset[dict[str, Tensor]]):
    """Unpaired vectors of two domains, a function of the index."""

    def __init__(self, length: int = 64) -> None:
        generator = torch.Generator().manual_seed(1)
        self.a = torch.randn(length, 8, generator=generator)
        self.b = torch.randn(length, 8, generator=generator) + 1

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"a": self.a[index], "b": self.b[index]}


class Shuffled(Sampler[list[int]]):
    """Batches of a permutation that depends on (seed, pass) alone; its state says where in which pass it stands."""

    def __init__(self, length: int, *, batch_size: int = 4, seed: int = 0, shuffle: bool = True) -> None:
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.number, self.drawn, self.resumed = -1, 0, False

    def __len__(self) -> int:
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        if not self.resumed or self.drawn >= len(self):
            self.number, self.drawn = self.number + 1, 0
        self.resumed = False
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.number)
        order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
        while self.drawn < len(self):
            start = self.drawn * self.batch_size
            self.drawn += 1
            yield order[start : start + self.batch_size].tolist()

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number, self.drawn, self.resumed = state["number"], state["drawn"], True


class Mels(Dataset[Tensor]):
    """Mels [s, m, f] of three styles that differ in level and in how much neighbouring frames have in common."""

    def __init__(self, length: int = 64) -> None:
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(length, 3, 16, 14, generator=generator)
        smooth = torch.stack([noise[:, 0], noise[:, 1].cumsum(-1) / 3, noise[:, 2].cumsum(-2) / 3], dim=1)
        self.mel = 0.1 * smooth + torch.tensor([-0.4, -0.2, 0.0])[:, None, None]

    def __len__(self) -> int:
        return len(self.mel)

    def __getitem__(self, index: int) -> Tensor:
        return self.mel[index]


def as_styles(rows: list[Tensor]) -> dict[str, Tensor]:
    """The batch {"mel": [s, b, m, f]} of such mels."""
    return {"mel": torch.stack(rows, dim=1)}


class Played(Dataset[dict[str, Tensor]]):
    """Notes of two instruments and two styles over a drone, and mels [s, m, f]: band 8 + pitch % 8 rises where a note sounds."""

    def __init__(self, length: int = 64) -> None:
        generator = torch.Generator().manual_seed(3)
        self.roll, self.stop = torch.zeros(length, 2, 2, 2, 128, 14), torch.zeros(length, 2, 14)
        self.roll[:, :, 1, 0, 40] = 0.3
        for place in torch.cartesian_prod(torch.arange(length), torch.arange(2)).tolist():
            for _ in range(3):
                (pitch,), (start,) = (torch.randint(*span, (1,), generator=generator).tolist() for span in ((60, 68), (0, 10)))
                instrument = int(torch.randint(2, (1,), generator=generator))
                self.roll[*place, 0, instrument, pitch, start] = self.roll[*place, 1, instrument, pitch, start : start + 4] = 0.7
            if place[0] % 4 == 0:
                self.roll[*place, ..., 11:], self.stop[*place, 11:] = 0, 1
        noise = 0.02 * torch.randn(length, 2, 16, 14, generator=generator)
        self.mel = noise - 0.4
        self.mel[:, :, 8:] += self.roll[:, :, 1, :, 64:72].sum(2) + self.roll[:, :, 1, :, 56:64].sum(2)

    def __len__(self) -> int:
        return len(self.mel)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"mel": self.mel[index], "roll": self.roll[index], "stop": self.stop[index]}


def as_played(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The batch of such notes and mels, with the styles first."""
    return {name: torch.stack([row[name] for row in rows], dim=1) for name in rows[0]}


class PairsData(pl.LightningDataModule):
    dataset: type[Dataset[Any]] = Pairs
    collate: Any = None

    def __init__(self, num_workers: int = 0, shuffle: bool = True) -> None:
        super().__init__()
        self.num_workers, self.shuffle = num_workers, shuffle

    def train_dataloader(self) -> ResumableLoader:
        data: Any = self.dataset()
        return ResumableLoader(
            data,
            batch_sampler=Shuffled(len(data), shuffle=self.shuffle),
            num_workers=self.num_workers,
            multiprocessing_context="fork" if self.num_workers else None,
            collate_fn=self.collate,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset(8), batch_size=4, collate_fn=self.collate)  # type: ignore[call-arg]


class MelsData(PairsData):
    """Mels of three styles, of which those of some can be measured alone; see `etude.core.phase_protocols.HoldsOut`."""

    dataset = Mels
    collate = staticmethod(as_styles)
    styles = ("folk", "rock", "jazz")
    paired = False

    def may_leave_styles_out(self, name: str) -> None:
        """Does nothing: training batches hold every style."""

    def held_out(self, split: str) -> dict[str, np.ndarray]:
        return {"genre": np.repeat(self.styles, 8)}

    def loader_of(self, split: str, chosen: np.ndarray) -> list[dict[str, Tensor]]:
        present = np.flatnonzero(chosen.reshape(len(self.styles), 8).any(1)).tolist()
        style_sb = torch.tensor(present)[:, None].repeat(1, 4)
        return [{"mel": batch["mel"][present], "style": style_sb} for batch in self.val_dataloader()]


class PlayedData(PairsData):
    dataset = Played
    collate = staticmethod(as_played)


def trainer(folder: Path, *, max_steps: int, callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
    """A silent trainer that writes nothing unless asked; on a CPU, or on a GPU with pytest --accelerator gpu."""
    return pl.Trainer(
        **{
            "accelerator": accelerator,
            "devices": 1,
            "deterministic": "warn" if accelerator == "gpu" else None,
            "max_steps": max_steps,
            "logger": False,
            "log_every_n_steps": 1,
            "enable_checkpointing": any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            "callbacks": list(callbacks),
            **options,
        }
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
