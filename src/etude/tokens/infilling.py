"""Infilling with a left-to-right model: what is missing from a passage comes after what surrounds it.

A REMI sequence with a hole has this order:

    bars before the hole
    Ahead   the bars of the hole without what is missing, and some bars after it
    Back    the programs of the tracks that are missing, then the bars of the hole with nothing but their notes
    the bars that follow those after Ahead

Missing are all notes of the hole's bars, or those of some tracks. So one model continues, fills bars in, rewrites a part and
accompanies a melody (a hole of all bars and all other tracks). Where whole bars are missing, Back is followed by no programs.
Tempo changes are never missing. The first note after Ahead, and the first of the hole, names its program, as in a new piece.

The positions of the tokens are those of the music: what is missing follows the bars before the hole, as in an ordinary sequence,
and what is seen ahead lies as far behind it as the hole is expected to be long. So a model needs to learn nothing new to
continue what comes before, and distances to what follows are about the same in every hole.

Source: the order is that of Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle", but the hole
stays near its place, as controls do in Thickstun et al. 2023, "Anticipatory Music Transformer"; pieces longer than a row can so
be cut before and after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from etude.tokens.miditok_parts import Owner
from etude.tokens.miditok_timeline import last
from etude.tokens.miditok_vocabulary import (
    AHEAD,
    BACK,
    BAR,
    PART,
    PITCH,
    PITCH_DRUM,
    POSITION,
    PROGRAM,
    TEMPO,
    TIME_SIG,
    TokenTable,
)
from etude.tokens.restrictions import Restrictions

LONGEST_GAP = 8  # bars between two holes of a training piece, at most
LOG_LONGEST = 4.0  # a hole of all tracks has up to 2**4 bars
LOG_AHEAD = 3.0  # and up to 2**3 bars after it are seen
NOTHING_AHEAD = 0.2  # probability that none are
SOME_TRACKS = 0.5  # probability that only some tracks are missing, where several play
LONG = 0.3  # probability that these are missing for as many bars as have room
NEAR = 8  # bars before a hole from which its size is guessed
EMPTY_BAR = 48  # tokens of a bar where none is seen
GROWTH = 1.25  # a hole's bars take so many times the tokens, as positions and programs are written twice


@dataclass(frozen=True)
class Hole:
    """Notes that are missing from bars [start, end); bars [end, ahead) are seen before they are filled in.

    owners: program and part of the tracks whose notes are missing; None for all tracks.
    """

    start: int
    end: int
    ahead: int
    owners: frozenset[Owner] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= self.ahead:
            raise ValueError(f"a hole of bars [{self.start}, {self.end}), seen up to {self.ahead}, must be in this order")


@dataclass(frozen=True)
class OpenHole:
    """What a model is given to fill a hole.

    ids: the body tokens up to where the missing notes begin. positions: theirs. inside: whether they begin inside the piece.
    restrictions: what may be written. num_bars: of the hole.
    """

    ids: np.ndarray
    positions: np.ndarray
    inside: bool
    restrictions: Restrictions
    num_bars: int


class Bars:
    """The bars and notes of a REMI sequence.

    ids: base ids of a body, int [n], which begin with a Bar token. table: of the vocabulary.
    """

    def __init__(self, ids: np.ndarray, table: TokenTable) -> None:
        self.ids, self.table = ids, table
        self.kind, self.number = table.kind[ids], table.number[ids]
        self.starts = np.append(np.flatnonzero(self.kind == BAR), len(ids))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def owner(self) -> list[Owner]:
        """Program and part that each token's note would have."""
        program = last(self.number, self.kind == PROGRAM, 0)
        switch = (self.kind == PROGRAM) | (self.kind == PART)
        part = last(np.where(self.kind == PART, self.number, 0), switch, 0)
        return list(zip(program.tolist(), part.tolist(), strict=True))

    @cached_property
    def owners(self) -> list[frozenset[Owner]]:
        """The program and part of every track that begins a note in each bar."""
        notes = np.flatnonzero((self.kind == PITCH) | (self.kind == PITCH_DRUM))
        bars = np.searchsorted(self.starts, notes, side="right") - 1
        found: list[set[Owner]] = [set() for _ in range(len(self))]
        for note, bar in zip(notes.tolist(), bars.tolist(), strict=True):
            found[bar].add(self.owner[note])
        return [frozenset(owners) for owners in found]

    def size(self, start: int, end: int) -> int:
        """Number of tokens of bars [start, end)."""
        return int(self.starts[end] - self.starts[start])


