"""Letters of bars and sections, and forms that are asked for."""

import numpy as np
import pytest
from symusic import Score

from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.plans import agreement, bar_similarities
from etude.metrics.scores.similarity import self_similarity_matrix
from etude.music.augmentation import transpose
from etude.music.form import (
    ALIKE,
    LETTERS,
    alike,
    bar_letters,
    copy_plan,
    mark_plan,
    marked_plan,
    parse_form,
    section_letters,
    shown,
)
from tests.music.pieces import tune
from tests.songs import song


def shared(score: Score, bars: int) -> np.ndarray:
    return bar_similarities(NoteArray.from_score(score), num_bars=bars)


@pytest.mark.parametrize("bars", ["AABA", "ABACADA", "A-BB-A", "ABCDEFGH"])
def test_a_tune_made_of_bars_has_their_letters(bars: str) -> None:
    for score in (tune(bars), transpose(tune(bars), 5)):
        assert shown(bar_letters(shared(score, len(bars)))) == bars


def test_the_letters_of_a_beginning_are_the_beginning_of_the_letters() -> None:
    score = song(3, bars=12)
    letters = bar_letters(shared(score, 12))
    for bars in range(1, 12):
        assert bar_letters(shared(score, bars)) == letters[:bars]


def test_a_bar_that_differs_in_one_of_eight_notes_comes_back_and_in_two_does_not() -> None:
    base = np.arange(8)
    for changed, letters in ((1, (1, 1)), (2, (1, 2))):
        other = np.concatenate([base[: 8 - changed], 100 + np.arange(changed)])
        cells = np.concatenate([base, other])
        counts = np.zeros((2, 200))
        np.add.at(counts, (np.repeat([0, 1], 8), cells), 1)
        assert bar_letters(counts @ counts.T) == letters


@pytest.mark.parametrize("seed", range(4))
def test_bars_are_alike_where_the_self_similarity_says_so(seed: int) -> None:
    score = song(seed, bars=10)
    cosine = self_similarity_matrix(NoteArray.from_score(score))
    clear = np.abs(cosine - float(ALIKE)) > 1e-9  # at the very threshold rounding decides
    assert ((alike(shared(score, 10)) == (cosine >= float(ALIKE))) | ~clear).all()


def test_new_bars_beyond_the_last_letter_have_none() -> None:
    count = len(LETTERS) + 3
    assert bar_letters(np.eye(count)) == (*range(1, len(LETTERS) + 1), 0, 0, 0)


def test_sections_are_alike_if_their_bars_are_on_average() -> None:
    assert section_letters(shared(tune("ABABCDAB"), 8), bars=2) == "AABA"
    assert section_letters(shared(tune("ABABCDAB"), 8), bars=4) == "AB"  # half of the bars is not enough


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("A1BA", {}, "form=A1BA can't be read"),
        ("", {}, "form= can't be read"),
        (True, {}, "form=True can't be read"),
        ("ÄB", {}, "one letter for each section"),
        ("AABA", {"bars": 0}, "form_bars is 0"),
        ("AABA", {"bars": True}, "form_bars is True"),
        ("AABA", {"num_bars": 10}, "can't share num_bars=10 evenly"),
        ("AABA", {"bars": 8, "num_bars": 16}, "takes 32 bars, num_bars=16 asks for fewer; leave num_bars out"),
        ("AABA", {"bars": 2, "num_bars": 16}, "asks for more"),
        ("ABCDEFG", {"bars": 8}, "56 different bars, a plan has letters for 52"),
    ],
)  # fmt: skip
def test_a_form_that_makes_no_sense_is_refused_in_one_line(text: object, options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        parse_form(text, **options)
    assert "\n" not in str(error.value)


def test_a_form_says_which_bar_each_bar_repeats() -> None:
    form = parse_form("aaba", num_bars=8)
    assert (form.sections, form.bars, form.num_bars) == ("AABA", 2, 8)
    assert [form.source(bar) for bar in range(8)] == [0, 1, 0, 1, 4, 5, 0, 1]
    assert parse_form("AB").num_bars == 16


def test_pairs_of_bars_are_compared_with_a_plan() -> None:
    plan, notes = (1, 2, 1, 3), shared(tune("AABC"), 4)
    found = agreement(plan, notes)
    assert (found.same, found.same_alike, found.different, found.different_alike) == (1, 0, 5, 1)
    assert found.rand_index == pytest.approx(4 / 6)
    assert agreement((1, 1, 2, 3), notes).rand_index == 1
    assert agreement(plan, notes, first=2)[:3] == (1, 0, 4)  # the first pair is of the prompt
    assert np.isnan(agreement((0, 0, 0, 1), notes).rand_index)


def test_a_plan_is_kept_in_a_file(tmp_path) -> None:
    score = tune("AB-A")
    mark_plan(score, (1, 2, 0, 1), [0, 1920, 3840, 5760])
    score.dump_midi(tmp_path / "a.mid")
    read = Score(tmp_path / "a.mid")
    assert marked_plan(read) == (1, 2, 0, 1)
    other = tune("AAAA").resample(240, min_dur=1)
    mark_plan(other, (1,), [0])
    copy_plan(read, other)
    assert [(mark.time, mark.text) for mark in other.markers][:2] == [(0, "plan: A"), (960, "plan: B")]
    assert marked_plan(other) == (1, 2, 0, 1)
