"""Protocols of layers whose units can be pruned, or grow; see `etude.core.protocols`."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasUnits(Protocol):
    """A layer whose output is a sum over units, such as attention heads.

    unit_name: what they are: "heads" or "units". output: the linear layer that adds them up. Its columns belong to the units, one
    unit after the other, equally many to each.
    """

    unit_name: str
    output: nn.Linear

    @property
    def num_units(self) -> int:
        """How many units there are."""
        ...


@runtime_checkable
class HasHiddenUnits(HasUnits, Protocol):
    """A layer of hidden units, each of which is one row of every layer in `incoming` and one column of `output`.

    width: only the first so many units compute; None for all.
    """

    width: int | None

    @property
    def incoming(self) -> Sequence[nn.Linear]:
        """The layers that compute the units."""
        ...
