"""Tells what goes wrong when a run goes on from a checkpoint, and what a strict run refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def told_resuming(resume: Path | None, trainer: Any) -> Iterator[None]:
    """Tells errors that come up before the first batch of a run that goes on from a checkpoint in one line that names its file.

    What a checkpoint holds of optimizers, loops, loaders and techniques may be malformed in any way, and each takes it over at
    a time of its own, the optimizer in its first step. An operation that repro=strict refuses is told at any time.
    """
    from etude.core.checkpoint_files import not_continued
    from etude.core.checkpoints import LastCheckpoint
    from etude.run.repro import told

    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and (refused := told(error)) is not None:
            raise refused from error
        begun = any(isinstance(callback, LastCheckpoint) and callback.begun for callback in trainer.callbacks)
        if resume is None or begun or type(error).__name__ == "MisconfigurationException":
            raise
        raise not_continued(resume, error) from error


@contextmanager
def told_of_data(path: Path) -> Iterator[None]:
    """Tells in one line that names the checkpoint `path` where its recipe's data can't be made; what is told already stays."""
    from etude.core.checkpoint_files import innermost, unusable_checkpoint

    try:
        yield
    except Exception as error:  # a recipe may be malformed in any way
        if isinstance(innermost(error), ValueError | OSError):  # such as a folder that is not there
            raise
        raise unusable_checkpoint(path, error) from error
