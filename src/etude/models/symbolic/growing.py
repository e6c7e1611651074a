"""What networks that grow between the phases of a run have in common: parts, and which phases each part was trained in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

UNFIT = "model={} grows with the phases of task=language_model, which reads from left to right; set another model=, such as tiny"


class Parts:
    """The parts of a network that grew one after another; the first is what it was built with.

    phases: for each part the names of the phases that it was trained in. active: the part that the network computes with now,
    counted from 0; those before it are used, too, those behind it are not.
    """

    def __init__(self) -> None:
        self.phases: list[set[str]] = [set()]
        self.active = 0

    @property
    def newest(self) -> int:
        """The number of the part that is trained, from 0."""
        return len(self.phases) - 1

    def begin(self, phase: str, *, after: str, grown: bool) -> None:
        """Notes that after the phase `after` the phase `phase` is trained, on a new part if the network has grown."""
        self.phases[-1].add(after)
        if grown:
            self.phases.append(set())
        self.phases[-1].add(phase)
        self.active = self.newest

    def of_phase(self, phase: str) -> int:
        """Returns the number of the latest part that was trained in a phase; that of the newest part for an unknown one."""
        return next((number for number in range(self.newest, -1, -1) if phase in self.phases[number]), self.newest)

    def of_genre(self, genre: str) -> int:
        """Returns the number of the latest part with a phase of this genre, alone or among others (`folk+rock`)."""
        found = [number for number, names in enumerate(self.phases) if any(genre in name.split("+") for name in names)]
        return found[-1] if found else self.newest

    def knows(self, genre: str) -> bool:
        """Whether the name of any phase has this genre; if not, `of_genre` returns the newest part."""
        return any(genre in name.split("+") for names in self.phases for name in names)

    @contextmanager
    def reading(self, number: int) -> Iterator[None]:
        """Within this context the network computes with the part of this number and those before it."""
        before, self.active = self.active, number
        try:
            yield
        finally:
            self.active = before


@runtime_checkable
class Grows(Protocol):
    """A network that grows between phases.

    parts: what has grown so far. threshold: the loss in nats per token above which a phase gets a part of its own; None if every
    phase does.
    """

    parts: Parts
    threshold: float | None

    def grow(self) -> None:
        """Adds a part. Draws from PyTorch's global random generator."""
        ...

    def frozen_names(self) -> Sequence[str]:
        """Returns the names of the parameters that are not trained any more: those of all parts but the newest."""
        ...
