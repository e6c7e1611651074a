"""A key that is asked for is the key of the samples."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from symusic import Note, Score, Track

from etude.models.symbolic.transformer import Transformer
from etude.music.theory import Key, estimate_key
from etude.tasks.keyed_samples import ROUNDS, samples_in_key
from etude.tasks.language_model import LanguageModel
from etude.tokens.satb import SatbGrid

SCALES = {"major": [0, 2, 4, 5, 7, 4, 0, -5, 0], "minor": [0, 2, 3, 5, 7, 3, 0, -5, 0]}


def piece(key: Key) -> Score:
    score, track = Score(480), Track()
    for place, step in enumerate(SCALES[key.mode]):
        track.notes.append(Note(240 * place, 240, 60 + key.tonic + step, 80))
    score.tracks.append(track)
    return score


def test_samples_of_the_other_mode_are_drawn_again_and_the_others_keep_their_place() -> None:
    seen: list[int] = []

    def draw(count: int, seed: int) -> list[Score]:
        seen.append(count)
        generator = np.random.default_rng(seed)
        return [piece(Key(int(generator.integers(12)), str(generator.choice(["major", "minor"])))) for _ in range(count)]

    found = samples_in_key(draw, num_samples=12, key=Key(9, "minor"), seed=3)
    assert [estimate_key(score) for score in found] == [Key(9, "minor")] * 12
    assert seen[0] == 12 and all(later < before for before, later in pairwise(seen) if later) and len(seen) > 1
    again = samples_in_key(draw, num_samples=12, key=Key(9, "minor"), seed=3)
    assert [score.tracks for score in found] == [score.tracks for score in again]


def test_what_never_has_the_mode_is_given_as_it_was_drawn() -> None:
    calls: list[int] = []

    def draw(count: int, seed: int) -> list[Score]:
        calls.append(seed)
        return [piece(Key(2, "major"))] * count

    assert [estimate_key(s) for s in samples_in_key(draw, num_samples=2, key=Key(2, "minor"), seed=0)] == [Key(2, "major")] * 2
    assert len(calls) == len(set(calls)) == ROUNDS


def test_what_has_no_notes_or_no_key_is_not_drawn_again_and_the_rounds_are_told() -> None:
    whole_tones = Score(480)
    whole_tones.tracks.append(Track(notes=[Note(240 * place, 240, 60 + 2 * place, 80) for place in range(6)]))
    drawn = [Score(480), piece(Key(2, "major")), whole_tones, piece(Key(2, "minor"))]
    counts, rounds = [], []

    def draw(count: int, seed: int) -> list[Score]:
        counts.append(count)
        return drawn if count == 4 else [piece(Key(2, "major")) if len(counts) < 4 else Score(480)] * count

    found = samples_in_key(draw, num_samples=4, key=Key(9, "minor"), seed=0, on_round=lambda *told: rounds.append(told))
    assert counts == [4, 1, 1, 1] and rounds == [(number, ROUNDS, count) for number, count in enumerate(counts, start=1)]
    assert found[:3] == drawn[:3] and estimate_key(found[3]) == Key(9, "minor")


@pytest.fixture
def untrained() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        model=lambda **sizes: Transformer(dim=16, num_layers=1, num_heads=2, **sizes), tokenizer=SatbGrid(),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
    )  # fmt: skip


def test_even_a_model_that_learnt_nothing_keeps_to_the_key(untrained: LanguageModel) -> None:
    asked = {"labels": {"key": "F# major"}, "num_samples": 6, "num_bars": 1, "seed": 1}
    enforced, free = untrained.sample(**asked), untrained.sample(**asked, transpose_to_key=False)
    assert [estimate_key(score) for score in enforced] == [Key(6, "major")] * 6
    assert [estimate_key(score) for score in free] != [Key(6, "major")] * 6
    opening = piece(Key(2, "major"))
    continued = untrained.sample(**{**asked, "num_bars": 2}, prompt=opening)
    first = continued[0].tracks[0].notes.numpy()["pitch"]  # a prompt stays as it is
    assert set(SCALES["major"]) >= {int(pitch) - 62 for pitch in first[:3]}
