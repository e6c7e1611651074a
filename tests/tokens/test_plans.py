"""A plan in front of REMI tokens: the notes stay, the letters are those of the notes, and the grammar holds pieces to it."""

from typing import Any

import numpy as np
import pytest

from etude.music.form import LETTERS, marked_plan, shown
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.plans import FORM_TOKENS, plan_of, with_plan, without_plan, written_letters
from etude.tokens.tokenizer import Tokenizer
from tests.music.pieces import notes_of, random_score, tune

OFF = MidiTokTokenizer(genres=["folk"], parts=2, infill=True)
ON = MidiTokTokenizer(genres=["folk"], parts=2, infill=True, form=True)


def drawn(seed: int, *, most: int = 4000, **asked: Any) -> list[int]:
    """A random sequence of the grammar, body tokens only; few notes in a bar."""
    decoder, random, found = ON.decoder(1, **asked), np.random.default_rng(seed), list[int]()
    while not decoder.finished[0] and len(found) < most:
        allowed = np.flatnonzero(decoder.allowed()[0])
        bars = [token for token in allowed.tolist() if ON.vocab[token] in ("Bar_None", "<eos>")]
        token = int(random.choice(bars if bars and random.random() < 0.5 else allowed))
        found.append(token)
        decoder.push([token])
    assert decoder.finished[0]
    return [token for token in found if token >= ON.first_body]


def test_without_the_option_the_vocabulary_is_as_it_was_and_with_it_there_are_more_tokens() -> None:
    assert MidiTokTokenizer(genres=["folk"], parts=2, infill=True, form=False).state_dict() == OFF.state_dict()
    assert "form" not in OFF.state_dict()["params"]
    assert ON.vocab == [*OFF.vocab, *FORM_TOKENS]
    assert Tokenizer.from_state(ON.state_dict()).fingerprint == ON.fingerprint != OFF.fingerprint


@pytest.mark.parametrize("seed", range(12))
def test_a_plan_adds_tokens_and_changes_no_other(seed: int) -> None:
    score = random_score(seed)
    ids, plain = ON.encode(score), OFF.encode(score)
    np.testing.assert_array_equal(without_plan(ids, ON.table), plain)
    assert notes_of(ON.decode(ids)) == notes_of(OFF.decode(plain))
    letters, _ = written_letters(ids, ON.table)
    assert plan_of(ids, ON.table) == letters


@pytest.mark.parametrize("metre", [(4, 4), (3, 4), (6, 8), (2, 2)])
def test_the_plan_of_a_tune_made_of_bars_has_their_letters(metre: tuple[int, int]) -> None:
    for bars in ("AABA", "ABACAB", "AB-A"):
        ids = ON.encode(tune(bars, metre=metre))
        assert shown(plan_of(ids, ON.table)) == bars
        assert shown(marked_plan(ON.decode(ids))) == bars  # where a player shows it
        starts = [mark.time for mark in ON.decode(ids).markers]
        assert starts == [number * 1920 * metre[0] // metre[1] for number in range(len(bars))]


def test_the_plan_of_a_beginning_is_the_beginning_of_the_plan() -> None:
    whole, part = (plan_of(ON.encode(tune(bars)), ON.table) for bars in ("ABACABD", "ABAC"))
    assert whole[:4] == part
    ids = without_plan(ON.encode(tune("ABAC")), ON.table)
    assert plan_of(with_plan(ids, ON.table, plan=whole), ON.table) == whole


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("asked", [{}, {"num_bars": 6}, {"num_bars": 4, "labels": {"programs": [40], "metre": "3/4"}}])
def test_every_sequence_of_the_grammar_has_the_letters_of_its_plan_at_its_bars(asked: dict[str, Any], seed: int) -> None:
    ids = np.array(drawn(seed, **asked))
    letters, _ = written_letters(ids, ON.table)
    plan = plan_of(ids, ON.table)
    assert letters == plan and len(plan) == asked.get("num_bars", len(plan)) > 0
    order = [letter for i, letter in enumerate(plan) if letter and letter not in plan[:i]]
    assert order == list(range(1, len(order) + 1))  # a new letter is the next one


@pytest.mark.parametrize("seed", range(6))
def test_a_form_that_is_asked_for_is_in_the_plan(seed: int) -> None:
    plan = plan_of(np.array(drawn(seed, labels={"form": "AABAC", "form_bars": 2})), ON.table)
    assert len(plan) == 10
    assert plan[2:4] == plan[6:8] == plan[:2]
    first, other, third = set(plan[:2]), set(plan[4:6]), set(plan[8:])
    assert 0 not in plan and not first & other and not third & (first | other)


def test_features_of_a_plan_are_those_of_training() -> None:
    ids = ON.encode(tune("AABA"))
    decoder, features = ON.decoder(1), ON.features(ids)
    for place, token in enumerate(ids.tolist()):
        assert decoder.allowed()[0][token]
        decoder.push([token])
        assert {name: int(values[0]) for name, values in decoder.features().items()} == {
            name: int(values[place]) for name, values in features.items()
        }


def test_a_prompt_goes_on_behind_its_plan() -> None:
    body = ON.encode(tune("ABAB"))
    decoder = ON.decoder(1, num_bars=4, prompt=body)
    for token in body.tolist():
        decoder.push([token])
    allowed = decoder.allowed()[0]
    assert allowed[2] and not allowed[[ON._id[token] for token in FORM_TOKENS]].any()
    with pytest.raises(ValueError, match="not allowed"):  # more bars than planned
        longer = ON.decoder(1)
        for token in [*body.tolist(), ON._id["Bar_None"], ON._id["Form_1"]]:
            longer.push([token])


def test_pieces_with_holes_have_no_plan() -> None:
    score = tune("ABACABAC")
    np.testing.assert_array_equal(
        ON.infilled(ON.encode(score), seed=3, most_tokens=200).ids, OFF.infilled(OFF.encode(score), seed=3, most_tokens=200).ids
    )


def test_pieces_are_cut_at_bars_never_in_a_plan() -> None:
    ids = ON.encode(tune("ABAC"))
    assert [ON.vocab[ids[start]] for start in ON.bar_starts(ids)] == ["Bar_None"] * 4
    assert ON.bar_starts(ids)[0] == 4


@pytest.mark.parametrize("options", [{"scheme": "TSD"}, {"scheme": "Octuple"}, {"bpe_vocab_size": 900}])
def test_only_remi_without_byte_pairs_has_plans(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="form=true needs scheme=REMI without byte pairs"):
        MidiTokTokenizer(form=True, **options)


def test_a_long_piece_uses_its_letters_up() -> None:
    plan = plan_of(np.array(drawn(0, labels={"form": "ABCD", "form_bars": 13})), ON.table)
    assert len(plan) == len(LETTERS) and min(plan) > 0
