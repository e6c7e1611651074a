"""The protocol of tasks that grade audio; the others are in `etude.core.protocols`."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Grades(Protocol):
    """A task that grades audio. It has methods only, so that its class can be checked, too."""

    def grade(self, samples_bn: Tensor) -> Mapping[str, Tensor]:
        """Returns what `etude.tasks.grader.Grader.grade` does of segments [b, n] at the rate of its mel contract."""
        ...
