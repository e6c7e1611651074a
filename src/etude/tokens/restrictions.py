"""What may be written in a sample: tracks, metres and tempos that were asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from etude.tokens.miditok_parts import Owner
from etude.tokens.miditok_vocabulary import DRUMS


@dataclass(frozen=True)
class Restrictions:
    """What may be written.

    owners: program and part of the tracks that may play; None for any.
    metres: the TimeSig token of each bar, the last one also for all later bars; empty for any metres.
    tempos: the Tempo tokens that may be written; None for any.
    free: so many body tokens at the start are a prompt, which may be anything.
    hole: the prompt ends where a hole begins: only bars after it are counted, and all of them may stay silent.
    """

    owners: frozenset[Owner] | None = None
    metres: tuple[int, ...] = ()
    tempos: frozenset[int] | None = None
    free: int = 0
    hole: bool = False


def owner_of_each(programs: Sequence[int], *, parts: int) -> list[Owner]:
    """Returns the track of each program of a list: [40, 40, 42] are two parts of program 40 and one of 42; -1 and 128 are drums.

    Raises:
        ValueError: a program occurs more often than the tokenizer keeps parts apart.
    """
    found: list[Owner] = []
    for program in programs:
        number = DRUMS if program in (-1, 128) else int(program)
        part = sum(owner[0] == number for owner in found) if number != DRUMS else 0
        if part >= parts:
            raise ValueError(f"programs has {number} more than {parts} times; this model keeps at most {parts} of them apart")
        found.append((number, part))
    return found


def owners_of_programs(programs: Sequence[int], *, parts: int) -> frozenset[Owner]:
    """Returns the tracks of `owner_of_each`. Raises: ValueError as there."""
    return frozenset(owner_of_each(programs, parts=parts))
