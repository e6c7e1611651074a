"""A bar on the terminal for what takes minutes."""

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], title: str, *, total: int | None = None) -> Iterable[Item]:
    """Yields the items while a bar on stderr tells how many are done and how long the rest takes; it goes when all are.

    total: how many there are; None if `items` knows its length.
    """
    from rich.console import Console
    from rich.progress import track

    return track(items, title, total=total, console=Console(stderr=True), transient=True)
