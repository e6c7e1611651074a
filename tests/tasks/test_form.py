"""A language model with a plan keeps to it: alone, in a form that is asked for, behind prompts; or refuses in one line."""

import functools
from typing import Any

import pytest
import torch
from symusic import Score

from etude.generation.asking import read_request
from etude.models.symbolic.transformer import Transformer
from etude.models.symbolic.transformer_vae import TransformerVae
from etude.music.form import marked_plan, parse_form
from etude.music.passages import Passage, same_outside
from etude.tasks.language_model import LanguageModel
from etude.tasks.vae import Vae
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from etude.tokens.tokenizer import Tokenizer
from etude.tokens.vocabulary_weights import rows_by_token
from tests.music.pieces import notes_of, tune

PLANNED = MidiTokTokenizer(genres=["folk"], parts=2, infill=True, form=True)
PLAIN = MidiTokTokenizer(genres=["folk"], parts=2, infill=True)

FEW = {"density": [0, 3]}  # notes of a bar, as an untrained model does not end one


def model(tokenizer: Tokenizer = PLANNED) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        model=functools.partial(Transformer, dim=16, num_layers=1, num_heads=2, hidden_dim=16),
        tokenizer=tokenizer, infills=True, optimizer=torch.optim.AdamW,
    )  # fmt: skip


def plans(samples: list[Score]) -> list[tuple[int, ...]]:
    return [marked_plan(sample) for sample in samples]


@pytest.mark.parametrize(
    "how", [{}, {"decoding": "beam", "beams": 3}, {"decoding": "contrastive", "num_samples": 1}, {"no_repeat_ngram": 4}]
)
def test_samples_are_planned_in_the_form_that_is_asked_for(how: dict[str, Any]) -> None:
    labels = {"form": "AABA", "form_bars": 2, "programs": [40], "register": [60, 80]}
    form, searched = parse_form("AABA", bars=2), "decoding" in how
    samples = model().sample(labels=labels, seed=1, max_new_tokens=150 if searched else 900, **{"num_samples": 3, **how})
    for plan in plans(samples):
        assert len(plan) == 8 or searched  # an untrained model has no end for a search to find
        assert plan and all(plan[bar] == plan[form.source(bar)] for bar in range(len(plan)))
        assert not set(plan[4:6]) & set(plan[:2])


def test_the_length_may_be_asked_for_and_is_shared_among_the_sections() -> None:
    (plan,) = plans(model().sample(labels={"form": "ABA", "programs": [40], **FEW}, num_bars=6, seed=2, max_new_tokens=900))
    assert plan[:2] == plan[4:] and len(plan) == 6


def test_a_draft_makes_plans_too() -> None:
    labels = {"form": "AB", "form_bars": 2, **FEW}
    found = plans(model().sample(labels=labels, num_samples=2, seed=3, max_new_tokens=600, draft=model(), prompt=tune("AB")))
    assert len(found) == 2 and all(plan[:2] == (1, 2) and len(plan) == 4 for plan in found)


def test_a_continuation_continues_the_plan_of_its_prompt() -> None:
    prompt = tune("ABAC")
    samples = model().sample(prompt=prompt, labels=FEW, num_samples=4, num_bars=8, seed=4, max_new_tokens=900)
    assert all(plan[:4] == (1, 2, 1, 3) and len(plan) == 8 for plan in plans(samples))
    assert len(set(plans(samples))) > 1  # each has its own
    for sample in samples:
        assert set(notes_of(prompt)) <= set(notes_of(sample))
    again = model().sample(prompt=samples[0], labels=FEW, num_bars=9, seed=5, max_new_tokens=900)[0]
    assert len(marked_plan(again)) == 9  # the old markers are replaced


def test_samples_of_one_prompt_differ_even_with_one_plan_and_each_prompt_goes_on_as_it_would_alone() -> None:
    how: dict[str, Any] = {"labels": {"form": "AB", "form_bars": 2, **FEW}, "num_samples": 2, "seed": 6, "max_new_tokens": 400}
    prompts = [tune("AB"), tune("ABA")]
    together = model().sample(prompt=prompts, **how)
    alone = [sample for prompt in prompts for sample in model().sample(prompt=prompt, **how)]
    assert [notes_of(sample) for sample in together] == [notes_of(sample) for sample in alone]
    assert notes_of(together[0]) != notes_of(together[1])


