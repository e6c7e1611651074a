"""Compares what a run has made with what it started from, for its report (`before_after`, which experiment=my_style sets)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from etude.run import recipes
from etude.run.parts import build_task, instantiate

if TYPE_CHECKING:
    from etude.core.task import Task

STARTED = "started_from"  # in the recipe of a checkpoint: the file whose weights its run started from, None for random ones


def remembered(start: Path | None, resume: Path | None) -> str | None:
    """Returns the file whose weights a run started from: `start`, or for a run that goes on what its checkpoint says."""
    from etude.core import bundled
    from etude.core.checkpoint_files import load_checkpoint

    if resume is not None:
        found: str | None = load_checkpoint(resume)["etude"]["recipe"].get(STARTED)
        return found
    return None if start is None else bundled.NAME if start == bundled.PATH else str(start.resolve())


def check(cfg: DictConfig, task: "Task", started: str | None) -> None:
    """Raises: ValueError, before training, where `before_after` is set and can't be met."""
    from etude.core.protocols import Composes

    if not cfg.get("before_after"):
        return
    if not isinstance(task, Composes):
        raise ValueError(f"before_after compares samples of scores, which {type(task).__name__} has not; set before_after=null")
    if not cfg.get("sampling"):
        raise ValueError("before_after is part of the report that sampling= writes; choose sampling=, or set before_after=null")
    if started is not None and not start_file(started).is_file():
        raise ValueError(f"before_after compares with {started}, which is no longer there; put it back, or set before_after=null")


def start_file(started: str) -> Path:
    """Returns the path of the file that `remembered` names."""
    from etude.core import bundled

    return bundled.PATH if started == bundled.NAME else Path(started)


def sections(
    cfg: DictConfig, after: "Task", started: str | None, *, datamodule: Any, folder: Path, **parts: Any
) -> dict[str, Any]:
    """Returns {"sections": the part of the report that compares}, for `sampling`; {} without `before_after`.

    after: the task with the weights that the run is judged by. parts: the constructor arguments that came from the data.
    """
    from pytorch_lightning import seed_everything

    if not cfg.get("before_after"):
        return {}
    seed_everything(cfg.seed, verbose=False)  # random weights as at the start
    before = build_task(cfg, **parts)
    if started is not None:
        recipes.load_weights(before, start_file(started))
    before.eval().to(after.device)
    return {"sections": instantiate(cfg.before_after)(before=before, after=after, datamodule=datamodule, folder=folder)}
