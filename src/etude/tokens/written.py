"""What has been written so far of a REMI sequence, as far as rules about its notes need to know.

Times are in 48ths of a quarter since the start of the bar; positions are in twelfths of the beat of the metre, as in its tokens.
"""

from typing import NamedTuple

from etude.tokens.grammar import State
from etude.tokens.miditok_parts import Owner
from etude.tokens.miditok_vocabulary import BAR, DURATION, PART, PITCH, PITCH_DRUM, POSITION, PROGRAM, TokenTable
from etude.tokens.remi_grammar import NO_PROGRAM
from etude.tokens.wishes import Range

STEADY = 0.8  # how much a track's mean pitch keeps of its value at each note


class Heard(NamedTuple):
    """What a track has played: its latest pitch, whether that was a passing note, the mean of its pitches (recent ones most).

    several: whether notes of it have begun together.
    """

    pitch: int
    passing: bool
    mean: float
    several: bool = False


class Written(NamedTuple):
    """What has been written.

    inner: the state of the grammar. bar: bars begun behind the prompt, 0 in it. part: of the current program.
    sounding: (end, track, pitch) of the notes that go on beyond the present position.
    here: (track, pitch) of those that begin at it.
    begun: how many notes have begun in the bar, for each range of `density`. pitch: of the latest note.
    heard: track -> what it has played, as sorted pairs. known: the same as it was before the present position.
    """

    inner: State
    bar: int = 0
    part: int = 0
    sounding: tuple[tuple[int, Owner, int], ...] = ()
    here: tuple[tuple[Owner, int], ...] = ()
    begun: tuple[int, ...] = ()
    pitch: int = 0
    heard: tuple[tuple[Owner, Heard], ...] = ()
    known: tuple[tuple[Owner, Heard], ...] = ()

    @property
    def position(self) -> int:
        """The present position, -1 at the start of a bar."""
        position: int = self.inner[0][1]
        return position

    @property
    def size(self) -> int:
        """Positions in the bar."""
        size: int = self.inner[0][2]
        return size

    @property
    def denominator(self) -> int:
        """The denominator of the metre."""
        denominator: int = self.inner[0][3]
        return denominator

    @property
    def owner(self) -> Owner | None:
        """The track that a note would belong to if it were written without naming one; None if it has to."""
        program: int = self.inner[0][4]
        return None if program == NO_PROGRAM else (program, self.part)

    def time(self, position: int) -> int:
        """The time of a position in this bar."""
        return position * 16 // self.denominator

    def position_of(self, time: int) -> int:
        """The first position in this bar at which a time has come."""
        return -(-time * self.denominator // 16)


def pulse(size: int, denominator: int) -> int:
    """Positions between strong positions: a beat, or three of them where the metre has beats of three, such as 6/8."""
    threes = denominator >= 8 and (size // 12) % 3 == 0
    return 36 if threes else 12


def follows(before: Written, token: int, inner: State, *, table: TokenTable, free: bool, ranges: tuple[Range, ...]) -> Written:
    """Returns what has been written after a token, except whether its note is a passing one.

    inner: the state of the grammar after it. free: whether the token belongs to the prompt. ranges: those of `density`.
    """
    kind, number = int(table.kind[token]), int(table.number[token])
    now = before._replace(inner=inner)
    if kind == BAR:
        length = before.time(before.size)
        ringing = tuple((end - length, owner, pitch) for end, owner, pitch in before.sounding if end > length)
        return now._replace(bar=before.bar + (not free), sounding=ringing, here=(), begun=(0,) * len(ranges), known=now.heard)
    if kind == POSITION:
        time = now.time(number)
        return now._replace(sounding=tuple(note for note in before.sounding if note[0] > time), here=(), known=now.heard)
    if kind in (PROGRAM, PART):
        return now._replace(part=number if kind == PART else 0)
    if kind in (PITCH, PITCH_DRUM):
        return now._replace(pitch=number)
    if kind == DURATION and before.owner is not None:
        owner = before.owner
        end = before.time(before.position + int(table.units[token]))
        return now._replace(
            sounding=(*before.sounding, (end, owner, before.pitch)),
            here=(*before.here, (owner, before.pitch)),
            begun=tuple(count + one.covers(owner) for count, one in zip(before.begun, ranges, strict=True)),
            heard=_heard(before, owner, before.pitch),
        )
    return now


def _heard(before: Written, owner: Owner, pitch: int) -> tuple[tuple[Owner, Heard], ...]:
    heard = dict(before.heard)
    old = heard.get(owner, Heard(pitch, False, pitch))
    several = old.several or any(who == owner for who, _ in before.here)
    heard[owner] = Heard(pitch, False, round(STEADY * old.mean + (1 - STEADY) * pitch, 2), several)
    return tuple(sorted(heard.items()))
