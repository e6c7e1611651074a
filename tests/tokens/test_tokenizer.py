"""What every tokenizer shares: the layout of ids and the control tokens."""

import numpy as np
import pytest

from etude.tokens.grammar import BOS, CONT, EOS, PAD
from etude.tokens.satb import SatbGrid
from etude.tokens.tokenizer import FAMILIES, SPECIALS, TEMPO_BINS, Tokenizer, program_family

TOKENIZER = SatbGrid(genres=["folk", "bach"])


def test_specials_come_first_then_controls_then_the_body() -> None:
    assert TOKENIZER.vocab[:4] == list(SPECIALS) and (PAD, BOS, EOS, CONT) == (0, 1, 2, 3)
    assert TOKENIZER.vocab[4:6] == ["genre:bach", "genre:folk"]
    assert TOKENIZER.vocab[TOKENIZER.first_body] == "Rest"
    assert len(set(TOKENIZER.vocab)) == len(TOKENIZER)


def test_controls_have_a_fixed_order_and_leave_out_what_is_missing() -> None:
    labels = {
        "num_bars": 16,
        "programs": [0, 1, 40, -1],
        "genre": "folk",
        "key": "f# minor",
        "tempo_bpm": 120,
        "metre": None,
    }
    assert [TOKENIZER.vocab[i] for i in TOKENIZER.controls(labels)] == [
        *("genre:folk", "key:F# minor", "tempo:113", "bars:16"),
        *("instrument:piano", "instrument:strings", "instrument:drums"),
    ]
    assert TOKENIZER.controls({}) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"genre": "rock"}, "genre 'rock' is unknown.*valid: bach, folk"),
        ({"key": "H major"}, "C"),
        ({"tempo_bpm": 0}, "tempo_bpm is 0"),
        ({"num_bars": "many"}, "num_bars is 'many'"),
        ({"metre": "waltz"}, "metre 'waltz' is not of the form"),
        ({"programs": 3}, "programs is 3"),
        ({"programs": [300]}, "program is 300"),
        ({"mood": "sad"}, "label 'mood' is unknown; valid: genre, key"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TOKENIZER.controls(labels)


def test_rare_metres_share_a_token_and_numbers_take_the_nearest() -> None:
    names = [TOKENIZER.vocab[i] for i in TOKENIZER.controls({"metre": "17/8", "num_bars": 999, "tempo_bpm": np.float64(5)})]
    assert names == ["metre:other", f"tempo:{TEMPO_BINS[0]}", "bars:256"]


def test_program_families_are_general_midi_s() -> None:
    assert [FAMILIES[program_family(p)] for p in (0, 24, 127, 128, -1)] == [
        *("piano", "guitar", "sound effects", "drums", "drums")
    ]


def test_key_controls_move_with_the_music() -> None:
    for semitones in range(-12, 13):
        there, back = TOKENIZER.transposition(semitones), TOKENIZER.transposition(-semitones)
        keys = TOKENIZER.controls({"key": "Ab major"})
        np.testing.assert_array_equal(back[there[keys]], keys)


def test_a_foreign_class_is_not_built() -> None:
    with pytest.raises(ValueError, match="only classes of etude"):
        Tokenizer.from_state({"class": "os.system", "genres": [], "params": {}})
    with pytest.raises(ValueError, match="not a Tokenizer"):
        Tokenizer.from_state({"class": "etude.tokens.satb_grammar.SatbGrammar", "genres": [], "params": {}})
