"""Protocols of data and techniques for runs in phases; see `etude.core.protocols`."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class HoldsOut(Protocol):
    """Data of whose held-out pieces some can be measured alone."""

    def held_out(self, split: str) -> dict[str, np.ndarray]:
        """Returns the columns of the table of a split's pieces, by name; one row for each piece."""
        ...

    def loader_of(self, split: str, chosen: np.ndarray) -> Any:
        """Returns a loader of the chosen pieces of a split; chosen: bool, for each row of the table."""
        ...


@runtime_checkable
class RecallsPhases(Protocol):
    """A technique that knows other weights for pieces of earlier phases than the latest."""

    def recalled(self, task: Any, phase: int) -> AbstractContextManager[None]:
        """Returns a context within which the task has the weights of a phase, counted from 0."""
        ...


@runtime_checkable
class GrowsInPhases(Protocol):
    """A task whose networks may grow when a phase begins, and read pieces of an earlier phase as they did then."""

    def modules_of_phase(self) -> Mapping[str, Any]:
        """Returns the arguments with which `Task.add_modules` is called before the present phase; {} if nothing changes."""
        ...

    def recalled(self, phase: int) -> AbstractContextManager[None]:
        """Returns a context within which the networks are those of a phase, counted from 0."""
        ...

    def by_genre(self, genres: Iterable[str]) -> list[tuple[AbstractContextManager[None], set[str]]]:
        """Returns the genres grouped by the networks that read their pieces, each group with a context as of `recalled`."""
        ...
