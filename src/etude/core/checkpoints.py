"""The two checkpoints of a run: the best one, and the one that the run continues from; and how both are written."""

import logging
import os
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from etude.core import lightning
from etude.core.stopping import Stopped, install, restore

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, syncs it to the disk and renames it: whoever reads finds the earlier file or
    the new one, whole. Nothing passes through the temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Raises: OSError naming the path and the size needed where it can't be written; the earlier file stays."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with aside.open("wb", buffering=0) as file:
                sink = _Sink(file)
                torch.save(checkpoint, sink)  # type: ignore[arg-type]  # all that it calls is write and flush
                if sink.error is not None:
                    raise sink.error
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free / 1e6
            raise OSError(
                f"{path} can't be written: {error.strerror}; it needs {sink.size / 1e6:.1f} MB, {free:.1f} MB are free there; "
                "the earlier file, if any, is whole"
            ) from error
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)


class _Sink:
    """A file that torch.save can write into; after an error it goes on counting, so that the size needed can be told."""

    def __init__(self, file: Any) -> None:
        self.file, self.size = file, 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        length = len(rest)
        self.size += length
        try:
            while self.error is None and len(rest):
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            self.error = error
        return length

    def flush(self) -> None:
        """Nothing waits: the file has no buffer."""


def copy_durably(source: Path, target: Path) -> None:
    """Copies a checkpoint so that `target` is whole at any time. Raises: OSError where there is no room for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint by `monitor`; a resumed run brings the earlier best into its own folder and must beat it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        earlier, score = Path(state_dict["best_model_path"] or ""), state_dict["best_model_score"]
        if score is None or not earlier.name or self.dirpath is None:
            return
        if earlier.name != f"{self.filename}{self.FILE_EXTENSION}":  # a file of other kind, which is nothing to copy
            return
        mine = Path(self.dirpath) / earlier.name
        earlier = earlier if earlier.is_file() else mine  # of a folder that was moved
        if not earlier.is_file():
            return
        if mine.resolve() != earlier.resolve():
            copy_durably(earlier, mine)
        value = torch.as_tensor(score)
        self.best_model_path = self.kth_best_model_path = str(mine)
        self.best_model_score = self.current_score = self.kth_value = value
        self.best_k_models = {str(mine): value}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.enable_validation and not any(trainer.num_val_batches):
            log.warning("nothing is left to validate on, so there is no %s and no best.ckpt; see data.split", self.monitor)


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every few steps, at the end, and on Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGXCPU, which then end the
    run with `Stopped`.

    Always after an optimizer step and between two batches, so that a resumed run equals the uninterrupted one bit for
    bit, on the same hardware with the same number of threads (one and two threads sum in different orders). Where a validation
    follows the step it is finished first, since a resumed run would not make up for it and what listens to validations would
    miss one. A second Ctrl-C stops at once. A signal to one rank stops all. Once the run is over it holds the task's
    `final_weights`, where a technique has set any, for sampling; a longer run goes on from the trained ones.

    Args:
        path: the file.
        every_n_steps: optimizer steps between two writes, at least 1.
    """

    def __init__(self, *, path: Path, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"save_every is {every_n_steps}, must be at least 1 step")
        self.path, self.every_n_steps = Path(path), every_n_steps
        self.asked = False
        self.begun = False  # whether a batch has been trained since the run began or was resumed
        self._signal: int = signal.SIGINT
        self._saved_step = -1
        self._between = False  # a validation follows an optimizer step,
        self._pending = False  # after which to write
        self._stopping = False  # before the next batch, once the loggers have this one
        self._saving = False
        self._fitting = False
        self._handlers: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self._fitting:  # Lightning puts back what it found, after the end of the run
            earlier = self._handlers.get(number, signal.SIG_DFL)
            signal.signal(number, earlier)
            signal.raise_signal(number)
        elif self.asked and number == signal.SIGINT:
            raise Stopped(number)
        else:
            self.asked, self._signal = True, self._signal if self.asked else number

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fitting = True
        self._handlers = install(self._ask)
        if trainer.is_global_zero and self.path.parent.is_dir():
            for left in self.path.parent.glob("*.part"):  # of a run that was killed while it wrote
                left.unlink()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning's handler of SIGTERM, which came in between, would end the next validation without a checkpoint
        install(self._ask)
        self._saved_step = trainer.global_step

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        final: Any = getattr(pl_module, "final_weights", None)
        if self._saving and final and (trainer.should_stop or trainer.global_step == trainer.max_steps):
            checkpoint["trained_weights"] = pl_module.state_dict()
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **final}

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:  # so that a resumed run's curve has no gap
            logger.save()
        self._saving = True
        trainer.save_checkpoint(self.path)
        self._saving = False
        self._saved_step = trainer.global_step

    def _stop_asked(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.asked
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stopping:
            raise Stopped(self._signal)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.begun = True
        step = trainer.global_step
        if step == self._saved_step:  # gradients are being accumulated: half a step can't be resumed
            return
        due = step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop
        stop = self._stop_asked(trainer)
        if lightning.validation_follows(trainer):
            self._pending = due or stop
            self._between = True
            return
        if due or stop:
            self._save(trainer)
        self._stopping = stop

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not self._between:
            return
        stop = self._stop_asked(trainer)
        if self._pending or stop:
            self._save(trainer)
        self._pending = self._between = False
        if stop:
            raise Stopped(self._signal)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        if self._stop_asked(trainer):
            raise Stopped(self._signal)

    def _release(self) -> None:
        if self._fitting:
            restore(self._handlers)
        self._fitting = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()
