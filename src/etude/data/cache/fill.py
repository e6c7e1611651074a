"""Filling a cache: what it lacks is computed in parallel, under a progress bar, and committed as it comes."""

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

FLUSH_SECONDS = 5.0  # at most this much work is lost to a power cut


def absent(folder: Path, keys: np.ndarray) -> list[int]:
    """Positions of those keys, each once, that the store in `folder` lacks."""
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
    """Computes `work(item)` for all items and hands each result (or `pool.Failure`) to `keep(index, result)` as it is
    done.

    commit: makes what was kept durable; called every few seconds and at the end, also on Ctrl-C.
    inline_seconds: compute here for this long before starting processes; 0 where an item may crash its process.
    limits: what an item may take, see `pool.run`.
    sizes: how long each item takes beside the others, for the time left; None where all take as long.
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
    except OSError:
        raise  # a full disk: what is uncommitted is given up as a whole
    except KeyboardInterrupt:
        commit()
        print(
            f"interrupted while {title}: {done} of {len(items)} {unit} are done and kept in {cache_dir}; "
            "the same command goes on from there",
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
            result = pool.Failure(pool.one_line(error))
        yield index, result
        index += 1
    for later, result in pool.run(work, items[index:], num_workers=num_workers, log=log, limits=limits):
        yield index + later, result


@contextlib.contextmanager
def progress(title: str, total: int, unit: str, *, sizes: Sequence[float] | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar with speed and time left on stderr; gives the function that counts one more, of `size` (1)."""
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
    """Seconds until `whole` is done, where `done` of it took `spent` seconds; sizes, not items: the longest may come last."""
    return max(0.0, spent / max(done, 1e-9) * (whole - done))
