"""A process pool in which one item can crash, hang or exhaust the memory without harm to the others.

`concurrent.futures` breaks the whole pool when a worker dies; here the parent knows which item each worker is at,
reports that item as failed, starts another worker and goes on.
"""

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
AHEAD = 8  # items sent to a worker before their results are back: hides the latency of the pipe


@dataclass(frozen=True)
class Failure:
    """Why an item has no result, in one line."""

    reason: str


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    pending: collections.deque[int]
    since: float
    ready: bool = False


def one_line(error: BaseException) -> str:
    """An exception as one line of text for a quarantine list."""
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def run(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    num_workers: int,
    log: Path,
    timeout_seconds: float = 600.0,
) -> Iterator[tuple[int, Any]]:
    """Yields (index, function(item) or Failure) for every item, as they are done, computed in `num_workers` processes.

    function, items: picklable; processes are spawned, so a script needs its `if __name__ == "__main__":`.
    log: the file that gets what the workers write to stdout and stderr, so that it does not tear the progress bar.
    timeout_seconds: an item that takes longer is reported as failed.
    Raises: RuntimeError where a process can't even start. Closing the iterator ends the processes.
    """
    todo = collections.deque(range(len(items)))
    workers = [_start(function, log) for _ in range(max(1, min(num_workers, len(items))))] if items else []
    try:
        while workers:
            for worker in workers:
                _feed(worker, todo, items)
            workers = _retire(workers)
            ready = wait([worker.pipe for worker in workers], timeout=1.0) if workers else []
            for position, worker in enumerate(workers):
                alive = True
                if worker.pipe in ready:
                    try:
                        message = worker.pipe.recv()
                        worker.ready, worker.since = True, time.monotonic()
                        if message is not None:
                            worker.pending.remove(message[0])
                            yield message
                    except (EOFError, OSError):
                        alive = False
                slow = bool(worker.pending) and worker.ready and time.monotonic() - worker.since > timeout_seconds
                if alive and not slow:
                    continue
                _end(worker)
                if not worker.ready:
                    raise RuntimeError(
                        f"a worker process could not start; {log} says why, and scripts need a __main__ guard"
                    )
                if worker.pending:
                    culprit = worker.pending.popleft()
                    todo.extendleft(reversed(worker.pending))
                    code = worker.process.exitcode
                    reason = (
                        f"took longer than {timeout_seconds:.0f} s"
                        if slow
                        else f"the reader crashed (exit code {code})"
                    )
                    yield culprit, Failure(reason)
                workers[position] = _start(function, log)
    finally:
        for worker in workers:
            _end(worker)


def _feed(worker: _Worker, todo: collections.deque[int], items: Sequence[Any]) -> None:
    while todo and len(worker.pending) < AHEAD:
        if not worker.pending:
            worker.since = time.monotonic()
        index = todo.popleft()
        worker.pending.append(index)
        with contextlib.suppress(
            OSError
        ):  # a dead worker is noticed, and its items are given to another, by the reader
            worker.pipe.send((index, items[index]))


def _retire(workers: list[_Worker]) -> list[_Worker]:
    """Ends the workers that have nothing left to do; returns the others."""
    for worker in workers:
        if not worker.pending:
            _end(worker)
    return [worker for worker in workers if worker.pending]


def _start(function: Callable[[Any], Any], log: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs, str(log)), daemon=True)
    with _child_environment():
        process.start()
    theirs.close()
    return _Worker(process, ours, collections.deque(), time.monotonic())


@contextlib.contextmanager
def _child_environment() -> Iterator[None]:
    """One thread a worker, and Ctrl-C for the parent alone, also while a child is still importing."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.join(timeout=0.05)
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()


def _serve(function: Callable[[Any], Any], pipe: Connection, log: str) -> None:
    """The life of a worker: one result for each item, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    pipe.send(None)
    while True:
        try:
            index, item = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = function(item)
        except Exception as error:
            result = Failure(one_line(error))
        try:
            pipe.send((index, result))
        except OSError:
            return