@dataclass(frozen=True)
class Infilled:
    """A sequence with holes.

    ids: int32 [n]. positions: of each token, int64 [n].
    cuts: the indices at which it may be cut, int64: at bars outside of holes.
    """

    ids: np.ndarray
    cuts: np.ndarray
    positions: np.ndarray


def reordered(bars: Bars, holes: Sequence[Hole], *, program_changes: bool) -> Infilled:
    """Returns the sequence with holes.

    holes: in order, each with its bars within the piece and after those of the hole before.
    program_changes: whether the tokenizer names a program only where it changes.
    """
    copy = _Copy(bars, program_changes=program_changes)
    at = 0
    for hole in holes:
        copy.bars(at, hole.start, cuts=True)
        copy.cuts.append(len(copy.out))
        behind = copy.surroundings(hole)
        copy.bars(hole.start, hole.end, only=hole)
        copy.goes_on(max(behind, copy.position))
        at = hole.ahead
    copy.bars(at, len(bars), cuts=True)
    return Infilled(np.array(copy.out, dtype=np.int32), np.array(copy.cuts, dtype=np.int64), copy.positions)


def opening(bars: Bars, hole: Hole, *, program_changes: bool, most_tokens: int) -> tuple[Infilled, bool]:
    """Returns what comes before the missing notes, and whether it begins inside the piece.

    most_tokens: bars before the hole are left out where all of it would take more tokens.
    """
    for first in range(hole.start + 1):
        copy = _Copy(bars, program_changes=program_changes)
        copy.bars(first, hole.start)
        copy.surroundings(hole)
        if len(copy.out) <= most_tokens or first == hole.start:
            break
    return Infilled(np.array(copy.out, dtype=np.int32), np.array([], dtype=np.int64), copy.positions), first > 0


def expected_size(bars: Bars, hole: Hole) -> int:
    """The tokens that a hole is expected to have: those of as many bars around it, as far as they are seen."""
    first = max(0, hole.start - NEAR)
    around, size = hole.start - first + hole.ahead - hole.end, bars.size(first, hole.start) + bars.size(hole.end, hole.ahead)
    return round((hole.end - hole.start) * (size / around if around else EMPTY_BAR))


def only(bars: Bars, owner: Owner, *, program_changes: bool) -> np.ndarray:
    """Returns the bars with nothing but the notes of one track, int32."""
    copy = _Copy(bars, program_changes=program_changes)
    copy.bars(0, len(bars), only=Hole(0, len(bars), len(bars), frozenset({owner})))
    return np.array(copy.out, dtype=np.int32)


def uncounted(ids: np.ndarray, table: TokenTable) -> np.ndarray:
    """Returns which tokens tell where a hole is rather than music, bool [n]: Ahead, Back and the programs after it."""
    kind = table.kind[ids]
    behind = last(kind, np.isin(kind, (AHEAD, BACK, BAR)), BAR)
    found: np.ndarray = (kind == AHEAD) | (behind == BACK)
    return found


