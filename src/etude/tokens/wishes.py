"""What is asked of the notes themselves: chords, registers, numbers of simultaneous notes and of notes in a bar."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from symusic import Score

from etude.music.chords import Progression, parse_progression
from etude.music.passages import tracks_named
from etude.music.theory import ACCIDENTALS, LETTERS, Key
from etude.tokens.miditok_parts import Owner
from etude.tokens.miditok_vocabulary import DRUMS
from etude.tokens.tokenizer import WISHES

C_MAJOR = Key(0, "major")
NO_MOST = 10**6  # of notes in a bar, where only a least number is asked for
EXAMPLES = {
    "register": "register=[36,84], register=[C2,C6] or register={bass:[28,48]}",
    "polyphony": "polyphony=4 or polyphony={violin:1}",
    "density": "density=[4,12], density=[4,null] or density={violin:[2,8]}",
}


@dataclass(frozen=True)
class Range:
    """A range of numbers, both ends included, for the notes of some tracks.

    who: the name or number of a track as the user gave it, None for all but drums.
    owners: the tracks that it stands for; None for all but drums.
    """

    who: str | int | None
    low: int
    high: int
    owners: frozenset[Owner] | None = None

    def covers(self, owner: Owner) -> bool:
        """Whether the range holds for the notes of a track."""
        return owner[0] != DRUMS if self.owners is None else owner in self.owners


@dataclass(frozen=True)
class Wishes:
    """What is asked of the notes that are written.

    progression: the chords, from the first bar that is written; None for any. scale: the key to whose scale passing notes belong.
    strict: whether only chord tones may be written.
    registers: lowest and highest MIDI pitches. polyphony: the most notes at a time. density: fewest and most notes that begin in
    a bar.
    """

    progression: Progression | None = None
    scale: Key = C_MAJOR
    strict: bool = False
    registers: tuple[Range, ...] = ()
    polyphony: tuple[Range, ...] = ()
    density: tuple[Range, ...] = ()

    @property
    def options(self) -> list[str]:
        """The options that ask for something."""
        given = (self.progression, None, self.registers, self.polyphony, self.density)
        return [name for name, value in zip(WISHES, given, strict=True) if value]

    def named(self, score: Score | None, owners: Sequence[Owner | None]) -> Wishes:
        """Returns the wishes with the tracks that their names stand for.

        Args:
            score: has a track for each that may play; None where that is left to the model. owners: the owner of each track.

        Raises:
            ValueError: a name or number that no track has, or any while the tracks are not known.
        """

        def found(option: str, ranges: tuple[Range, ...]) -> tuple[Range, ...]:
            return tuple(replace(one, owners=_owners(option, one.who, score, owners)) for one in ranges)

        return replace(
            self,
            registers=found("register", self.registers),
            polyphony=found("polyphony", self.polyphony),
            density=found("density", self.density),
        )


def _owners(option: str, who: str | int | None, score: Score | None, owners: Sequence[Owner | None]) -> frozenset[Owner] | None:
    if who is None:
        return None
    if score is None:
        raise ValueError(
            f"{option} names {who}, but which instruments play is left to the model; say it with programs=[...], such as "
            f"programs=[40,42], or give {option} for all: {EXAMPLES[option]}"
        )
    found = frozenset(owner for i in tracks_named(score, who, option=option) if (owner := owners[i]) is not None)
    if option == "register" and any(owner[0] == DRUMS for owner in found):
        raise ValueError(f"register names {who}, but drums have no pitches; leave them out")
    return found


def parse_wishes(options: Mapping[str, Any]) -> Wishes | None:
    """Returns the wishes among options named as in `WISHES`; None where nothing is asked for.

    The scale of passing notes is that of the option `key`; without it, of the key that fits the chords best.

    Raises:
        ValueError: one that can't be read or is out of its range.
    """
    given = {name: options.get(name) for name in WISHES}
    if given["chords_strict"] and given["chords"] is None:
        raise ValueError("chords_strict=true tells how strictly chords are kept to; give chords, too, or leave it out")
    if all(given[name] is None for name in WISHES if name != "chords_strict"):
        return None
    chords = None if given["chords"] is None else parse_progression(str(given["chords"]))
    key = Key.parse(str(options["key"])) if options.get("key") is not None else chords.key() if chords else C_MAJOR
    return Wishes(
        progression=chords,
        scale=key,
        strict=bool(given["chords_strict"]),
        registers=_ranges("register", given["register"]),
        polyphony=_ranges("polyphony", given["polyphony"]),
        density=_ranges("density", given["density"]),
    )


def _ranges(option: str, value: Any) -> tuple[Range, ...]:
    if value is None:
        return ()
    one = {"register": _register, "polyphony": _polyphony, "density": _density}[option]
    if not isinstance(value, Mapping):
        return (Range(None, *one(value)),)
    if not value:
        raise ValueError(f"{option} is empty; write {EXAMPLES[option]}, or leave it out")
    return tuple(Range(None if who == "all" else who, *one(of)) for who, of in value.items())


def _register(value: Any) -> tuple[int, int]:
    low, high = (_pitch(end) for end in _pair("register", value))
    if not 0 <= low <= high <= 127:
        raise ValueError(f"register is {_shown(value)}; give MIDI pitches from 0 to 127, the lower first: {EXAMPLES['register']}")
    return low, high


def _polyphony(value: Any) -> tuple[int, int]:
    if not _whole(value) or value < 1:
        raise ValueError(f"polyphony is {_shown(value)}; give the most notes at a time, 1 or more: {EXAMPLES['polyphony']}")
    return 0, int(value)


def _density(value: Any) -> tuple[int, int]:
    low, high = (value, value) if _whole(value) else _pair("density", value)
    low, high = 0 if low is None else low, NO_MOST if high is None else high
    if not (_whole(low) and _whole(high) and 0 <= low <= high and high >= 1):
        raise ValueError(
            f"density is {_shown(value)}; give the fewest and the most notes that begin in a bar: {EXAMPLES['density']}"
        )
    return low, high


def _pair(option: str, value: Any) -> tuple[Any, Any]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{option} is {_shown(value)}; write {EXAMPLES[option]}")
    return value[0], value[1]


def _pitch(value: Any) -> int:
    if _whole(value):
        return int(value)
    match = re.fullmatch(r"([A-Ga-g])([#b♯♭]?)(-?\d)", str(value))
    if match is None:
        raise ValueError(f"register has {value}, which is no pitch; give a MIDI number or a name such as C4 (60)")
    letter, accidental, octave = match.groups()
    return 12 * (int(octave) + 1) + LETTERS[letter.upper()] + ACCIDENTALS[accidental]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return str(value).replace(" ", "").replace("None", "null")
