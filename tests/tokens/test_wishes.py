"""What is asked of the notes holds in every sequence that the grammar allows; measured on decoded scores."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.music.chords import parse_progression
from etude.tokens.grammar import EOS, Decoder
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_vocabulary import BAR
from etude.tokens.open_holes import hole_decoder, open_hole, tracks_of
from etude.tokens.wished_tracks import named_wishes
from etude.tokens.wishes import parse_wishes
from tests.tokens.test_infilling import quartet

TOKENIZER = MidiTokTokenizer(parts=4, infill=True)
EXPLICIT = MidiTokTokenizer(parts=4, infill=True, program_changes=False)
each = pytest.mark.parametrize("tokenizer", [TOKENIZER, EXPLICIT], ids=["changes", "explicit"])
seeds = st.integers(0, 2**31 - 1)
PARTS = [40, 40, 42]


def walk(
    tokenizer: MidiTokTokenizer, decoder: Decoder, seed: int, *, prompt: list[int] | None = None, most: int = 3000
) -> list[int]:
    """Random allowed tokens to the end: of a random kind, so that bars end, and bar lines rarer than notes."""
    random, table = np.random.default_rng(seed), tokenizer.table
    for token in prompt or []:
        decoder.push([token])
    ids: list[int] = []
    while not decoder.finished.all():
        assert len(ids) < most
        allowed = np.flatnonzero(decoder.allowed()[0])
        kinds = table.kind[allowed]
        found = np.unique(kinds)
        weights = np.where((found == BAR) | (found == 0), 0.2, 1.0)
        kind = random.choice(found, p=weights / weights.sum())
        ids.append(int(random.choice(allowed[kinds == kind])))
        decoder.push([ids[-1]])
    assert ids[-1] == EOS
    return ids


Noted = tuple[tuple[int, int], int, int, int]  # program and part, onset, end, pitch


def noted(tokenizer: MidiTokTokenizer, ids: list[int]) -> list[Noted]:
    return [
        (owner, n.time, n.end, n.pitch)
        for owner, track in tracks_of(tokenizer, ids).items()
        for n in track.notes
        if owner[0] >= 0
    ]


def written(
    tokenizer: MidiTokTokenizer, seed: int, *, num_bars: int = 4, programs: list[int] | None = None, metre: str = "4/4",
    **asked: Any,
) -> list[Noted]:  # fmt: skip
    wishes = parse_wishes(asked)
    assert wishes is not None
    labels = {"programs": programs, "metre": metre}
    named = named_wishes(tokenizer, wishes, programs=programs, metre=metre)
    decoder = tokenizer.decoder(1, num_bars=num_bars, labels=labels, wishes=named)
    return noted(tokenizer, walk(tokenizer, decoder, seed))


def per_bar(found: list[Noted], num_bars: int = 4) -> list[int]:
    counts: list[int] = np.histogram([onset for _, onset, _, _ in found], 1920 * np.arange(num_bars + 1))[0].tolist()
    return counts


def most_at_a_time(found: list[Noted]) -> int:
    return max((sum(onset <= at < end for _, onset, end, _ in found) for _, at, _, _ in found), default=0)


@each
@pytest.mark.parametrize(("metre", "programs"), [("4/4", PARTS), ("3/4", [0]), ("6/8", None), ("5/8", [32, 40])])
@given(seed=seeds)
@settings(max_examples=8, deadline=None)
def test_chords_sound_on_strong_positions_and_passing_notes_are_short(
    tokenizer: MidiTokTokenizer, metre: str, programs: list[int] | None, seed: int
) -> None:
    text = "Dm7 | G7 C/E | Am7 | F#m7b5"
    progression, num_bars = parse_progression(text), 5
    found = written(tokenizer, seed, num_bars=num_bars, programs=programs, metre=metre, chords=text)
    numerator, denominator = (int(part) for part in metre.split("/"))
    bar = 480 * 4 * numerator // denominator
    beat = 720 if metre == "6/8" else 480 * 4 // denominator
    scale = progression.key()
    for _, onset, end, pitch in found:
        tick = onset
        while tick < min(end, num_bars * bar):
            number, inside = divmod(tick, bar)
            chords = progression.bar(number)
            index = min(inside * len(chords) // bar, len(chords) - 1)
            chord, until = chords[index], number * bar + bar * (index + 1) // len(chords)
            assert chord is not None
            if pitch % 12 not in chord.pitch_classes:
                assert tick == onset, "rings on into a chord that it does not belong to"
                assert pitch % 12 in chord.scale(scale)
                assert inside % beat != 0 and end <= min(until, number * bar + (inside // beat + 1) * beat)
            tick = until


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_the_bass_has_the_bass_note_where_a_chord_begins_and_nothing_is_lower(seed: int) -> None:
    text = "Dm7 | G7 C/E"
    found = written(TOKENIZER, seed, num_bars=4, programs=PARTS, chords=text)
    for at, bass in ((0, 2), (1920, 7), (2880, 4), (3840, 2), (5760, 7), (6720, 4)):
        struck = [pitch for owner, onset, _, pitch in found if onset == at and owner == (42, 0)]
        assert struck and min(struck) % 12 == bass
        sounding = [pitch for _, onset, end, pitch in found if onset <= at < end]
        assert min(sounding) % 12 == bass


def test_strict_chords_have_no_other_notes() -> None:
    for seed in range(5):
        found = written(TOKENIZER, seed, programs=PARTS, chords="C Am", chords_strict=True)
        for _, onset, _, pitch in found:
            assert pitch % 12 in ({0, 4, 7} if onset // 1920 % 2 == 0 else {9, 0, 4})


def test_no_chord_leaves_a_bar_free() -> None:
    found = {n[-1] % 12 for seed in range(8) for n in written(TOKENIZER, seed, num_bars=1, chords="NC")}
    assert len(found) > 9


@each
@given(seed=seeds)
@settings(max_examples=8, deadline=None)
def test_registers_polyphony_and_density(tokenizer: MidiTokTokenizer, seed: int) -> None:
    found = written(
        tokenizer, seed, programs=PARTS, register={"all": [40, 80], "cello": ["C2", 55], 1: [60, 90]},
        polyphony={"all": 3, "cello": 1}, density={"all": [5, 9], "violin": [None, 6]},
    )  # fmt: skip
    violins, cello = ([note for note in found if note[0][0] == program] for program in (40, 42))
    assert all(40 <= pitch <= 80 for *_, pitch in found)
    assert all(pitch <= 55 for *_, pitch in cello)
    assert all(pitch >= 60 for owner, *_, pitch in found if owner == (40, 0))
    assert most_at_a_time(found) <= 3
    assert most_at_a_time(cello) <= 1
    assert all(5 <= count <= 9 for count in per_bar(found))
    assert all(count <= 6 for count in per_bar(violins))


@given(seed=seeds, low=st.integers(1, 16))
@settings(max_examples=25, deadline=None)
def test_a_single_voice_has_the_notes_asked_for(seed: int, low: int) -> None:
    found = written(TOKENIZER, seed, programs=[40], polyphony=1, density=low, chords="C F")
    assert per_bar(found) == [low] * 4


@given(seed=seeds, low=st.integers(1, 16), programs=st.sampled_from([[40], None]))
@settings(max_examples=20, deadline=None)
def test_a_tune_stays_one_to_have_enough_notes(seed: int, low: int, programs: list[int] | None) -> None:
    found = written(TOKENIZER, seed, num_bars=3, programs=programs, density=[low, low])
    assert per_bar(found, 3) == [low] * 3
    if programs is not None:
        assert len({onset for _, onset, _, _ in found}) == len(found)


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_a_prompt_is_free_and_chords_begin_behind_it(seed: int) -> None:
    prompt = quartet(2)
    wishes = parse_wishes({"chords": "C F", "register": {"cello": [36, 50]}, "polyphony": 4})
    assert wishes is not None
    named = named_wishes(TOKENIZER, wishes, prompt=prompt)
    body = TOKENIZER.encode(prompt)
    decoder = TOKENIZER.decoder(1, num_bars=5, labels={"metre": "3/4"}, prompt=body, wishes=named)
    found = noted(TOKENIZER, [*body.tolist(), *walk(TOKENIZER, decoder, seed, prompt=body.tolist())])
    new = [note for note in found if note[1] >= 2 * 1440]
    assert all(pitch <= 50 for owner, *_, pitch in new if owner == (42, 0))
    assert most_at_a_time(new) <= 4
    for _, onset, _, pitch in new:
        if onset % 480 == 0:
            assert pitch % 12 in ({0, 4, 7}, {5, 9, 0})[onset // 1440 % 2]
    assert min(pitch for owner, onset, _, pitch in new if owner == (42, 0) and onset == 2 * 1440) % 12 == 0


@pytest.mark.parametrize("tracks", [None, (3,), (0, 1)])
@given(seed=seeds)
@settings(max_examples=6, deadline=None)
def test_a_hole_is_filled_with_the_chords(tracks: tuple[int, ...] | None, seed: int) -> None:
    from etude.music.passages import Passage

    score = quartet(6)
    wishes = parse_wishes({"chords": "C F", "density": [2, 7]})
    assert wishes is not None
    named = named_wishes(TOKENIZER, wishes, prompt=score)
    hole = open_hole(TOKENIZER, score, Passage(2, 4, tracks), ahead=2, most_tokens=600)
    decoder = hole_decoder(TOKENIZER, hole, batch=1, wishes=named)
    found = noted(TOKENIZER, walk(TOKENIZER, decoder, seed, prompt=hole.ids.tolist()))
    for _, onset, _, pitch in found:
        if onset % 480 == 0:
            assert pitch % 12 in ({0, 4, 7}, {5, 9, 0})[onset // 1440]
    for onset, bass in ((0, 0), (1440, 5)) if tracks != (0, 1) else ():
        assert min(note[3] for note in found if note[1] == onset) % 12 == bass
    assert all(2 <= count <= 7 for count in np.histogram([onset for _, onset, _, _ in found], [0, 1440, 2880])[0])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"chords": "Hm"}, "'Hm' is no chord symbol"), ({"chords_strict": True}, "give chords, too"),
        ({"register": [50, 40]}, "the lower first"), ({"register": 50}, "write register="),
        ({"register": ["X", "C4"]}, "no pitch"),
        ({"register": {"bass": [28, 48]}}, "register has bass, which the piece lacks.*Violin"), ({"polyphony": 0}, "1 or more"),
        ({"polyphony": [1, 2]}, "polyphony is"), ({"density": [5, 3]}, "fewest and the most"), ({"density": [0, 0]}, "fewest"),
        ({"density": {}}, "density is empty"), ({"register": {7: [40, 50]}}, "register has 7"),
        ({"density": 40, "polyphony": 1}, "32"),
        ({"register": [60, 61], "chords": "G"}, "lacks a note of the chord G"),
        ({"register": {"cello": [62, 64]}, "chords": "C"}, "lacks the bass note of the chord C"),
        ({"register": {"cello": [36, 40], "all": [60, 80]}}, "no pitch in common"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_refused_in_one_line(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        wishes = parse_wishes(asked)
        assert wishes is not None
        named_wishes(TOKENIZER, wishes, programs=PARTS, metre="4/2")
    assert "\n" not in str(refused.value)


def test_names_need_tracks_and_wishes_need_tokens_that_can_be_held_to_them() -> None:
    wishes = parse_wishes({"polyphony": {"violin": 1}, "chords": "C"})
    assert wishes is not None and parse_wishes({"chords": None, "chords_strict": False}) is None
    with pytest.raises(ValueError, match=r"polyphony names violin.*programs=\[40,42\]"):
        named_wishes(TOKENIZER, wishes)
    for tokenizer in (MidiTokTokenizer(scheme="TSD"), MidiTokTokenizer(scheme="Octuple")):
        with pytest.raises(ValueError, match=r"chords, polyphony can't be kept to.*tokenizer=remi"):
            named_wishes(tokenizer, wishes, programs=[40])
