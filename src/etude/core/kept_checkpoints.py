"""The names of a run's checkpoints, and which of them are kept.

last.ckpt, best.ckpt                    from which a run continues, and its best by `monitor`
last_step_000400.ckpt, ...              earlier ones of last.ckpt, with keep_last=2 or more
best_step_000400.ckpt, ...              the best k, with keep_best=2 or more; best.ckpt is the first of them
exception.ckpt                          the last whole step before an error ended the run; see core/emergency.py
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from etude.durable import copy_durably

STEP = re.compile(r"_step_(\d+)\.ckpt$")
EXCEPTION = "exception.ckpt"


def at_step(path: Path, step: int) -> Path:
    """Returns the name under which the checkpoint `path` of an optimizer step is kept: last.ckpt -> last_step_000400.ckpt."""
    return path.with_name(f"{path.stem}_step_{step:06d}{path.suffix}")


def step_of(path: Path) -> int:
    """Returns the optimizer step in the name of a checkpoint that was kept; -1 for other names."""
    match = STEP.search(path.name)
    return int(match[1]) if match else -1


def earlier(path: Path) -> list[Path]:
    """Returns the checkpoints that were kept of `path`, such as last.ckpt, newest first."""
    return sorted(
        (kept for kept in path.parent.glob(f"{path.stem}_step_*.ckpt") if step_of(kept) >= 0), key=step_of, reverse=True
    )


def checkpoints_of(folder: Path, *, best: bool = False) -> list[Path]:
    """Returns the checkpoints in a folder, the one to prefer first.

    best: prefer the best one, for programs that use a model; otherwise the last one, for training that continues.
    """
    last, top, failed = (folder / name for name in ("last.ckpt", "best.ckpt", EXCEPTION))
    lasts, bests = [failed, last, *earlier(last)], [top, *earlier(top)]
    return [path for path in (bests + lasts if best else lasts + bests) if path.is_file()]


def keep_copy(path: Path, copy: Path) -> None:
    """Keeps the checkpoint `path` under the name `copy`, too, without using space: a hard link, or a copy if there are none."""
    if not path.is_file():
        return
    aside = copy.with_name(f".{copy.name}.{os.getpid()}.part")
    try:
        aside.unlink(missing_ok=True)
        os.link(path, aside)
        aside.replace(copy)
    except OSError:  # a file system without hard links
        copy_durably(path, copy)
    finally:
        aside.unlink(missing_ok=True)


def remove_others(path: Path, kept: Iterable[Path]) -> None:
    """Removes the checkpoints that were kept of `path`, except those in `kept`."""
    names = {one.name for one in kept}
    for other in earlier(path):
        if other.name not in names:
            other.unlink(missing_ok=True)
