"""Fill a cache: compute missing items in parallel with a progress bar, and commit them regularly."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from etude.data.cache import pool
from etude.data.cache.store import Store

FLUSH_SECONDS = 5.0  # between commits: a power cut loses at most this much work


def absent(folder: Path, keys: np.ndarray) -> list[int]:
    """Returns the positions of the keys that are missing in the store in `folder`; of equal keys, only the first."""
    missing = Store(folder).rows(keys) < 0 if (folder / "head.json").exists() else np.ones(len(keys), bool)
    _, first = np.unique(keys, axis=0, return_index=True)
    return sorted(row for row in first.tolist() if missing[row])


def fill(
    work: Callable[[Any], Any],
    items: Sequence[Any],
    keep: Callable[[int, Any], None],
    commit: Callable[[], None],
    *,
    title: str,
    unit: str,
    cache_dir: Path,
    num_workers: int,
    inline_seconds: float = 0.0,
    limits: Callable[[Any], pool.Limits] = lambda item: pool.Limits(),
    sizes: Sequence[float] | None = None,
) -> None:
    """Computes `work(item)` for all items and passes each result (or `pool.Failure`) to `keep(index, result)`.

    commit: saves the results passed to `keep` so far; called every few seconds and at the end, also on Ctrl-C.
    inline_seconds: compute in this process for so long before starting others; must be 0 if an item may crash its process.
    limits: the time and memory that an item may take, see `pool.run`.
    sizes: the relative time of each item, to estimate the time left; None if all take about the same time.
    """
    if not items:
        return
    done, last = 0, time.monotonic()
    try:
        with progress(title, len(items), unit, sizes=sizes) as advance:
            for index, result in _results(work, items, inline_seconds, num_workers, cache_dir / "workers.log", limits):
                keep(index, result)
                done += 1
                advance(1.0 if sizes is None else sizes[index])
                if time.monotonic() - last > FLUSH_SECONDS:
                    commit()
                    last = time.monotonic()
        commit()
    except ChildProcessError:  # an OSError, too: of `pool.check_final`, which promises that finished work is saved
        commit()
        raise
    except OSError:
        raise  # a full disk: everything that is not committed is discarded
    except KeyboardInterrupt:
        commit()
        print(
            f"interrupted while {title}: {done} of {len(items)} {unit} are done and saved in {cache_dir}; "
            "the same command continues from there",
            file=sys.stderr,
        )
        raise
    except Exception:
        commit()
        raise


def _results(
    work: Callable[[Any], Any],
    items: Sequence[Any],
    inline_seconds: float,
    num_workers: int,
    log: Path,
    limits: Callable[[Any], pool.Limits],
) -> Iterator[tuple[int, Any]]:
    start, index = time.monotonic(), 0
    while index < len(items) and time.monotonic() - start < inline_seconds:
        try:
            result = work(items[index])
        except Exception as error:
            result = pool.failure_of(error)
        yield index, result
        index += 1
    for later, result in pool.run(work, items[index:], num_workers=num_workers, log=log, limits=limits):
        yield index + later, result


@contextlib.contextmanager
def progress(title: str, total: int, unit: str, *, sizes: Sequence[float] | None = None) -> Iterator[Callable[..., None]]:
    """Shows a progress bar with speed and time left on stderr; yields a function that advances it by an item of `size`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[left]}"),
    )
    start, whole = time.monotonic(), float(total if sizes is None else sum(sizes))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, speed="", left="")
        count, done = 0, 0.0

        def advance(size: float = 1.0) -> None:
            nonlocal count, done
            count, done = count + 1, done + size
            spent = time.monotonic() - start
            left = timedelta(seconds=round(time_left(spent, done, whole)))
            bar.update(task, advance=1, speed=f"{count / max(spent, 1e-9):.0f}/s", left=f"{left} left")

        yield advance


def time_left(spent: float, done: float, whole: float) -> float:
    """Estimates the seconds left, if `done` of `whole` took `spent` seconds; both are sizes, not numbers of items."""
    return max(0.0, spent / max(done, 1e-9) * (whole - done))
