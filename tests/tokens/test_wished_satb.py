"""Chords and registers hold in every grid of four voices that may be written."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.music.chords import Chord, parse_progression
from etude.tokens.grammar import EOS
from etude.tokens.satb import SatbGrid
from etude.tokens.wished_tracks import wishes_of

GRID = SatbGrid()
seeds = st.integers(0, 2**31 - 1)


def written(seed: int, *, num_bars: int = 4, prompt: np.ndarray | None = None, **labels: Any) -> np.ndarray:
    """Frames [f, 4] of random allowed tokens, those of the prompt included."""
    random, before = np.random.default_rng(seed), [] if prompt is None else prompt.tolist()
    decoder = GRID.decoder(1, num_bars=num_bars, prompt=prompt, wishes=wishes_of(GRID, labels))
    for token in before:
        decoder.push([token])
    ids: list[int] = []
    while not decoder.finished.all():
        ids.append(int(random.choice(np.flatnonzero(decoder.allowed()[0]))))
        decoder.push([ids[-1]])
    assert ids[-1] == EOS
    return GRID.decode_frames([*before, *ids])


def chord_at(text: str, frame: int) -> tuple[Chord, bool]:
    chords = parse_progression(text).bar(frame // 16)
    chord = chords[frame % 16 * len(chords) // 16]
    assert chord is not None
    return chord, frame % (16 // len(chords)) == 0


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_chords_sound_on_beats_and_passing_notes_are_steps_between_them(seed: int) -> None:
    text = "Dm7 | G7 C/E | Am | F"
    frames = written(seed, chords=text)
    scale = parse_progression(text).key()
    assert len(frames) == 64
    for frame, pitches in enumerate(frames.tolist()):
        chord, begins = chord_at(text, frame)
        if begins:
            assert pitches[3] % 12 == chord.bass and min(pitch for pitch in pitches if pitch >= 0) == pitches[3]
        for voice, pitch in enumerate(pitches):
            if pitch < 0 or pitch % 12 in chord.pitch_classes:
                continue
            before = int(frames[frame - 1, voice])
            assert frame % 4 and pitch % 12 in chord.scale(scale) and abs(pitch - before) <= 2
            assert before == pitch or before % 12 in chord.pitch_classes, "two passing notes in a row"


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_registers_and_strict_chords(seed: int) -> None:
    frames = written(seed, chords="C Am", chords_strict=True, register={"Soprano": [60, 79], "bass": ["C2", "C4"], 2: [55, 74]})
    for voice, (low, high) in ((0, (60, 79)), (1, (55, 74)), (3, (36, 60))):
        sounding = frames[frames[:, voice] >= 0, voice]
        assert sounding.min() >= low and sounding.max() <= high
    for frame, pitches in enumerate(frames.tolist()):
        assert {pitch % 12 for pitch in pitches if pitch >= 0} <= chord_at("C Am", frame)[0].pitch_classes


def test_a_prompt_is_free_and_the_first_chord_is_that_of_the_first_new_bar() -> None:
    prompt = GRID.encode_frames(np.tile([73, 66, 61, 49], (24, 1)))  # a bar and a half
    for seed in range(5):
        frames = written(seed, num_bars=4, prompt=prompt, chords="C F")
        assert (frames[:24] == [73, 66, 61, 49]).all()
        assert [int(frames[at, 3]) % 12 for at in (32, 48)] == [0, 5]


@pytest.mark.parametrize(
    ("grid", "labels", "message"),
    [
        (GRID, {"polyphony": 3}, "polyphony can't be asked of the SATB grid"),
        (GRID, {"density": [1, 4], "chords": "C"}, "density can't be asked of the SATB grid"),
        (SatbGrid(bar_tokens=True), {"chords": "C"}, "bars of any length.*bar_tokens=false"),
        (GRID, {"register": {"violin": [60, 70]}}, "register has violin.*Soprano"),
        (GRID, {"register": {"bass": [61, 62]}, "chords": "C"}, "lacks the bass note of the chord C"),
    ],
)
def test_what_a_grid_cannot_be_asked_is_refused(grid: SatbGrid, labels: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        wishes_of(grid, labels)
    assert "\n" not in str(refused.value)
