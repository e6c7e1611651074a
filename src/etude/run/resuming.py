"""Tells what goes wrong when a run goes on from a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def told_resuming(resume: Path | None, trainer: Any) -> Iterator[None]:
    """Tells errors that come up before the first batch of a run that goes on from a checkpoint in one line that names its file.

    What a checkpoint holds of optimizers, loops, loaders and techniques may be malformed in any way, and each takes it over at
    a time of its own, the optimizer in its first step.
    """
    from etude.core.checkpoint_files import not_continued
    from etude.core.checkpoints import LastCheckpoint

    try:
        yield
    except Exception as error:
        begun = any(isinstance(callback, LastCheckpoint) and callback.begun for callback in trainer.callbacks)
        if resume is None or begun or type(error).__name__ == "MisconfigurationException":
            raise
        raise not_continued(resume, error) from error
