"""Handlers of the signals that end a program cleanly: Ctrl-C, and the warnings that job managers send.

During training `LastCheckpoint` in `core/checkpoints.py` handles them.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# SIGUSR1: Slurm's warning; SIGXCPU: the CPU limit is reached (repeated every second); SIGHUP: the terminal was closed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)


class Stopped(KeyboardInterrupt):
    """Raised when a signal asks the program to end.

    number: the signal. exit_code: 128 + its number, as is usual for shells. name: `Ctrl-C`, or the name of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        super().__init__(self.name)

    @property
    def exit_code(self) -> int:
        return 128 + self.number

    @property
    def name(self) -> str:
        return "Ctrl-C" if self.number == signal.SIGINT else self.number.name


def find_stopped(error: BaseException | None) -> Stopped:
    """Returns the `Stopped` that caused an exception, such as Lightning's SystemExit; one for Ctrl-C if there is none."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error or Stopped(signal.SIGINT)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def install_handlers(handler: Any) -> dict[int, Any]:
    """Sets `handler` for SIGNALS, except for those that are ignored (as with nohup); returns the previous handlers.

    Python allows this in the main thread only; in another thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    # A shell sets SIGINT to be ignored in background jobs, but a SIGINT that is sent by `kill` is meant.
    wanted = [n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def restore_handlers(handlers: dict[int, Any]) -> None:
    """Sets the handlers that `install_handlers` returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within this context, each of SIGNALS raises `Stopped`, so that `finally` blocks run and no file is left half written."""
    handlers = install_handlers(_raise)
    try:
        yield
    finally:
        restore_handlers(handlers)
