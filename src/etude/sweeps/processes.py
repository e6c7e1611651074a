"""Processes for trials: forked from a warm one that has imported everything, or started anew."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import psutil


class Process(Protocol):
    """The process of one trial.

    pid: its id; None if it runs elsewhere. sentinel: becomes readable when it has ended, for `multiprocessing.connection.wait`.
    told: once it has ended, why it failed, as far as it runs elsewhere.
    """

    @property
    def pid(self) -> int | None: ...

    @property
    def sentinel(self) -> int | None: ...

    @property
    def told(self) -> str: ...

    def exit_code(self) -> int | None:
        """Returns how it ended, minus the signal's number if one killed it; None while it runs."""

    def terminate(self) -> None:
        """Asks it to end after its current step."""

    def kill(self) -> None:
        """Ends it at once, with all its own processes."""


class Forked:
    """A process forked from the warm one."""

    told = ""

    def __init__(self, process: Any) -> None:
        self._process, self.pid = process, int(process.pid)
        self.sentinel: int | None = process.sentinel

    def exit_code(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        kill_group(self.pid)


class Started:
    """A process with a command line of its own."""

    told = ""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process, self.pid = process, process.pid
        self.sentinel: int | None = None

    def exit_code(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        kill_group(self.pid)


def kill_group(pid: int) -> None:
    """Kills a trial's process and the processes that it has started; each trial has a group of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class WarmProcess:
    """A process that has imported `modules` once and forks a process for each trial, so that a trial starts in milliseconds.

    It has one thread and has computed nothing, so that a fork is safe. It must not touch a GPU: trials on one need processes of
    their own.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        forget_rank()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(modules))
        self._warming: threading.Thread | None = None
        self._memory: int | None = None

    def warm_up(self) -> None:
        """Starts the warm process without waiting for it."""
        self._warming = threading.Thread(target=self._probe, name="warm up", daemon=True)
        self._warming.start()

    def _probe(self) -> None:
        mine, theirs = self._context.Pipe(duplex=False)
        self._context.Process(target=_tell_memory, args=(theirs,), daemon=True).start()  # returns once the process is warm
        theirs.close()
        self._memory = int(mine.recv())
        mine.close()

    def memory(self) -> int:
        """Waits until the process is warm; returns its resident memory in bytes: about what a trial needs, at least."""
        if self._warming is None:
            self.warm_up()
        assert self._warming is not None
        self._warming.join()
        if self._memory is None:
            raise ValueError("the process that trials are forked from has ended while it imported; see the lines above")
        return self._memory

    def start(self, function: Callable[..., None], *args: Any, output: Path, threads: int | None) -> Forked:
        """Forks a process that calls the function; what it prints goes into the file `output`."""
        process = self._context.Process(target=_run, args=(function, args, output, threads))
        process.start()
        return Forked(process)


def start_command(command: Sequence[str], *, output: Path, threads: int | None) -> Started:
    """Starts a process with this command line; what it prints goes into the file `output`."""
    forget_rank()
    environment: Mapping[str, str] = os.environ
    if threads is not None:
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    environment = {**environment, PARENT: str(os.getpid())}
    with output.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    return Started(process)


def forget_rank() -> None:
    """Removes from this process what makes it one of several of a job: each trial that it starts is a training of its own.

    Such as `srun -N4 etude train sweep=...`, which starts four sweeps that share a study.
    """
    for name in list(os.environ):
        if name in RANKS or name.startswith("TORCHELASTIC_"):
            del os.environ[name]


RANKS = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE",
)  # fmt: skip
PARENT = "ETUDE_SWEEP_PROCESS"  # the process that has started this one as a trial


def end_with_parent() -> None:
    """In a process that a sweep started, ends it like SIGTERM once the sweep is gone; otherwise does nothing."""
    parent = os.environ.pop(PARENT, "")
    if not parent.isdecimal():
        return

    def wait() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)

    _end_after(wait)


def _end_after(wait: Callable[[], None]) -> None:
    def watch() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _tell_memory(connection: Connection) -> None:
    with contextlib.suppress(BrokenPipeError):  # the sweep may be gone by the time everything is imported
        connection.send(psutil.Process(os.getppid()).memory_info().rss)


def _run(function: Callable[..., None], args: Sequence[Any], output: Path, threads: int | None) -> None:
    """The beginning of a forked process."""
    os.setsid()  # Ctrl-C in the terminal reaches the sweep alone, which then asks its trials to end
    with output.open("ab") as file, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    parent = multiprocessing.parent_process()
    assert parent is not None
    _end_after(parent.join)
    if threads is not None and "OMP_NUM_THREADS" not in os.environ:
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(threads)
    function(*args)


def threads_each(jobs: int) -> int | None:
    """Returns how many threads each of several trials may use, so that together they fill the cores; None for a single one."""
    return None if jobs == 1 else max(1, len(os.sched_getaffinity(0)) // jobs)


def refuse_too_many(jobs: int, each: int) -> None:
    """Raises: ValueError if so many trials do not fit into the memory. each: what a trial needs at least, in bytes."""
    free = psutil.virtual_memory().available
    if jobs * each > free:
        raise ValueError(
            f"n_jobs={jobs} needs {jobs * each / 1e9:.1f} GB ({each / 1e9:.1f} GB for each trial at least), "
            f"{free / 1e9:.1f} GB are free; set n_jobs={max(1, free // each)}"
        )
