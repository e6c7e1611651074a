"""A language model keeps to what is asked of its notes: alone, behind a prompt, in a passage; or refuses it."""

import functools
from typing import Any

import pytest
import torch

from etude.generation.asking import read_request
from etude.generation.heard import chord_shares, heard_rows, portion
from etude.models.symbolic.transformer import Transformer
from etude.music.chords import parse_progression
from etude.music.passages import Passage, same_outside
from etude.tasks.language_model import LanguageModel
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.tokenizer import WISHES, Tokenizer
from etude.tokens.wished_tracks import with_key_of_chords
from tests.tokens.test_infilling import quartet

PROGRAMS = [40, 41, 42]
ASKED: dict[str, Any] = {
    "chords": "C Am", "chords_strict": True, "register": {"all": [36, 84], "cello": ["C2", "C4"]},
    "polyphony": {"all": 5, "cello": 1}, "density": [4, 12],
}  # fmt: skip


def model(tokenizer: Tokenizer | None = None, **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        model=functools.partial(Transformer, dim=16, num_layers=1, num_heads=2, hidden_dim=16),
        tokenizer=tokenizer or MidiTokTokenizer(genres=["folk"], parts=4, infill=True), infills=True,
        optimizer=torch.optim.AdamW, **options,
    )  # fmt: skip


@pytest.mark.parametrize("metre", ["4/4", "3/4", "6/8"])
def test_samples_have_what_is_asked(metre: str) -> None:
    labels = {**ASKED, "programs": PROGRAMS, "metre": metre}
    for sample in model().sample(num_samples=3, labels=labels, num_bars=4, max_new_tokens=1500, seed=1):
        piece = portion(sample, num_bars=4, programs=PROGRAMS)
        assert chord_shares(piece, parse_progression("C Am")).tolist() == [1] * 4
        assert all(row[3].startswith("100%") for row in heard_rows(labels, [piece]))


def test_a_continuation_and_a_passage_have_it_too() -> None:
    task, score = model(), quartet(4)
    asked = {**ASKED, "register": {"Viola": [55, 70]}, "polyphony": {4: 1}}
    (sample,) = task.sample(prompt=score, labels=asked, num_bars=7, max_new_tokens=1500, seed=2)
    assert all(row[3].startswith("100%") for row in heard_rows(asked, [portion(sample, num_bars=7, prompt=score)]))
    passage = Passage(1, 3, (2, 3))
    assert task.check_infill(score, passage, asked) == []
    for sample in task.infill(prompt=score, passage=passage, labels=asked, num_samples=2, max_new_tokens=900, seed=3):
        assert same_outside(score, sample, passage)
        assert all(row[3].startswith("100%") for row in heard_rows(asked, [portion(sample, prompt=score, passage=passage)]))


def test_chords_tell_the_model_their_key_unless_it_knows_none() -> None:
    assert with_key_of_chords({"chords": "Dm7 G7 C"}, trained=None)["key"] == "C major"
    assert with_key_of_chords({"chords": "Dm7 G7 C", "key": "A minor"}, trained={"key": ["C major"]})["key"] == "A minor"
    assert "key" not in with_key_of_chords({"chords": "Dm7 G7 C"}, trained={"key": []})
    assert "key" not in with_key_of_chords({"polyphony": 1}, trained=None)


def test_labels_that_need_no_training_are_asked_of_any_model() -> None:
    task = model(trained_labels={"genre": ["folk"]})
    assert task.check_request({"chords": "C", "polyphony": 2}) == []
    assert task.tokenizer.controls({"chords": "C", "density": [1, 2], "genre": "folk"}) == task.tokenizer.controls(
        {"genre": "folk"}
    )


@pytest.mark.parametrize("option", [name for name in WISHES if name != "chords_strict"])
@pytest.mark.parametrize("scheme", ["TSD", "MIDILike", "Octuple"])
def test_other_tokens_refuse_it_in_one_line(option: str, scheme: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^{option} can't be kept to with the tokens of this model, .*tokenizer=remi"
    ) as refused:
        model(MidiTokTokenizer(scheme=scheme)).check_request({option: ASKED[option]})
    assert "\n" not in str(refused.value)


def test_what_generate_is_given_reaches_the_model() -> None:
    task = model()
    assert read_request({"chords": "C", "chords_strict": False, "num_samples": 1}, task).labels == {"chords": "C"}
    for options, message in (
        ({"chords": "C Q"}, "'Q' is no chord symbol"), ({"register": {"violin": [60, 70]}}, "programs=.40,42"),
        ({"chords_strict": True}, "give chords, too"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_request(options, task)
