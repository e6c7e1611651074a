"""A process pool in which an item that crashes, hangs or exhausts the memory does not affect the others.

`concurrent.futures` breaks the whole pool when a worker dies. Here the parent knows the current item of each worker,
reports it as failed, starts another worker and continues.
"""

import collections
import contextlib
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
AHEAD = 2  # items sent to a worker ahead of their results, to hide the latency of the pipe
TRIES = 2  # an item is tried again after a crash, since the system may have killed the process because memory was short


@dataclass(frozen=True)
class Failure:
    """The reason in one line why an item has no result.

    final: True if the function refused the item and would refuse it again. False if its process crashed or ran out of time
        or memory: another run may succeed, so this result must not be cached.
    """

    reason: str
    final: bool = True


@dataclass(frozen=True)
class Limits:
    """Limits of one item: `seconds` of time, and `memory_bytes` beyond what the process already uses (None: no limit)."""

    seconds: float = 600.0
    memory_bytes: int | None = None


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    pending: collections.deque[int]
    since: float
    ready: bool = False


def check_final(failure: Failure, doing: str) -> None:
    """Raises ChildProcessError if `failure` is not final, so that it is not cached.

    doing: the work that failed, such as 'tokenising a piece'.
    """
    if not failure.final:
        raise ChildProcessError(
            f"{doing} failed: {failure.reason}; the same command tries it again (finished work is saved); with fewer "
            "data.prepare_workers, each has more memory"
        )


def failure_of(error: Exception) -> Failure:
    """Returns the failure of an item whose work raised `error`; a lack of memory is not final, since it is the process's."""
    return Failure(one_line(error), final=not isinstance(error, MemoryError))


def one_line(error: BaseException) -> str:
    """Returns an exception as one line of text for a quarantine list."""
    if isinstance(error, MemoryError):
        return "needs more memory than it may take"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def run(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    num_workers: int,
    log: Path | None,
    limits: Callable[[Any], Limits] = lambda item: Limits(),
) -> Iterator[tuple[int, Any]]:
    """Computes function(item) in `num_workers` processes and yields (index, result or Failure) in order of completion.

    function, items: must be picklable and not defined in `__main__`, which workers do not import.
    log: file for the stdout and stderr of the workers, which would disturb the progress bar; None discards them.
    limits: returns the limits of an item; an item that exceeds them is reported as failed. An item whose process crashes is
        tried once more in a new process.
    Raises: RuntimeError if a worker can't start. Closing the iterator ends the workers.
    """
    todo = collections.deque(range(len(items)))
    crashes: collections.Counter[int] = collections.Counter()
    workers = [_start(function, log) for _ in range(max(1, min(num_workers, len(items))))] if items else []
    try:
        while workers:
            for worker in workers:
                _feed(worker, todo, items, limits)
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
                slow = worker.ready and _overdue(worker, items, limits)
                if alive and not slow:
                    continue
                _end(worker)
                if not worker.ready:
                    raise RuntimeError(f"a worker process could not start; {log or 'a run with a log'} says why")
                if worker.pending:
                    culprit = worker.pending.popleft()
                    crashes[culprit] += not slow
                    again = not slow and crashes[culprit] < TRIES
                    todo.extendleft(reversed(worker.pending))
                    if again:
                        todo.appendleft(culprit)
                    elif slow:
                        yield culprit, Failure(f"took longer than {limits(items[culprit]).seconds:.0f} s", final=False)
                    else:
                        code = worker.process.returncode
                        yield (
                            culprit,
                            Failure(f"the process that worked on it crashed {TRIES} times (exit code {code})", final=False),
                        )
                workers[position] = _start(function, log)
    finally:
        for worker in workers:
            _end(worker)


def _overdue(worker: _Worker, items: Sequence[Any], limits: Callable[[Any], Limits]) -> bool:
    return bool(worker.pending) and time.monotonic() - worker.since > limits(items[worker.pending[0]]).seconds


def _feed(worker: _Worker, todo: collections.deque[int], items: Sequence[Any], limits: Callable[[Any], Limits]) -> None:
    while todo and len(worker.pending) < AHEAD:
        if not worker.pending:
            worker.since = time.monotonic()
        index = todo.popleft()
        worker.pending.append(index)
        with contextlib.suppress(OSError):  # the reader notices a dead worker and gives its items to another
            worker.pipe.send((index, items[index], limits(items[index]).memory_bytes))


def _retire(workers: list[_Worker]) -> list[_Worker]:
    """Ends the workers without pending items and returns the others."""
    for worker in workers:
        if not worker.pending:
            _end(worker)
    return [worker for worker in workers if worker.pending]


def _start(function: Callable[[Any], Any], log: Path | None) -> _Worker:
    """Starts a new interpreter, which imports what `function` needs but not the script of the caller.

    It uses one thread and has its own session, so that Ctrl-C reaches only the parent. When the parent ends, the pipe is
    closed, which ends the worker.
    """
    ours, theirs = multiprocessing.Pipe()
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = f"from etude.data.cache.pool import serve; serve({theirs.fileno()})"
    with (log or Path(os.devnull)).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,
        )
    theirs.close()
    with contextlib.suppress(OSError):  # the reader notices a worker that could not start
        ours.send(function)
    return _Worker(process, ours, collections.deque(), time.monotonic())


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    try:
        worker.process.wait(timeout=0.05)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()


def serve(handle: int) -> None:
    """Runs a worker on the pipe with descriptor `handle`: sends one result for each item until the pipe is closed."""
    pipe: Connection[Any, Any] = Connection(handle)
    function = pipe.recv()
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            index, item, memory_bytes = pipe.recv()
            _limit_memory(memory_bytes)
            try:
                result = function(item)
            except Exception as error:
                result = failure_of(error)
            _limit_memory(None)  # so that there is memory to send the result
            pipe.send((index, result))


def _limit_memory(memory_bytes: int | None) -> None:
    """Limits this process to `memory_bytes` of address space beyond what it uses now; None removes the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = Path("/proc/self/statm")  # Linux; on other systems the limit counts from 0, which is a little stricter
    used = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0
    soft = hard if memory_bytes is None else used + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
