"""Ways to draw samples: what is asked for holds with each of them, and what can't be combined is refused."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from symusic import Score

from etude.generation.samples import check_requests, write_samples
from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.similarity import repeated_passages
from etude.models.symbolic.grid_transformer import GridTransformer
from etude.models.symbolic.transformer import Transformer
from etude.music.score import trim
from etude.tasks.decoding_methods import Method
from etude.tasks.language_model import LanguageModel
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.note_stream import StreamedNote
from etude.tokens.satb import SatbGrid
from tests.tokens.test_infilling import quartet


@pytest.fixture(scope="module")
def task() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        model=functools.partial(Transformer, dim=32, num_layers=1, num_heads=2),
        tokenizer=MidiTokTokenizer(genres=["folk"], parts=4, infill=True), infills=True, optimizer=torch.optim.AdamW,
    )  # fmt: skip


@pytest.fixture(scope="module")
def grid() -> LanguageModel:
    network = functools.partial(GridTransformer, dim=128, num_layers=1, num_heads=2, decoder_dim=16, decoder_layers=1)
    return LanguageModel(model=network, tokenizer=SatbGrid(), optimizer=torch.optim.AdamW)


def repeats(scores: list[Score], length: int) -> int:
    return sum(repeated_passages(NoteArray.from_score(score), length=length)[0] for score in scores)


def test_greedy_samples_repeat_themselves_and_with_the_limit_they_do_not(task: LanguageModel) -> None:
    options: Any = {"labels": {"programs": [40]}, "temperature": 0.05, "max_new_tokens": 500, "num_samples": 2, "seed": 1}
    assert repeats(task.sample(**options), 3) > 10
    assert repeats(task.sample(**options, no_repeat_ngram=3), 3) == 0


def test_a_penalty_makes_recent_pitches_rarer(task: LanguageModel) -> None:
    def recent(penalty: float, **window: int) -> float:
        pitches: list[list[int]] = [[] for _ in range(4)]  # in the order in which they are drawn
        task.sample(
            labels={"programs": [40]}, max_new_tokens=600, num_samples=4, seed=2, pitch_penalty=penalty, **window,
            on_note=lambda row, note: pitches[row].append(note.pitch),
        )  # fmt: skip
        pairs = [(each[i], each[i - 8 : i]) for each in pitches for i in range(8, len(each))]
        return sum(pitch in before for pitch, before in pairs) / len(pairs)

    free, rarer, never = recent(1.0), recent(3.0, pitch_window=8), recent(1e9, pitch_window=8)
    assert never == 0.0 < rarer < free


@pytest.mark.parametrize("method", [{"decoding": "beam", "beams": 3}, {"decoding": "contrastive"}, {"no_repeat_ngram": 3}])
def test_what_is_asked_for_holds_with_every_method(task: LanguageModel, method: dict[str, Any]) -> None:
    options: Any = {"labels": {"programs": [40, 42], "metre": "3/4"}, "num_bars": 3, "max_new_tokens": 150}
    (sample,) = task.sample(**options, **method)
    assert {track.program for track in sample.tracks} <= {40, 42}
    assert {(m.numerator, m.denominator) for m in sample.time_signatures} == {(3, 4)}
    prompts = [trim(quartet(4), num_bars=bars) for bars in (2, 1)]
    together = task.sample(prompt=prompts, num_bars=4, max_new_tokens=60, **method)
    alone = [task.sample(prompt=prompt, num_bars=4, max_new_tokens=60, **method)[0] for prompt in prompts]
    assert [score.dumps_midi() for score in together] == [score.dumps_midi() for score in alone]


def test_beams_give_several_samples_and_searches_do_not_depend_on_the_seed(task: LanguageModel) -> None:
    options: Any = {"num_bars": 2, "max_new_tokens": 40}
    found = [task.sample(num_samples=3, decoding="beam", beams=4, beam_groups=2, seed=seed, **options) for seed in (0, 1)]
    assert [s.dumps_midi() for s in found[0]] == [s.dumps_midi() for s in found[1]] and len(found[0]) == 3
    for method in ("beam", "contrastive"):
        with pytest.raises(ValueError, match=rf"decoding={method} draws nothing at random.*set num_samples="):
            task.sample(num_samples=5, decoding=method)
        with pytest.raises(ValueError, match=r"key=G major is met by drawing again"):
            task.sample(labels={"key": "G major"}, decoding=method)


@pytest.mark.parametrize("method", [{}, {"decoding": "contrastive"}])
def test_each_note_is_passed_on_as_it_ends(task: LanguageModel, method: dict[str, Any]) -> None:
    heard: list[tuple[int, StreamedNote]] = []
    prompts = [trim(quartet(4), num_bars=bars) for bars in (2, 1)]
    samples = task.sample(prompt=prompts, max_new_tokens=90, on_note=lambda row, note: heard.append((row, note)), **method)
    for row, (sample, prompt) in enumerate(zip(samples, prompts, strict=True)):
        mine = sorted((n.onset, n.pitch, n.duration, n.velocity) for number, n in heard if number == row)
        whole, before = ([(n.time, n.pitch, n.duration, n.velocity) for t in s.tracks for n in t.notes] for s in (sample, prompt))
        for note in before:
            whole.remove(note)
        assert mine == sorted(whole) and mine
    for options, message in (
        ({"decoding": "beam"}, "decoding=beam finds whole"),
        ({"labels": {"key": "G major"}}, "key=G major"),
    ):
        with pytest.raises(ValueError, match=message):
            task.sample(on_note=lambda *_: None, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoding": "greedy"}, r"decoding=greedy is unknown; choose one of sample, contrastive, beam"),
        ({"beams": 8}, r"beams=8 has no effect with decoding=sample; add decoding=beam"),
        ({"alpha": 0.5, "decoding": "beam"}, r"alpha=0\.5 has no effect with decoding=beam; add decoding=contrastive"),
        ({"decoding": "beam", "beam_groups": 3}, r"beams=4 must be a multiple of beam_groups=3"),
        ({"decoding": "beam", "diversity": -1.0}, r"diversity=-1\.0 must be finite and at least 0"),
        ({"decoding": "contrastive", "alpha": 2.0}, r"alpha=2\.0 must lie in \[0, 1\]"),
        ({"pitch_window": 4}, r"pitch_window=4 has no effect with pitch_penalty=1"),
        ({"decoding": "contrastive", "num_samples": 4}, r"at most 1 of a prompt, not 4; set num_samples=1"),
        ({"decoding": "beam", "best_of": 8, "rank_by": "dissonance"}, r"at most 4 of a prompt, not 8"),
        ({"draft_length": 2}, r"draft_length=2 has no effect without a model that drafts; add draft=CHECKPOINT"),
        ({"no_repeat_ngram": 1}, r"no_repeat_ngram=1 must be at least 2 notes"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(task: LanguageModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_requests(options, task)


def test_a_draft_changes_nothing_of_what_is_asked_for_and_must_fit(task: LanguageModel, grid: LanguageModel) -> None:
    torch.manual_seed(1)
    network = functools.partial(Transformer, dim=16, num_layers=1, num_heads=2)
    draft = LanguageModel(model=network, tokenizer=task.tokenizer, optimizer=torch.optim.AdamW)
    heard: list[int] = []
    options: Any = {"labels": {"programs": [40, 42], "metre": "3/4"}, "num_bars": 3, "max_new_tokens": 90, "draft": draft}
    samples = task.sample(num_samples=2, seed=1, on_note=lambda row, _: heard.append(row), **options)
    assert {track.program for sample in samples for track in sample.tracks} <= {40, 42} and set(heard) == {0, 1}
    again = task.sample(num_samples=1, seed=1, **options)
    assert again[0].dumps_midi() == samples[0].dumps_midi() != samples[1].dumps_midi()
    greedy = [task.sample(temperature=0.0, num_bars=2, max_new_tokens=60, **each)[0] for each in ({}, {"draft": draft})]
    assert greedy[0].dumps_midi() == greedy[1].dumps_midi()
    assert repeats(task.sample(**options, no_repeat_ngram=3), 3) == 0
    with pytest.raises(ValueError, match="draft: its tokens are not those of ckpt"):
        task.sample(draft=grid)
    with pytest.raises(ValueError, match="draft needs two Transformers, ckpt holds a GridTransformer"):
        grid.sample(draft=grid)
    for other, name in (
        ({"decoding": "beam"}, "decoding=beam"),
        ({"pitch_penalty": 2.0}, "pitch_penalty=2"),
        ({"guidance": 1.5}, "guidance=1.5"),
    ):
        with pytest.raises(ValueError, match=f"plain sampling and can't be combined with {name}"):
            Method(draft=draft, **other)


def test_networks_tokens_and_passages_that_do_not_fit(task: LanguageModel, grid: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"decoding=beam needs a Transformer, this model is a GridTransformer"):
        check_requests({"decoding": "beam"}, grid)
    with pytest.raises(ValueError, match=r"only with REMI tokens; take a model with tokenizer=remi"):
        check_requests({"no_repeat_ngram": 4}, grid)
    quartet(4).dump_midi(tmp_path / "quartet.mid")
    asked = {"prompt": str(tmp_path / "quartet.mid"), "infill": {"bars": [2, 3]}, "no_repeat_ngram": 4}
    with pytest.raises(ValueError, match=r"no_repeat_ngram=4 can't be combined with infill"):
        check_requests(asked, task)


def test_the_report_tells_the_method_and_what_repeats(task: LanguageModel, tmp_path: Path, capsys: Any) -> None:
    write_samples(task=task, folder=tmp_path, num_samples=1, num_bars=2, max_new_tokens=60, no_repeat_ngram=4, audio=False)
    line = "passages of 4 notes that a track has played before: 0 of "
    page = (tmp_path / "report.html").read_text()
    assert line in capsys.readouterr().err and line in page and "no_repeat_ngram 4" in page
    files = write_samples(
        task=task, folder=tmp_path / "b", num_samples=2, max_new_tokens=30, decoding="beam", beams=20, audio=False
    )
    assert len(files) == 2 and "decoding beam, beams 20" in (tmp_path / "b" / "report.html").read_text()
