"""Which tracks the names in wishes stand for, and whether the wishes can be met together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from symusic import Note, Score, Track

from etude.music.instruments import INSTRUMENT_RANGES
from etude.tokens.changes import first_metre
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_parts import Owner
from etude.tokens.miditok_vocabulary import DRUMS
from etude.tokens.note_limits import impossible
from etude.tokens.open_holes import track_owners
from etude.tokens.restrictions import owner_of_each
from etude.tokens.satb import CHOIR_AAHS, VOICES, SatbGrid
from etude.tokens.tokenizer import Tokenizer
from etude.tokens.wishes import Wishes, parse_wishes


def wishes_of(tokenizer: Tokenizer, labels: Mapping[str, Any], *, prompt: Score | None = None) -> Wishes | None:
    """Returns what labels ask of the notes, with the tracks that they name; None if nothing. prompt: as in `named_wishes`.

    Raises:
        ValueError: what can't be read, or as `named_wishes` does.
    """
    wishes = parse_wishes(labels)
    if wishes is None:
        return None
    metre = labels.get("metre") or (None if prompt is None else "{}/{}".format(*first_metre(prompt)))
    return named_wishes(tokenizer, wishes, programs=labels.get("programs"), prompt=prompt, metre=metre)


def with_key_of_chords(labels: Mapping[str, Any], *, trained: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    """Returns labels with the key that fits the chords, if some are asked for, no key is, and the model knows keys.

    trained: the values of each label in training; None where they are not known.
    """
    wishes = parse_wishes(labels)
    if wishes is None or wishes.progression is None or labels.get("key") is not None:
        return dict(labels)
    known = trained is None or trained.get("key")
    return {**labels, "key": str(wishes.scale)} if known else dict(labels)


def named_wishes(
    tokenizer: Tokenizer, wishes: Wishes, *, programs: Sequence[int] | None = None, prompt: Score | None = None,
    metre: str | None = None,
) -> Wishes:  # fmt: skip
    """Returns the wishes with the tracks that their names stand for.

    Names and numbers are those of the prompt's tracks, followed by those of `programs`; on the SATB grid those of its voices.

    Args:
        programs: what is asked to play; None leaves it to the model or the prompt.
        prompt: a score that is continued or filled in.
        metre: that of the bars, such as "3/4", if it is known.

    Raises:
        ValueError: a track that there is not, wishes that can't be met together, or that the tokenizer can't keep to.
    """
    tokenizer.check_wishes(wishes)
    score, owners = _tracks(tokenizer, programs, prompt)
    named = wishes.named(score, owners)
    _check_registers(named, [owner for owner in owners if owner is not None])
    if why := impossible(named, int(16 * Fraction(metre or "4/4"))):
        raise ValueError(why)
    return named


def _tracks(
    tokenizer: Tokenizer, programs: Sequence[int] | None, prompt: Score | None
) -> tuple[Score | None, list[Owner | None]]:
    """A score with the tracks that may play, and what they are in the tokens; None where that is left to the model."""
    score, owners = Score(480), list[Owner | None]()
    if isinstance(tokenizer, SatbGrid):
        score.tracks = [_playing(CHOIR_AAHS, name) for name in VOICES]
        return score, [(CHOIR_AAHS, voice) for voice in range(len(VOICES))]
    assert isinstance(tokenizer, MidiTokTokenizer)  # others keep to no wishes
    if prompt is not None:
        score.tracks, owners = list(prompt.tracks), track_owners(prompt, parts=tokenizer.parts)
    if programs is not None:
        score.tracks = [*score.tracks, *(_playing(int(program)) for program in programs)]
        owners += owner_of_each(list(programs), parts=tokenizer.parts)
    return (score, owners) if owners else (None, [])


def _playing(program: int, name: str = "") -> Track:
    """A track that counts as one that plays."""
    drums = program in (-1, 128)
    return Track(name=name, program=0 if drums else program, is_drum=drums, notes=[Note(0, 1, 60, 64)])


def _check_registers(wishes: Wishes, owners: Sequence[Owner]) -> None:
    """Refuses registers without a note of a chord, or for the bass, without its bass note."""
    pitched: list[Owner | None] = [*sorted({owner for owner in owners if owner[0] != DRUMS})] or [None]
    lowest = min(pitched, key=lambda owner: (INSTRUMENT_RANGES[owner[0]][0], -owner[1]) if owner else (0, 0))
    for owner in pitched:
        pitches = set(range(128))
        for one in wishes.registers:
            if one.owners is None or owner in one.owners:
                pitches &= set(range(one.low, one.high + 1))
        if not pitches:
            raise ValueError("register: two of its ranges for one track have no pitch in common; give one range for it")
        for chord in wishes.progression.chords if wishes.progression is not None else ():
            found = {pitch % 12 for pitch in pitches}
            bass = len(pitched) > 1 and owner == lowest
            if not found & chord.pitch_classes or (bass and chord.bass not in found):
                what = "the bass note" if bass else "a note"
                raise ValueError(f"register {min(pitches)} to {max(pitches)} lacks {what} of the chord {chord.symbol}; widen it")
