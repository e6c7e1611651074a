"""Checkpoints as files: which one is meant, and what it holds, without running any code that it might hold."""

import logging
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.core.called import program

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def find_checkpoint(ckpt: str, outputs: str, *, kind: str | None = None, option: str = "ckpt", tell: bool = True) -> Path:
    """Returns the checkpoint that `ckpt` names: a file, a run's folder, or `last` for the newest run's last one.

    A run that was stopped before it wrote its last.ckpt gives its best.ckpt, which is told on stderr.

    kind: with `last`, the newest run of this task, such as style_transfer; None for any. option: the key that holds `ckpt`.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if ckpt == "last":
        folders = {path.parent for path in Path(outputs).rglob("checkpoints/*.ckpt")}
        found = [path for folder in folders if (path := _of_run(folder)) is not None]
        found = [path for path in found if kind is None or _trained(path.parents[1], kind)]
        if not found:
            of = "" if kind is None else f" of a {kind} run"
            raise ValueError(f"{option}=last: no checkpoints/last.ckpt{of} under {outputs}/; train first or give a path")
        path = max(found, key=lambda path: path.stat().st_mtime)
    else:
        path = Path(ckpt).expanduser()
        if path.is_dir():
            inside = _of_run(path / "checkpoints") or _of_run(path)
            phases = [_of_run(folder) for folder in sorted(path.glob("*/checkpoints"))]  # of a run with stage=
            path = inside or next((phase for phase in reversed(phases) if phase), path / "checkpoints" / "last.ckpt")
        if not path.is_file():
            raise ValueError(f"{option}={ckpt}: there is no such file; give a checkpoint, a run's folder, or {option}=last")
    if tell and path.name == "best.ckpt" and Path(ckpt).name != "best.ckpt":
        print(f"{option}={ckpt}: there is no last.ckpt; taking {path}", file=sys.stderr)
    return path


def _of_run(folder: Path) -> Path | None:
    """The checkpoint to go on from in a run's folder of checkpoints: the last one, or the best where there is no other."""
    return next((path for name in ("last.ckpt", "best.ckpt") if (path := folder / name).is_file()), None)


def find_stage(names: list[str], outputs: str, *, wanted: str, kind: str | None = None) -> Path:
    """Returns the best checkpoint of the newest run of the first of these stages that has one; of runs of task `kind` alone.

    A run is of a stage where its recipe says so, or where it stands in a phase of that name. A checkpoint that can't be read is
    passed over, with a warning.

    Raises:
        ValueError: there is none.
    """
    found = sorted(Path(outputs).rglob("checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = [path for path in found if kind is None or _trained(path.parents[1], kind)]
    stages: dict[Path, set[str]] = {}
    for name in names:
        for path in found:
            if path not in stages:
                stages[path] = _stages(path)
            if name in stages[path]:
                best = path.with_name("best.ckpt")
                return best if best.is_file() else path
    first = names[-1] + (f" task={kind}" if kind else "")  # which needs no other
    raise ValueError(
        f"stage={wanted} starts from a run of stage={' or '.join(names)}, and {outputs}/ holds none; "
        f"run `{program('train')} stage={first}` first, or give weights=CHECKPOINT"
    )


def _stages(path: Path) -> set[str]:
    """The names of the stage and of the phase in which a checkpoint was written; its weights are not read."""
    import torch

    from etude.core.phases import position

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["etude"]
        return {str((saved["recipe"].get("stage") or {}).get("name", "")), position(saved)} - {""}
    except Exception as error:  # a file may be malformed in any way; another run may do
        log.warning("%s is passed over in the search for a stage: not a readable checkpoint (%s)", path, type(error).__name__)
        return set()


def _config(folder: Path) -> str:
    config = folder / "config.yaml"
    return config.read_text(errors="replace") if config.is_file() else ""


def _trained(folder: Path, kind: str) -> bool:
    """Whether a run's folder says that it trained such a task."""
    return f"_target_: etude.tasks.{kind}." in _config(folder)


def saved_step(path: Path) -> int:
    """How many optimizer steps had been taken when a checkpoint, of which `load_checkpoint` thinks well, was written."""
    import torch

    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def saved_weights(path: Path) -> dict[str, "Tensor"]:
    """The weights in a checkpoint of which `load_checkpoint` thinks well; they stay on the disk until they are read."""
    import torch

    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    return weights


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of Etude without running any code that it might hold, and checks all of it.

    Returns: its contents; the recipe is a checked copy (see `recipe_check`).

    Raises:
        ValueError: one line that names the file: what is wrong with it, be it damaged, not of Etude, or not to be trusted.
    """
    import torch

    path = Path(path)
    verify_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__}); give one that Etude wrote") from error
    try:
        return _checked(checkpoint)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give a checkpoint that `{program('train')}` wrote, of someone you trust") from error


def verify_archive(path: Path) -> None:
    """Reads a checkpoint's file once and compares every record with the checksum that was written with it.

    Takes about 0.1 s for 100 MB. PyTorch itself doesn't compare them, so that a flipped bit would load as another weight.

    Raises:
        ValueError: one line that names the file and the record.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror}); give a file that you may read") from error
    except Exception as error:  # zipfile lets errors of several kinds through for a damaged file
        told = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"{path}: not a readable checkpoint, or a damaged one ({told}); give one that Etude wrote, or copy it again"
        ) from error
    if damaged is not None:
        raise ValueError(
            f"{path}: damaged: its record {damaged} is not what was written; copy the file again, or give another checkpoint"
        )


def _checked(checkpoint: Any) -> dict[str, Any]:
    """The contents, with a checked recipe."""
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
            raise ValueError(f"its weights {name} are not numbers (NaN)")
    try:
        recipe = checked_recipe(own["recipe"])
    except ValueError as error:
        raise ValueError(f"its recipe is not one that Etude writes: {error}") from error
    return {**checkpoint, "etude": {**own, "recipe": recipe}}


def unusable(path: Path, error: Exception) -> ValueError:
    """The one line that says that nothing could be built from the checkpoint in `path`, with the innermost cause."""
    told = _innermost(error)
    if isinstance(error, ValueError) and str(path) in told:
        return error
    return ValueError(
        f"{path}: what it holds does not go together: {told[:300]}; give a checkpoint that `{program('train')}` wrote"
    )


def not_continued(path: Path, error: Exception) -> ValueError:
    """The one line that says that training could not go on from the checkpoint in `path`, with the innermost cause."""
    told = " ".join(str(error).split()) if isinstance(error, ValueError) else _innermost(error)
    if isinstance(error, ValueError) and str(path) in told:
        return error
    remedy = (
        "" if isinstance(error, ValueError) else "; it is malformed or does not fit these options; HYDRA_FULL_ERROR=1 tells more"
    )
    return ValueError(f"{path}: training can't go on from it: {told[:600]}{remedy}")


def _innermost(error: Exception) -> str:
    """The kind and the message of the first of the errors that led to `error`, in one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
