"""The space that a checkpoint needs on the disk."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

SPARE = 2**20  # bytes beyond the tensors that a checkpoint may need


def size_of(node: Any) -> int:
    """Returns the bytes of all tensors in nested dictionaries and lists; one that occurs several times counts once."""
    import torch

    seen: dict[int, int] = {}
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if isinstance(part, torch.Tensor):
            seen[part.data_ptr() or id(part)] = part.numel() * part.element_size()
        elif isinstance(part, dict | list | tuple):
            waiting.extend(part.values() if isinstance(part, dict) else part)
    return sum(seen.values())


def check_space(path: Path, size: int) -> None:
    """Checks, before anything is written, that the disk has room for a file of `size` bytes beside an earlier one.

    Raises: OSError with the path, the size and the free space.
    """
    if size + SPARE > shutil.disk_usage(path.parent).free:
        raise no_space(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), size)


def no_space(path: Path, error: OSError, size: int) -> OSError:
    """Returns the error for a checkpoint of `size` bytes that could not be written, in one line."""
    free = shutil.disk_usage(path.parent).free / 1e6
    return OSError(
        f"{path} can't be written: {error.strerror}; it needs {size / 1e6:.1f} MB, {free:.1f} MB are free; "
        "an earlier file of this name is unchanged"
    )
