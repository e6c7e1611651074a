"""The folder of a run: chosen so that no two runs share one, locked during the run, and removed if nothing was written."""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from etude.core.busy import Busy
from etude.core.ranks import rank

# files that a run writes before it has any result
NO_RESULTS = (
    "config.yaml", "generate.yaml", "evaluate.yaml", "environment.txt", "changes.tsv", "wandb_id.txt", "code.patch", "data.tsv",
    "options.json",
)  # fmt: skip
_created: set[Path] = set()  # folders that this process created


def run_folder() -> Path:
    """Returns the folder of this run, which Hydra has created."""
    return Path(HydraConfig.get().runtime.output_dir)


class RunFolder(Callback):
    """A Hydra callback that chooses the folder of a command before Hydra creates it; set in conf/ under hydra.callbacks.

    If the name exists already it gets a suffix, so that no two runs share a folder. A command that continues a run (`ckpt=` with
    its folder, its checkpoints/last.ckpt, or `last`) uses that run's folder. `hydra.run.dir=` and `hydra.sweep.dir=` have
    precedence.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = _named_by_stage(config, Path(config.hydra.run.dir))
        if not _given(config, "hydra.run.dir") and rank() == 0:
            with contextlib.suppress(OSError):  # Hydra creates the folder next and reports the same error
                _set(config, "run", _continued(config) or _found_again(config) or create_folder(folder))
        elif not folder.exists():
            _created.add(folder.absolute())

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.get("study"):  # sweep=: a study goes on in its folder
            return
        if not _given(config, "hydra.sweep.dir"):
            with contextlib.suppress(OSError), read_write(config), open_dict(config):
                again = _found_again(config, sweep=True)
                folder = again or create_folder(_named_by_stage(config, Path(config.hydra.sweep.dir)))
                _set(config, "sweep", folder)
                # each run of the sweep is composed from these options
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={json.dumps(str(folder))}")


def _named_by_stage(config: DictConfig, folder: Path) -> Path:
    """Returns `folder` with the name of the stage in place of the data's, if the data are those of an earlier run."""
    stage, data = config.get("stage"), config.hydra.runtime.choices.get("data")
    mine = {option.partition("=")[0] for option in config.hydra.overrides.task}
    if not stage or not stage.get("after") or config.ckpt or "data" in mine or _given(config, "hydra.run.dir"):
        return folder
    head, found, tail = folder.name.rpartition(f"_{data}")
    return folder.with_name(f"{head}_{stage.name}{tail}") if found else folder


def _given(config: DictConfig, key: str) -> bool:
    return any(option.partition("=")[0].lstrip("+") == key for option in config.hydra.overrides.hydra)


def _set(config: DictConfig, mode: str, folder: Path) -> None:
    with read_write(config), open_dict(config):
        config.hydra[mode].dir = str(folder)


def create_folder(path: Path) -> Path:
    """Creates and returns the folder `path`, or path_2, path_3, ... if it exists; no two callers get the same one.

    Raises: OSError if it can't be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        _created.add(folder.absolute())
        return folder
    raise AssertionError


def _found_again(config: DictConfig, *, sweep: bool = False) -> Path | None:
    """Returns the folder of `autoresume=true`, which the same command finds again; None for other commands.

    Raises: OSError if it can't be created.
    """
    if config.hydra.job.config_name != "train" or not config.get("autoresume"):
        return None
    from etude.run.again import stable_folder

    folder = stable_folder(config, sweep=sweep)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        _created.add(folder.absolute())  # only the one that made it may remove it, of commands that start at once
    return folder


def _continued(config: DictConfig) -> Path | None:
    """Returns the folder of the run that this command continues; None for a new run."""
    if config.hydra.job.config_name != "train" or not config.get("ckpt"):
        return None
    from etude.core.checkpoint_search import find_checkpoint

    try:
        path = find_checkpoint(config.ckpt, config.outputs, announce=False)
    except ValueError:  # reported when the program runs
        return None
    named = Path(config.ckpt).expanduser()
    whole = config.ckpt == "last" or named.is_dir() or named.name == "last.ckpt"
    folder = path.parents[1] if path.parent.name == "checkpoints" else None
    return folder if whole and folder is not None and (folder / "config.yaml").is_file() else None


def write_config(path: Path, text: str) -> None:
    """Writes a run's configuration; an earlier, different one is renamed to config_1.yaml, config_2.yaml, ..."""

    def settings(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith(("ckpt: ", "stop_at: ", "autoresume: "))]

    if path.is_file() and settings(path.read_text()) != settings(text):
        names = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))
    path.write_text(text)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Locks a run's folder for this run, and removes partly written files of a run that was killed.

    Raises: Busy if another run uses the folder.
    """
    if rank() > 0:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"{folder}: the run of this folder is still running; stop it first, or give hydra.run.dir=NEW_FOLDER"
            ) from None
        except OSError:  # a file system without locks
            pass
        for left in folder.rglob("*.part"):
            left.unlink()
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def remove_if_empty() -> Iterator[None]:
    """Removes this command's folder if the command fails before it has written any result."""
    try:
        yield
    except BaseException:
        if HydraConfig.initialized():
            folder = run_folder().absolute()
            made = [place for place in (folder, *folder.parents) if place in _created]
            kept = [path for path in folder.rglob("*") if not path.is_dir() and path.name not in NO_RESULTS]
            if made and not kept:
                shutil.rmtree(folder)
                for place in made:
                    if place.is_dir() and not any(place.iterdir()):
                        place.rmdir()
        raise