class _Copy:
    """Copies bars of a sequence, with all or some of their notes, to a new one."""

    def __init__(self, bars: Bars, *, program_changes: bool) -> None:
        self._bars, self._program_changes = bars, program_changes
        self._ids, self._kind, self._owner = bars.ids.tolist(), bars.kind.tolist(), bars.owner
        table = bars.table
        self._programs = {int(table.number[i]): int(i) for i in table.of_kind[PROGRAM]}
        self._parts = {int(table.number[i]): int(i) for i in table.of_kind[PART]}
        self._written: Owner | None = None
        self.out: list[int] = []
        self.cuts: list[int] = []
        self._jumps: list[tuple[int, int]] = [(0, 0)]  # (index, position) from which positions count on

    @property
    def positions(self) -> np.ndarray:
        """The position of each token written so far, int64."""
        index, position = np.array(self._jumps, dtype=np.int64).T
        run = np.searchsorted(index, np.arange(len(self.out)), side="right") - 1
        found: np.ndarray = position[run] + np.arange(len(self.out)) - index[run]
        return found

    @property
    def position(self) -> int:
        """The position of the next token."""
        index, position = self._jumps[-1]
        return position + len(self.out) - index

    def goes_on(self, position: int) -> None:
        """Sets the position of the next token."""
        self._jumps.append((len(self.out), position))

    def surroundings(self, hole: Hole) -> int:
        """Writes everything from Ahead to the programs of the tracks that are missing; returns the position behind what is
        seen ahead."""
        start = self.position
        self._mark(AHEAD)
        self.goes_on(start + 1 + expected_size(self._bars, hole))
        self.bars(hole.start, hole.ahead, without=hole)
        behind = self.position
        self.goes_on(start + 1)
        self._mark(BACK)
        for owner in sorted(hole.owners or ()):
            self.out += self._tokens(owner)
        self._written = None
        return behind

    def _mark(self, kind: int) -> None:
        self.out.append(int(self._bars.table.of_kind[kind][0]))
        self._written = None

    def bars(self, start: int, end: int, *, without: Hole | None = None, only: Hole | None = None, cuts: bool = False) -> None:
        """Copies bars [start, end): without the notes of a hole, or nothing but these, or all."""
        for bar in range(start, end):
            if cuts:
                self.cuts.append(len(self.out))
            hole = without if without is not None and without.start <= bar < without.end else only
            self._copied(bar, hole, inside=only is not None)

    def _copied(self, bar: int, hole: Hole | None, *, inside: bool) -> None:
        position: list[int] = []
        out, first, end = self.out, int(self._bars.starts[bar]), int(self._bars.starts[bar + 1])
        for i in range(first, end):
            kind = self._kind[i]
            if kind in (PITCH, PITCH_DRUM):
                owner = self._owner[i]
                if hole is None or (hole.owners is None or owner in hole.owners) == inside:
                    out += [*position, *self._named(owner), *self._ids[i : i + 3]]
                    position = []
            elif kind == POSITION:
                position = [self._ids[i]]
            elif kind in (BAR, TIME_SIG):
                out.append(self._ids[i])
            elif kind == TEMPO and not inside:
                out += [*position, self._ids[i]]
                position = []

    def _named(self, owner: Owner) -> list[int]:
        """The tokens that name an owner, none if it is the one before."""
        if owner == self._written:
            return []
        if self._program_changes:
            self._written = owner
        return self._tokens(owner)

    def _tokens(self, owner: Owner) -> list[int]:
        program, part = owner
        return [self._programs[program], *([self._parts[part]] if part else [])]


def draw_holes(bars: Bars, random: np.random.Generator, *, most_tokens: int) -> list[Hole]:
    """Returns holes at random places of a training piece.

    Gaps are uniform from 0 to 8 bars. A hole of all tracks has 1 to 16 bars and up to 8 bars are seen behind it, both uniform on
    a logarithmic scale. Where several tracks play, in half of the holes a random part of them is missing.

    most_tokens: a hole with what is seen of it takes at most about so many tokens; longer ones are made shorter.
    """
    holes: list[Hole] = []
    at = int(random.integers(0, LONGEST_GAP + 1))
    while at < len(bars):
        length = round(2 ** random.uniform(0, LOG_LONGEST))
        behind = 0 if random.random() < NOTHING_AHEAD else round(2 ** random.uniform(0, LOG_AHEAD))
        some, long = random.random() < SOME_TRACKS, random.random() < LONG
        owners = bars.owners[at].union(*bars.owners[at : at + length])
        chosen = None
        if some and len(owners) > 1:
            order = sorted(owners)
            kept = random.permutation(len(order))[: int(random.integers(1, len(order)))]
            chosen = frozenset(order[i] for i in kept.tolist())
            length = len(bars) if long else length
        hole = _fitted(bars, at, at + length, at + length + behind, chosen, most_tokens=most_tokens)
        if hole is not None:
            holes.append(hole)
        at = (hole.ahead if hole is not None else at + 1) + int(random.integers(0, LONGEST_GAP + 1))
    return holes


def _fitted(bars: Bars, start: int, end: int, ahead: int, owners: frozenset[Owner] | None, *, most_tokens: int) -> Hole | None:
    """Returns the hole within the piece and with room for its tokens; None if one bar alone has too many."""
    room = most_tokens / GROWTH
    last_bar = int(np.searchsorted(bars.starts, bars.starts[start] + room, side="right")) - 1
    ahead = min(ahead, len(bars), last_bar)
    end = min(end, ahead)
    return Hole(start, end, ahead, owners) if end > start else None
