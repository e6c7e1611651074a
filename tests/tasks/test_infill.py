"""A language model continues and fills in scores without changing what it was given."""

import functools
from pathlib import Path

import pytest
import torch
from symusic import KeySignature, Score

from etude.models.symbolic.grid_transformer import GridTransformer
from etude.models.symbolic.transformer import Transformer
from etude.music.passages import Passage, added, passage_of, same_outside
from etude.tasks.language_model import LanguageModel
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.tokens.test_infilling import quartet
from tests.tokens.test_satb_passages import chorale


@pytest.fixture(scope="module")
def task() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        model=functools.partial(Transformer, dim=16, num_layers=1, num_heads=2, hidden_dim=16),
        tokenizer=MidiTokTokenizer(genres=["folk"], parts=4, infill=True), infills=True, optimizer=torch.optim.AdamW,
    )  # fmt: skip


def prompt() -> Score:
    score = quartet(4)
    score.key_signatures.append(KeySignature(0, 2, 0))
    return score.resample(96, min_dur=1)


@pytest.mark.parametrize(("bars", "tracks"), [([2, 3], None), (None, ["Second"]), ([1, 1], [4]), ([4, 4], None)])
def test_only_the_passage_changes(task: LanguageModel, bars: list[int] | None, tracks: list[str | int] | None) -> None:
    score = prompt()
    passage = passage_of(score, bars=bars, tracks=tracks)
    samples = task.infill(prompt=score, passage=passage, num_samples=3, max_new_tokens=300, seed=1)
    again = task.infill(prompt=score, passage=passage, num_samples=3, max_new_tokens=300, seed=1)
    for sample, same in zip(samples, again, strict=True):
        assert same_outside(score, sample, passage)
        assert [t.name for t in sample.tracks][:4] == [t.name for t in score.tracks]
        assert len(sample.key_signatures) == 1 and sample.ticks_per_quarter == 96
        assert sample.dumps_midi() == same.dumps_midi()
    low, high = passage.span(score)
    new = [n for s in samples for t in s.tracks for n in t.notes if low <= n.time < high and n.pitch not in range(48, 82)]
    assert new  # an untrained model writes anything, but it writes


def test_a_continuation_begins_with_the_prompt_itself(task: LanguageModel) -> None:
    score = prompt()
    (sample,) = task.sample(prompt=score, num_bars=8, max_new_tokens=400, seed=2)
    assert [t.name for t in sample.tracks] == [t.name for t in score.tracks]
    for mine, its in zip(score.tracks, sample.tracks, strict=True):
        assert not added(its, mine)  # nothing of the prompt is missing
        assert all(note.time >= 11 * 96 for note in added(mine, its))  # from its last onset on
    assert sum(len(t.notes) for t in sample.tracks) > sum(len(t.notes) for t in score.tracks)
    assert len(sample.key_signatures) == 1


def test_what_is_asked_for_is_what_comes(task: LanguageModel) -> None:
    for sample in task.sample(
        num_samples=3, labels={"programs": [40, 40, 42], "metre": "3/4", "tempo_bpm": 77}, num_bars=4, max_new_tokens=200, seed=3
    ):
        assert {track.program for track in sample.tracks} <= {40, 42}
        assert {(m.numerator, m.denominator) for m in sample.time_signatures} == {(3, 4)}
        assert sample.tempos[0].qpm == pytest.approx(77, abs=0.01)


def test_contradictions_and_models_that_can_not_infill_are_refused(task: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metre=4/4 contradicts the prompt, which is in 3/4"):
        task.check_request({"metre": "4/4"}, prompt=prompt())
    with pytest.raises(ValueError, match="tempo_bpm=60 contradicts the prompt"):
        task.check_request({"tempo_bpm": 60}, prompt=prompt())
    task.infills = False
    try:
        with pytest.raises(ValueError, match="not trained to fill passages in"):
            task.infill(prompt=prompt(), passage=Passage(0, 1))
    finally:
        task.infills = True


def test_another_seed_writes_something_else(task: LanguageModel) -> None:
    first, other = (
        task.infill(prompt=prompt(), passage=Passage(1, 2), max_new_tokens=100, seed=seed)[0].dumps_midi() for seed in (1, 2)
    )
    assert first != other


@pytest.fixture(scope="module")
def chorale_model() -> LanguageModel:
    torch.manual_seed(0)
    net = functools.partial(GridTransformer, dim=64, num_layers=1, num_heads=2, decoder_dim=16)
    return LanguageModel(model=net, tokenizer=SatbGrid(), optimizer=torch.optim.AdamW)


@pytest.mark.parametrize(("bars", "tracks"), [([1, 1], None), (None, [2, 4]), ([2, 2], ["Second"])])
def test_a_chorale_model_fills_in_voices_without_having_been_trained_to(
    chorale_model: LanguageModel, bars: list[int] | None, tracks: list[str | int] | None
) -> None:
    score = chorale()
    score.tracks[1].name = "Second"
    passage = passage_of(score, bars=bars, tracks=tracks)
    assert chorale_model.check_infill(score, passage) == []
    first, second = chorale_model.infill(prompt=score, passage=passage, num_samples=2, seed=1)
    again = chorale_model.infill(prompt=score, passage=passage, num_samples=2, seed=1)[0]
    assert same_outside(score, first, passage) and same_outside(score, second, passage)
    assert first.dumps_midi() == again.dumps_midi() != second.dumps_midi()
    with pytest.raises(ValueError, match=r"tokens are missing, more than max_new_tokens=5; raise it"):
        chorale_model.infill(prompt=score, passage=passage, max_new_tokens=5)
