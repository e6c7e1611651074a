"""Finds, verifies and reads checkpoint files, without running code that a file might contain."""

import functools
import importlib
import logging
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.core import bundled
from etude.core.called import program
from etude.core.kept_checkpoints import checkpoints_of
from etude.moved import current_name

if TYPE_CHECKING:
    from torch import Tensor

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
        ckpt: a file, a run's folder, `bundled` for the model that comes with the package, or `last` for the last good checkpoint
            of the newest run; trials of a sweep are left out.
        outputs: the folder in which `last` looks for runs.
        kind: with `last`, only runs of this task count, such as style_transfer; None for any task.
        offers: with `last`, only runs of tasks whose class has the methods of this protocol count; None for any task. The
            protocol must have no other members.
        option: the option that holds `ckpt`, for messages.
        announce: print to stderr what is skipped, and if best.ckpt is taken because there is no last.ckpt.
        best: take a run's best.ckpt, for programs that use a model and do not continue its training.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if ckpt == bundled.NAME and bundled.PATH.is_file():
        return bundled.PATH
    if ckpt == "last":
        folders = {path.parent for path in Path(outputs).rglob("checkpoints/*.ckpt")}
        runs = sorted((found for folder in folders if (found := checkpoints_of(folder))), key=_age)  # newest first
        wanted = (found for found in runs if _is_run_of(found[0].parents[1], kind=kind, offers=offers, trials=False))
        path = _first_good((one for found in wanted for one in checkpoints_of(found[0].parent, best=best)), announce=announce)
        if path is None:
            of = f" of a {kind} run" if kind else f" of a task that offers {', '.join(_methods(offers))}()" if offers else ""
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


def fault_of(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint, in one line that names the file; None if it can be loaded."""
    status = path.stat()
    return _fault_of(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _fault_of(path: Path, size: int, modified: int) -> str | None:
    try:
        _read(path, mmap=True)
    except ValueError as error:
        return str(error).partition("; give ")[0].partition("; copy ")[0]
    return None


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
    name = current_name(found[1])
    return (kind is None or name.startswith(f"etude.tasks.{kind}.")) and (offers is None or _offers(name, offers))


def _offers(name: str, protocol: type) -> bool:
    """Returns whether the task class of this dotted name has the methods of a protocol; False for a class outside Etude."""
    from etude.core.recipe_check import checked_constructor

    try:
        module, _, attribute = checked_constructor(name, ("task",)).rpartition(".")
    except ValueError:  # its checkpoint could not be loaded either
        return False
    return issubclass(getattr(importlib.import_module(module), attribute), protocol)


def _methods(protocol: type) -> list[str]:
    return sorted(name for base in protocol.__mro__ for name in vars(base) if not name.startswith("_"))


def resumable(path: Path) -> Path:
    """Returns `path`. Raises: ValueError for a file of weights, from which training can't continue."""
    if path.suffix == ".safetensors":
        raise ValueError(f"ckpt={path} holds weights only; start a new run from them with weights={path}, or continue its run")
    return path


def saved_step(path: Path) -> int:
    """Returns the number of optimizer steps at which a checkpoint was written; `load_checkpoint` must have checked it before."""
    import torch

    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def step_if_whole(path: Path) -> int | None:
    """Returns the number of optimizer steps of a checkpoint; None if there is no such file, or it is damaged."""
    try:
        verify_archive(path)
        return saved_step(path)
    except Exception:  # a file may be damaged in any way
        return None


def saved_weights(path: Path) -> dict[str, "Tensor"]:
    """Returns the weights of a checkpoint that `load_checkpoint` has checked; they stay on the disk until they are read."""
    import torch

    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    return weights


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint and checks all of it, without running code that it might contain.

    Returns: its contents; the recipe is a checked copy (see `recipe_check`).

    Raises:
        ValueError: the file is damaged, not a checkpoint of Etude, or not safe; one line that names the file, and a good
            checkpoint of the same run, if there is one.
    """
    path = Path(path)
    try:
        return _read(path)
    except ValueError as error:
        others = (other for other in checkpoints_of(path.parent) if other != path) if path.is_file() else ()
        if offer := next((other for other in others if fault_of(other) is None), None):
            raise ValueError(f"{error}; a good one of this run is {offer}") from error
        raise


def _read(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Reads and checks a checkpoint; with `mmap` its tensors stay on the disk. Raises: ValueError."""
    import torch

    from etude.core.weights_file import SUFFIX, read_weights

    if path.suffix == SUFFIX and path.is_file():
        checkpoint = read_weights(path)
    else:
        verify_archive(path)
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:
            raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__}); give one that Etude wrote") from error
    try:
        return _checked(checkpoint)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give a checkpoint that `{program('train')}` wrote, from someone you trust") from error


def verify_archive(path: Path) -> None:
    """Compares every record of a checkpoint file with its stored checksum; takes about 0.1 s for 100 MB.

    PyTorch does not compare them: a flipped bit would be loaded as a wrong weight.

    Raises:
        ValueError: one line that names the file and the record.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror}); give a file that you have permission to read") from error
    except Exception as error:  # for a damaged file zipfile raises errors of several kinds
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"{path}: not a readable checkpoint, or a damaged one ({reason}); give one that Etude wrote, or copy it again"
        ) from error
    if damaged is not None:
        raise ValueError(
            f"{path}: damaged: the checksum of its record {damaged} is wrong; copy the file again, or give another checkpoint"
        )


def _checked(checkpoint: Any) -> dict[str, Any]:
    """Returns the contents with a checked recipe. Raises: ValueError that says what is wrong."""
    import torch

    from etude.core.recipe_check import checked_recipe

    own = checkpoint.get("etude") if isinstance(checkpoint, dict) else None
    if not isinstance(own, dict) or not own.get("recipe"):
        raise ValueError("not a checkpoint of Etude")
    if type(checkpoint.get("global_step")) is not int or type(own.get("batches_trained")) is not int:
        raise ValueError("it does not say how many steps it has been trained")
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError("it holds no weights")
    for name, value in weights.items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise ValueError(f"its weights {name} contain NaN")
    try:
        recipe = checked_recipe(own["recipe"])
    except ValueError as error:
        raise ValueError(f"its recipe is not one that Etude writes: {error}") from error
    return {**checkpoint, "etude": {**own, "recipe": recipe}}


def unusable_checkpoint(path: Path, error: Exception) -> ValueError:
    """Returns an error for a checkpoint from which no task could be built; it names the innermost cause of `error`."""
    reason = _innermost(error)
    if isinstance(error, ValueError) and str(path) in reason:
        return error
    return ValueError(f"{path}: its parts do not fit together: {reason[:300]}; give a checkpoint that `{program('train')}` wrote")


def not_continued(path: Path, error: Exception) -> ValueError:
    """Returns an error for a checkpoint from which training can't continue; it names the innermost cause of `error`."""
    reason = " ".join(str(error).split()) if isinstance(error, ValueError) else _innermost(error)
    if isinstance(error, ValueError) and str(path) in reason:
        return error
    remedy = (
        "" if isinstance(error, ValueError) else "; it is malformed or does not fit these options; HYDRA_FULL_ERROR=1 tells more"
    )
    return ValueError(f"{path}: training can't continue from it: {reason[:600]}{remedy}")


def innermost(error: BaseException) -> BaseException:
    """Returns the first of the errors that led to `error`."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _innermost(error: Exception) -> str:
    """Returns the class and the message of the first of the errors that led to `error`, in one line."""
    cause = innermost(error)
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
