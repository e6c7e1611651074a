"""Verifies and reads checkpoint files, without running code that a file might contain."""

import functools
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.core.called import program
from etude.core.kept_checkpoints import checkpoints_of

if TYPE_CHECKING:
    from torch import Tensor


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


def resumable(path: Path) -> Path:
    """Returns `path`. Raises: ValueError for a file of weights, from which training can't continue."""
    if path.suffix == ".safetensors":
        raise ValueError(f"ckpt={path} holds weights only; start a new run from them with weights={path}, or continue its run")
    return path


def saved_step(path: Path) -> int:
    """Returns the number of optimizer steps at which a checkpoint was written; `load_checkpoint` must have checked it before."""
    import torch

    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def validation_is_due(path: Path) -> bool:
    """Returns whether a validation that follows the checkpoint's step was not made before it was written."""
    import torch

    return "LastCheckpoint" in torch.load(path, map_location="cpu", weights_only=True, mmap=True)["callbacks"]


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


def load_checkpoint(path: Path, *, base: Path | None = None) -> dict[str, Any]:
    """Reads a checkpoint and checks all of it, without running code that it might contain.

    base: of a file of adapters, the model that was adapted; None for the one that the file names.
    Returns: its contents; the recipe is a checked copy (see `recipe_check`). A file of adapters is joined with its base.

    Raises:
        ValueError: the file is damaged, not a checkpoint of Etude, or not safe; one line that names the file, and a good
            checkpoint of the same run, if there is one.
    """
    path = Path(path)
    try:
        return _whole(_read(path), path, base)
    except ValueError as error:
        others = (other for other in checkpoints_of(path.parent) if other != path) if path.is_file() else ()
        if offer := next((other for other in others if fault_of(other) is None), None):
            raise ValueError(f"{error}; a good one of this run is {offer}") from error
        raise


def _whole(checkpoint: dict[str, Any], path: Path, base: Path | None) -> dict[str, Any]:
    """Returns the checkpoint; if it holds adapters alone, joined with its base. Raises: ValueError without the right base."""
    from etude.core.adapter_file import base_of, joined

    try:
        named = base_of(checkpoint)
        if named is None:
            if base is not None:
                raise ValueError("base= is for files of adapters, and this is a whole model; leave base= out")
            return checkpoint
        at = named if base is None else base
        if not at.is_file():
            raise ValueError(
                f"it holds adapters of {at}, which is not there; `{program('export')} ckpt={path.name} base=RUN` joins the two"
            )
        if base_of(theirs := _read(at)) is not None:
            raise ValueError(f"its base {at} holds adapters alone; give the whole model as base=")
        return joined(checkpoint, theirs, at=at)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # a file may be malformed in any way
        raise ValueError(f"{path}: its adapters are malformed ({type(error).__name__}); export them again") from error


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
