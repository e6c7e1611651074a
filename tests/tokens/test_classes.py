"""Token classes agree with what tokenizers decode."""

from functools import partial

import numpy as np
import pytest

from etude.tokens.classes import CLASSES, CONTROL, DURATION, OTHER, PITCH, TIME, VELOCITY, token_classes
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid

SCHEMES = ("REMI", "TSD", "MIDILike", "Octuple")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_token_of_miditok_has_the_class_of_its_name(scheme: str) -> None:
    tokenizer = MidiTokTokenizer(genres=["folk"], scheme=scheme)
    found = token_classes(tokenizer)
    assert (found.kind[: tokenizer.first_body] == CONTROL).all() and len(found.kind) == len(tokenizer)
    for token, kind, pitch, position, units in zip(
        tokenizer.vocab, found.kind, found.pitch, found.position, found.units, strict=True
    ):
        name, _, value = token.partition("_")
        expected = {
            "Pitch": PITCH, "PitchDrum": PITCH, "NoteOn": PITCH, "NoteOff": PITCH, "DrumOn": PITCH, "DrumOff": PITCH,
            "Bar": TIME, "Position": TIME, "TimeShift": TIME, "Duration": DURATION, "Velocity": VELOCITY,
            "Program": OTHER, "Tempo": OTHER, "TimeSig": OTHER,
        }.get(name, CONTROL)  # fmt: skip
        assert CLASSES[kind] == CLASSES[expected], token
        assert pitch == (int(value) if name in ("Pitch", "NoteOn", "NoteOff") else -1)
        assert position == (int(value) if name == "Position" else -1)
        if name in ("TimeShift", "Duration"):
            beats, part, resolution = map(int, value.split("."))
            assert units == (beats * resolution + part) * 12 // resolution


def test_a_grid_has_pitches_and_bars() -> None:
    tokenizer = SatbGrid(genres=["folk"], low=60, high=62, bar_tokens=True)
    found = token_classes(tokenizer)
    body = slice(tokenizer.first_body, None)
    assert [CLASSES[k] for k in found.kind[body]] == ["pitch"] * 4 + ["time"]
    assert found.pitch[body].tolist() == [-1, 60, 61, 62, -1] and found.onset[body].tolist() == [False, True, True, True, False]


def test_byte_pairs_have_the_class_of_their_first_token() -> None:
    make = partial(MidiTokTokenizer, genres=["folk"], scheme="REMI")
    tokenizer = make(bpe_vocab_size=len(make()) + 3)
    pitch, velocity = (tokenizer.vocab.index(name) for name in ("Pitch_60", "Velocity_63"))
    tokenizer.train_bpe([np.array([pitch, velocity] * 20, np.int32)])
    assert len(tokenizer) > tokenizer.base_size
    found = token_classes(tokenizer)
    assert found.kind[tokenizer.base_size] == PITCH and found.pitch[tokenizer.base_size] == 60
