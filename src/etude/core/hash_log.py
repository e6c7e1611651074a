"""A log of hashes of weights and batches, by which two runs are compared step by step."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.sharding import is_sharded

NAME = "hashes.tsv"
BATCHES = "batches"  # the column of all batches so far


def tensor_hash(value: Tensor, digest_size: int = 6) -> str:
    """Returns the hash of a tensor's type, shape and bits, in hex."""
    digest = hashlib.blake2b(f"{value.dtype} {list(value.shape)}".encode(), digest_size=digest_size)
    if value.numel():
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key in sorted(node, key=str):
            yield from _parts(node[key], f"{name}.{key}")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _parts(value, f"{name}.{number}")
    else:
        yield name, node


class HashLog(pl.Callback):
    """Every few steps writes a row: the step, a hash of all batches so far, and one of each weight, tab-separated.

    A hash of batches that differs says that some batch up to there differed. A line that begins with `step` names the columns; if
    the weights of the task change, such as in a new phase, another one follows. Rank 0 writes, and hashes its own batches. A run
    that continues removes the rows after its checkpoint.

    Args:
        path: the file. every_n_steps: optimizer steps between two rows, at least 1.
    """

    def __init__(self, *, path: Path, every_n_steps: int) -> None:
        self.path, self.every_n_steps = Path(path), every_n_steps
        self._batches = ""  # hash of all batches so far
        self._columns: list[str] = []
        self._step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if is_sharded(trainer):
            raise ValueError(
                f"hash_every={self.every_n_steps} hashes whole weights, but trainer=fsdp shards the model; "
                "leave it out or take ddp"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._columns, self._step = [], trainer.global_step
        if not trainer.is_global_zero:
            return
        kept = []
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            first = line.partition("\t")[0]
            if first == "step" or (first.isdecimal() and int(first) <= trainer.global_step):
                kept.append(line)
        while kept and kept[-1].startswith("step\t"):
            kept.pop()
        self._columns = next((line.split("\t") for line in reversed(kept) if line.startswith("step\t")), [])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(f"{line}\n" for line in kept))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        parts = [f"{name}={tensor_hash(v) if isinstance(v, Tensor) else v}" for name, v in _parts(batch, "")]
        text = "\n".join([self._batches, *parts])
        self._batches = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step or not trainer.is_global_zero:
            return
        self._step = step
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._write(step, pl_module.state_dict())

    def _write(self, step: int, weights: Mapping[str, Tensor]) -> None:
        columns = ["step", BATCHES, *weights]
        lines = [] if columns == self._columns else ["\t".join(columns)]
        lines.append("\t".join([str(step), self._batches, *(tensor_hash(value) for value in weights.values())]))
        self._columns = columns
        with self.path.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches = str(state_dict["batches"])


def hash_log(path: Path, every_n_steps: int) -> list[HashLog]:
    """Returns the callback that writes hashes: none for 0. Raises: ValueError for a number below 0."""
    if every_n_steps < 0:
        raise ValueError(f"hash_every is {every_n_steps}, must be at least 1 step, or 0 for no hashes")
    return [HashLog(path=path, every_n_steps=every_n_steps)] if every_n_steps else []


def read_hashes(path: Path) -> dict[int, dict[str, str]]:
    """Returns the rows of a file by their step: column -> hash. Raises: ValueError for a file of another kind."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; set hash_every=10 or so when a run is trained")
    rows: dict[int, dict[str, str]] = {}
    columns: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        fields = line.split("\t")
        if fields[0] == "step":
            columns = fields
        elif not columns or len(fields) != len(columns) or not fields[0].isdecimal():
            raise ValueError(f"{path}: line {number} is not a row of hashes; give the hashes.tsv of a run")
        else:
            rows[int(fields[0])] = dict(zip(columns[1:], fields[1:], strict=True))
    return rows


def compare_hashes(one: Path, two: Path) -> str | None:
    """Returns the first step, and in it the first of batches and weights, in which two files differ; None if they agree.

    Steps that only one file has are not compared. Raises: ValueError for a file of another kind, or without a common step.
    """
    mine, theirs = read_hashes(one), read_hashes(two)
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        raise ValueError(f"{one} and {two} have no step in common; give the same hash_every to both runs")
    for place, step in enumerate(common):
        here, there = mine[step], theirs[step]
        if missing := sorted(here.keys() ^ there.keys()):
            return f"step {step}: only one of the runs has {missing[0]}"
        for name in here:
            if here[name] != there[name]:
                since = f", some batch after step {common[place - 1]}" if name == BATCHES and place else ""
                return f"step {step}: {name} ({here[name]} and {there[name]}){since}"
    return None
