"""Finds the checkpoints that options name: of a run, of the newest run, of a stage."""

import importlib
import logging
import pkgutil
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from etude.core import bundled
from etude.core.called import program
from etude.core.checkpoint_files import fault_of
from etude.core.kept_checkpoints import checkpoints_of
from etude.moved import current_name

log = logging.getLogger(__name__)

TASK = re.compile(r"^task:\n(?:  .*\n)*?  _target_: ([\w.]+)$", re.MULTILINE)
TRIAL = re.compile(r"^trial: *\n +\S", re.MULTILINE)  # in a configuration: a trial of a sweep


def find_checkpoint(
    ckpt: str,
    outputs: str,
    *,
    kind: str | None = None,
    offers: type | None = None,
    option: str = "ckpt",
    announce: bool = True,
    best: bool = False,
) -> Path:
    """Returns the path of the checkpoint that `ckpt` names.

    Of a run the first good one of `checkpoints_of` is taken; a damaged one is skipped, which is told with the reason.

    Args:
        ckpt: a file, a run's folder, `bundled` for a model that comes with the package, or `last` for the last good checkpoint
            of the newest run; trials of a sweep are left out.
        outputs: the folder in which `last` looks for runs.
        kind: with `last` and `bundled`, only models of this task count, such as style_transfer; None for any task.
        offers: with `last` and `bundled`, only models of tasks whose class has the methods of this protocol count; None for any
            task. The protocol must have no other members.
        option: the option that holds `ckpt`, for messages.
        announce: print to stderr what is skipped, and if best.ckpt is taken because there is no last.ckpt.
        best: take a run's best.ckpt, for programs that use a model and do not continue its training.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if ckpt == bundled.NAME and bundled.PATH.is_file():
        known = (path for name, path in bundled.MODELS.items() if _is_wanted(name, kind=kind, offers=offers))
        if (model := next(filter(Path.is_file, known), None)) is None:
            of = _told(kind, offers)
            raise ValueError(f"{option}={bundled.NAME}: no model{of} comes with Etude; train one first, and give its folder")
        return model
    if ckpt == "last":
        folders = {path.parent for path in Path(outputs).rglob("checkpoints/*.ckpt")}
        runs = sorted((found for folder in folders if (found := checkpoints_of(folder))), key=_age)  # newest first
        wanted = (found for found in runs if _is_run_of(found[0].parents[1], kind=kind, offers=offers, trials=False))
        path = _first_good((one for found in wanted for one in checkpoints_of(found[0].parent, best=best)), announce=announce)
        if path is None:
            of = _told(kind, offers)
            raise ValueError(f"{option}=last: no checkpoints/last.ckpt{of} under {outputs}/; train first or give a path")
    else:
        named = Path(ckpt).expanduser()
        path = named
        if named.is_dir():
            phases = sorted(named.glob("*/checkpoints"), reverse=True)  # of a run with stage=
            inside = [checkpoints_of(folder, best=best) for folder in (named / "checkpoints", named, *phases)]
            found = next((each for each in inside if each), [])
            path = _first_good(found, announce=announce) or named / "checkpoints" / "last.ckpt"
        if not path.is_file():
            raise ValueError(f"{option}={ckpt}: there is no such file; give a checkpoint, a run's folder, or {option}=last")
    chosen = announce and not best and path.name == "best.ckpt" and Path(ckpt).name != "best.ckpt"
    if chosen and not path.with_name("last.ckpt").is_file():
        print(f"{option}={ckpt}: there is no last.ckpt; taking {path}", file=sys.stderr)
    return path


def _age(checkpoints: list[Path]) -> float:
    return -checkpoints[0].stat().st_mtime


def _first_good(paths: Iterable[Path], *, announce: bool) -> Path | None:
    """Returns the first checkpoint that can be read; if there is none, the first, whose fault is told when it is loaded."""
    first: Path | None = None
    skipped: list[str] = []
    for path in paths:
        first = first or path
        if (fault := fault_of(path)) is None:
            if announce and skipped:
                print(f"skipped {'; skipped '.join(skipped)}; taking {path}", file=sys.stderr)
            return path
        skipped.append(fault)
    return first


def find_stage_checkpoint(names: list[str], outputs: str, *, wanted: str, kind: str | None = None) -> Path:
    """Returns the best checkpoint of the newest run of a stage.

    A run belongs to a stage if its recipe has it as `stage=`, or if its last checkpoint is in a phase of that name. A run that
    was stopped before it wrote last.ckpt counts with its best.ckpt. A checkpoint that can't be read is skipped with a warning.

    Args:
        names: the stages to look for; a run of the first name is preferred to one of the second.
        outputs: the folder that holds the runs.
        wanted: the stage that is about to start, for the message.
        kind: only runs of this task count, such as style_transfer; None for any task.

    Raises:
        ValueError: there is no such run.
    """
    folders = {path.parent for path in Path(outputs).rglob("checkpoints/*.ckpt")}
    runs = sorted((each for folder in folders if (each := checkpoints_of(folder))), key=_age)
    found = [each[0] for each in runs if _is_run_of(each[0].parents[1], kind=kind)]
    stages: dict[Path, set[str]] = {}
    for name in names:
        for path in found:
            if path not in stages:
                stages[path] = _stage_names(path)
            if name in stages[path]:
                best = path.with_name("best.ckpt")
                return best if best.is_file() else path
    first = names[-1] + (f" task={kind}" if kind else "")  # this stage needs no earlier run
    raise ValueError(
        f"stage={wanted} starts from a run of stage={' or '.join(names)}, but {outputs}/ holds none; "
        f"run `{program('train')} stage={first}` first, or give weights=CHECKPOINT"
    )


def _stage_names(path: Path) -> set[str]:
    """Returns the names of the stage and of the phase of a checkpoint; the weights are not read."""
    import torch

    from etude.core.phases import position

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["etude"]
        return {str((saved["recipe"].get("stage") or {}).get("name", "")), position(saved)} - {""}
    except Exception as error:  # a file may be malformed in any way; try other runs
        log.warning("%s is skipped in the search for a stage: not a readable checkpoint (%s)", path, type(error).__name__)
        return set()


def _is_run_of(folder: Path, *, kind: str | None = None, offers: type | None = None, trials: bool = True) -> bool:
    """Returns whether the configuration in a run's folder is for such a task; no checkpoint is read.

    trials: whether a trial of a sweep counts, which was one try of many.
    """
    config = folder / "config.yaml"
    text = config.read_text(errors="replace") if config.is_file() else ""
    if not trials and TRIAL.search(text):
        return False
    if kind is None and offers is None:
        return True
    found = TASK.search(text)
    if found is None:
        return False
    return _is_wanted(current_name(found[1]), kind=kind, offers=offers)


def _is_wanted(name: str, *, kind: str | None, offers: type | None) -> bool:
    """Returns whether the task class of this dotted name is of a kind, and has the methods of a protocol."""
    return (kind is None or name.startswith(f"etude.tasks.{kind}.")) and (offers is None or _offers(name, offers))


def _offers(name: str, protocol: type) -> bool:
    """Returns whether the task class of this dotted name has the methods of a protocol; False for a class outside Etude."""
    from etude.core.recipe_check import checked_constructor

    try:
        module, _, attribute = checked_constructor(name, ("task",)).rpartition(".")
    except ValueError:  # its checkpoint could not be loaded either
        return False
    return issubclass(getattr(importlib.import_module(module), attribute), protocol)


def _told(kind: str | None, offers: type | None) -> str:
    """Returns which models count, for messages: ` of a style_transfer run`, or ` of task=a or task=b`, those with a protocol."""
    if kind or offers is None:
        return f" of a {kind} run" if kind else ""
    tasks, names = importlib.import_module("etude.tasks"), list[str]()
    for module in (importlib.import_module(f"etude.tasks.{info.name}") for info in pkgutil.iter_modules(tasks.__path__)):
        own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
        if any(issubclass(each, nn.Module) and issubclass(each, offers) for each in own):
            names.append(f"task={module.__name__.rpartition('.')[2]}")
    return f" of {' or '.join(names)}"
