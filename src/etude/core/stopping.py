"""Signals that end a program in good order: Ctrl-C, and what job managers send before they kill."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# SIGUSR1 is Slurm's warning, SIGXCPU a spent CPU limit (sent again every second), SIGHUP a closed terminal
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)


class Stopped(KeyboardInterrupt):
    """A signal ended the program.

    number: the signal. exit_code: 128 + its number, as shells count. name: `Ctrl-C`, or the signal's.
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


def stopped_by(error: BaseException | None) -> Stopped:
    """The `Stopped` behind an exception, such as Lightning's SystemExit; Ctrl-C where there is none."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error or Stopped(signal.SIGINT)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def install(handler: Any) -> dict[int, Any]:
    """Handles SIGNALS with `handler`, but for those that are ignored (nohup); returns the handlers that were there.

    Python lets the main thread alone do so; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    # A shell ignores SIGINT for its background jobs; whoever sends it to one by number means it.
    wanted = [n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def restore(handlers: dict[int, Any]) -> None:
    """Puts handlers that `install` returned back."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Raises Stopped where one of SIGNALS arrives, so that what is written is finished or removed."""
    handlers = install(_raise)
    try:
        yield
    finally:
        restore(handlers)