def test_the_form_behind_a_prompt_takes_the_letters_of_its_bars() -> None:
    notes = model().check_request({"form": "AABA", "form_bars": 2}, prompt=tune("ABCD"))
    assert len(notes) == 1 and "2 bars of the prompt, the first of them bar 3," in notes[0]
    assert model().check_request({"form": "ABA", "form_bars": 2}, prompt=tune("ABCD")) == []
    (plan,) = plans(
        model().sample(prompt=tune("AACD"), labels={"form": "ABA", "form_bars": 2, **FEW}, seed=7, max_new_tokens=600)
    )
    assert plan == (1, 1, 2, 3, 1, 1)


def test_notes_are_passed_on_one_by_one_and_plans_are_not_played() -> None:
    heard: list[tuple[int, int, int]] = []
    samples = model().sample(
        prompt=tune("AB"),
        num_samples=2,
        num_bars=4,
        seed=8,
        max_new_tokens=300,
        on_note=lambda row, n: heard.append((row, n.pitch)),
    )
    for row, sample in enumerate(samples):
        assert sum(1 for one, _ in heard if one == row) >= len(notes_of(sample)) - len(notes_of(tune("AB")))


def test_a_passage_is_filled_in_without_a_plan_and_takes_no_form() -> None:
    task, score, passage = model(), tune("ABAB"), Passage(1, 2)
    assert same_outside(score, task.infill(prompt=score, passage=passage, seed=9, max_new_tokens=300)[0], passage)
    with pytest.raises(ValueError, match="form is for whole pieces and continuations"):
        task.infill(prompt=score, passage=passage, labels={"form": "AB"})


@pytest.mark.parametrize(
    ("tokenizer", "options", "words"),
    [
        (PLAIN, {"form": "AABA"}, "trained without a plan of its bars; train one with tokenizer=remi tokenizer.form=true"),
        (SatbGrid(), {"form": "AABA"}, "trained without a plan of its bars"),
        (PLANNED, {"form": "A-B"}, "form=A-B can't be read"),
        (PLANNED, {"form": "AABA", "num_bars": 16, "form_bars": 8}, "takes 32 bars, num_bars=16 asks for fewer"),
        (PLANNED, {"form_bars": 8}, "give form=AABA, too"),
    ],
)  # fmt: skip
def test_what_can_not_be_planned_is_refused_in_one_line(tokenizer: Tokenizer, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read_request(options, model(tokenizer))
    assert "\n" not in str(error.value)


def test_a_prompt_longer_than_the_form_and_a_passage_with_a_form_are_refused(tmp_path) -> None:
    tune("ABCDE").dump_midi(tmp_path / "a.mid")
    prompt = str(tmp_path / "a.mid")
    with pytest.raises(ValueError, match="num_bars is 4, the prompt alone has 5 bars"):
        read_request({"form": "AB", "form_bars": 2, "prompt": prompt}, model())
    with pytest.raises(ValueError, match="form can't be asked for with infill"):
        read_request({"form": "AB", "prompt": prompt, "infill": {"bars": [1, 2]}}, model())


def test_latents_of_bars_take_no_plan() -> None:
    network = functools.partial(TransformerVae, dim=16, num_layers=1, num_heads=2, hidden_dim=16)
    with pytest.raises(ValueError, match=r"set tokenizer\.form=null"):
        Vae(model=network, tokenizer=PLANNED, optimizer=torch.optim.AdamW)


def test_weights_of_a_model_without_a_plan_start_one_with_it(tmp_path) -> None:
    old, new = model(PLAIN), model()
    found = rows_by_token(old.state_dict(), PLAIN, own=new.state_dict(), tokenizer=PLANNED, path=tmp_path / "a.ckpt")
    new.load_state_dict(found)
    names = [name for name, value in old.state_dict().items() if value.shape[:1] == (len(PLAIN),)]
    assert names and all(torch.equal(found[name][: len(PLAIN)], old.state_dict()[name]) for name in names)
    with pytest.raises(ValueError, match=r"are not those of this run .*: form is .*, here .*; give the data= and tokenizer="):
        rows_by_token(new.state_dict(), PLANNED, own=old.state_dict(), tokenizer=PLAIN, path=tmp_path / "a.ckpt")
