"""Samples while a model trains: every few steps a few samples are written and shown, and training is not disturbed."""

import contextlib
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from etude.core.protocols import FewSamples
from etude.core.sharding import is_sharded
from etude.report.media import read_table, show_samples

FOLDER = "samples_during"  # in a run's folder, with a subfolder for each step


class SamplesDuring(pl.Callback):
    """Writes samples to samples_during/STEP/ every few optimizer steps and shows them on the dashboards.

    The weights of the step are used, not an average of them. Training goes on as if nothing had happened: random states, the
    modes of modules and gradients are what they were, so the weights are the same, bit for bit, with and without samples. With
    several devices the first one samples while the others wait. Samples that fail are told in one line, and training goes on.

    Args:
        every: optimizer steps from one set of samples to the next, at least 1.
        sampling: writes samples, called with (task=, folder=, datamodule=): what conf/sampling builds. If it is `FewSamples`, its
            options are lowered to those of `few`.
        folder: of the run.
    """

    def __init__(self, *, every: int, sampling: Any, folder: Path) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"sample_every is {every}, must be at least 1 step, or null for no samples during training")
        self.every, self.sampling, self.folder = every, sampling, folder
        self._sampled = -1  # the last step: with accumulated gradients several batches end at one step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if is_sharded(trainer):
            raise ValueError(
                f"sample_every={self.every} samples on one device, but trainer=fsdp shards the model; leave it out or take ddp"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sampled = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every or step == self._sampled:
            return
        self._sampled = step
        if trainer.is_global_zero:
            try:
                with undisturbed(pl_module), contextlib.redirect_stderr(io.StringIO()):  # the progress bar has the terminal
                    self._write(trainer, pl_module, step)
            except Exception as error:  # whatever it is, such as a full disk, hours of training are worth more
                reason = " ".join(str(error).split())[:300]
                print(f"no samples at step {step}, training goes on: {type(error).__name__}: {reason}", file=sys.stderr)
        trainer.strategy.barrier("samples")

    def _write(self, trainer: pl.Trainer, task: pl.LightningModule, step: int) -> None:
        function = self.sampling.func
        fewer = lowered(self.sampling.keywords, function.few) if isinstance(function, FewSamples) else {}
        folder = self.folder / FOLDER / f"{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        self.sampling(task=task, folder=folder, datamodule=trainer.datamodule, **fewer)  # type: ignore[attr-defined]
        show_samples(trainer.loggers, "samples_during", read_table(folder / "samples"), step=step)


def lowered(options: dict[str, Any], few: Any) -> dict[str, Any]:
    """Returns the options of `few` where those given ask for more, or for as much as there is (None)."""
    return {name: most for name, most in few.items() if options.get(name) is None or options[name] > most}


@contextlib.contextmanager
def undisturbed(task: pl.LightningModule) -> Iterator[None]:
    """Within this context random numbers may be drawn and modes changed; afterwards all is as before."""
    modes = {module: module.training for module in task.modules()}
    cuda = [task.device] if task.device.type == "cuda" else []
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - whatever draws from it must go on as before
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            task.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
