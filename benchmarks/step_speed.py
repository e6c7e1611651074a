"""CPU time of a training step in two checkouts of Etude, alternating within one process.

    python benchmarks/step_speed.py BEFORE AFTER [rounds]

Each round trains the same Transformer on the same batches with each checkout's code, in turn, and the medians over rounds are
compared, so that other load and temperature affect both.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

WARM, COUNTED = 10, 60


class Timer(pl.Callback):
    """Measures the CPU seconds of the steps after the warm-up."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM:
            self.began = time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.process_time() - self.began


class Checkout:
    """A context in which `import etude` gives the modules of one checkout."""

    def __init__(self, root: Path) -> None:
        self.source = str(root / "src")
        self.modules: dict[str, Any] = {}

    def __enter__(self) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "etude"]:
            del sys.modules[name]
        sys.modules.update(self.modules)
        sys.path.insert(0, self.source)

    def __exit__(self, *_: object) -> None:
        self.modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "etude"}
        sys.path.remove(self.source)

    def module(self, stem: str) -> Any:
        """The module of this name, whatever folder it lies in: checkouts differ in that."""
        (path,) = Path(self.source, "etude").rglob(f"{stem}.py")
        return importlib.import_module(".".join(path.relative_to(self.source).with_suffix("").parts))


def batches() -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(WARM + COUNTED):
        yield {"tokens": torch.randint(0, 200, (4, 129), generator=generator)}


def seconds(checkout: Checkout, averaged: bool) -> float:
    with checkout, TemporaryDirectory() as folder:
        from etude.core.task import Task

        Transformer, Ema = checkout.module("transformer").Transformer, checkout.module("ema").Ema

        class Model(Task):
            def __init__(self) -> None:
                super().__init__(optimizer=partial(torch.optim.AdamW, lr=1e-3))
                self.net = Transformer(vocab_size=200, dim=96, num_layers=3, num_heads=4)

            def losses(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                logits = self.net(batch["tokens"][:, :-1])
                return {"nll": torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten())}

        timer = Timer()
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=WARM + COUNTED, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, gradient_clip_val=1.0, default_root_dir=folder,
            callbacks=[timer, *([Ema()] if averaged else [])],
        )  # fmt: skip
        trainer.fit(Model(), DataLoader(list(batches()), batch_size=None))
        return timer.seconds / COUNTED


def main(before: str, after: str, rounds: str = "10") -> None:
    checkouts = [Checkout(Path(before).resolve()), Checkout(Path(after).resolve())]
    for averaged in (False, True):
        found: list[list[float]] = [[], []]
        for turn in range(int(rounds) + 1):
            for which in (0, 1) if turn % 2 else (1, 0):
                value = seconds(checkouts[which], averaged)
                if turn:  # the first round is a warm-up
                    found[which].append(1000 * value)
        one, two = (statistics.median(values) for values in found)
        ratios = statistics.median(b / a for a, b in zip(*found, strict=True))
        print(
            f"{'ema' if averaged else 'bare'}: {one:.3f} ms, {two:.3f} ms a step; median of paired ratios {ratios:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
