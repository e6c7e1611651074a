"""A protocol: tasks with several heads."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class HasHeads(Protocol):
    """A task with several heads, each with a loss term of its name; the heads may share weights."""

    @property
    def head_names(self) -> Sequence[str]:
        """The names of the heads, which are those of their loss terms."""
        ...
