"""Sessions are balanced: as many real as generated excerpts for each run, matched by genre, no piece twice."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from etude.studio.drawing import Drawer, Key, redraw, unmatched
from etude.studio.excerpts import Cutter
from etude.studio.options import Mode, Options
from etude.studio.results import Question
from etude.studio.sources import Source, find_sources
from tests.studio.conftest import SECONDS, write_real, write_run


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with eight real tunes, and two runs of six samples."""
    folder = tmp_path_factory.mktemp("music")
    write_real(folder / "real")
    write_run(folder / "run")
    write_run(folder / "other", seed=200)
    return folder


@pytest.fixture(scope="module")
def sources(places: Path) -> list[Source]:
    """The two runs."""
    return find_sources(Options(real=str(places / "real"), runs=(str(places / "run"), str(places / "other"))))


def drawer(
    sources: Sequence[Source], mode: Mode = "single", questions: int = 4, seed: int = 0, seconds: float = SECONDS
) -> Drawer:
    return Drawer(sources, Cutter(seconds), mode, questions, seed)


def plan(draws: Drawer, listener: str = "Ann", number: int = 0, heard: Mapping[Key, int] | None = None) -> list[Question]:
    return [each.question for each in draws.draw(listener, number, heard or {}, dry=True)]


def keys(questions: Sequence[Question]) -> list[Key]:
    return [(side.sha256, side.piece) for each in questions for side in (each.real, each.generated) if side]


def test_half_of_the_single_excerpts_of_each_run_are_real(sources: list[Source]) -> None:
    questions = plan(drawer(sources, questions=12))
    assert Counter((each.run, each.right_answer) for each in questions) == {
        (run, right): 3 for run in ("run", "other") for right in ("real", "generated")
    }
    for each in questions:
        assert (each.real is None, each.generated is None) == (each.right_answer == "generated", each.right_answer == "real")
    assert len(set(keys(questions))) == 12
    odd = Counter(each.run for each in plan(drawer(sources, questions=10)))
    assert sorted(odd.values()) == [4, 6]  # always whole couples


def test_pairs_have_one_genre_and_either_order(sources: list[Source]) -> None:
    questions = [each for seed in range(8) for each in plan(drawer(sources[:1], "pairs", 5, seed))]
    for each in questions:
        assert each.real is not None and each.generated is not None and each.genre in Path(each.real.file).parts
        assert each.genre == ("folk", "jazz")[int(each.generated.piece) % 2]
    assert min(Counter(each.right_answer for each in questions).values()) >= 8  # of 40, by chance


def test_the_same_seed_and_listener_give_the_same_session_and_others_another(sources: list[Source]) -> None:
    first = plan(drawer(sources))
    assert first == plan(drawer(sources))
    assert first not in [plan(drawer(sources), "Bob"), plan(drawer(sources), number=1), plan(drawer(sources, seed=1))]


def test_pieces_that_the_listener_knows_come_last_and_are_marked(sources: list[Source]) -> None:
    heard = dict.fromkeys(keys(plan(drawer(sources))), 1)
    second = plan(drawer(sources), number=1, heard=heard)
    assert not set(keys(second)) & heard.keys() and not any(each.heard_before for each in second)
    everything = dict.fromkeys(keys(plan(drawer(sources, questions=16))), 1)
    third = plan(drawer(sources, questions=16), number=1, heard=everything)
    assert any(each.heard_before for each in third)
    assert [each.heard_before for each in third] == [keys([each])[0] in everything for each in third]


def test_too_few_pieces_are_refused_with_what_is_possible(sources: list[Source]) -> None:
    told = (
        r"run: too few pieces: 6 pieces of at least 1\.5 s can be used, questions=20 needs 10; generate more.*or set questions=12"
    )
    with pytest.raises(ValueError, match=told) as error:
        plan(drawer(sources[:1], questions=20))
    assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"run: too few pieces: 0 pieces .* \(6 pieces are left out, such as .*: it is 5\.9 s long"
    ):
        plan(drawer(sources[:1], seconds=30))
    lonely = [replace(sources[0], real=sources[0].real[:1])]
    with pytest.raises(ValueError, match=r"real music for run: too few pieces: 1 piece of .* needs 2; add files, .*questions=2"):
        plan(drawer(lonely))


def test_a_genre_that_no_real_music_has_is_told_and_gets_any_other(sources: list[Source]) -> None:
    assert unmatched(sources) == []
    folk = [replace(sources[0], real=[piece for piece in sources[0].real if piece.genre == "folk"])]
    assert unmatched(folk) == ["run: no real music has the genre of these samples, which get any other: jazz (3)"]
    assert len(plan(drawer(folk))) == 4


def test_a_saved_question_is_made_again_exactly(sources: list[Source]) -> None:
    cutter = Cutter(SECONDS, "anywhere")
    drawn = Drawer(sources[:1], cutter, "pairs", 2, 0).draw("Ann", 0, {})
    for each in drawn:
        again = redraw(each.question, sources[0], cutter)
        assert [one.wav(-30) for one in each.excerpts] == [one.wav(-30) for one in again.excerpts]
    with pytest.raises(ValueError, match="is gone, or has changed since the session began"):
        redraw(drawn[0].question, replace(sources[0], generated=[]), cutter)
