"""Pieces from latents through `write_samples`: what is asked, refused and told."""

from pathlib import Path
from typing import Any

import pytest
from symusic import Note, Score, Track

from etude.generation.latents import latent_wish, likeness, mean_pitch, notes_of_bar
from etude.generation.ranking import ranking
from etude.generation.samples import check_requests, write_samples
from tests.songs import song


class Shifts:
    """A task whose pieces between two scores are the first score, transposed; a slide transposes by its amount."""

    def check_request(self, labels: Any, *, prompt: Any = None, num_bars: int | None = None) -> list[str]:
        return []

    def sample(self, *, num_samples: int = 1, **_: Any) -> list[Score]:
        raise AssertionError("pieces come from latents")

    def check_interpolation(self, first: Score, last: Score, *, steps: int) -> None:
        if steps < 2:
            raise ValueError("steps is too low")

    def check_attribute(self, attribute: str) -> None:
        if attribute != "pitch":
            raise ValueError(f"slide has {attribute!r}")

    def interpolate(self, first: Score, last: Score, *, steps: int, **_: Any) -> list[Score]:
        return [first.shift_pitch(step) for step in range(steps)]

    def slide(self, score: Score, changes: Any, *, num_samples: int = 1, **_: Any) -> list[Score]:
        return [score.shift_pitch(int(changes["pitch"])) for _ in range(num_samples)]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{name}.mid" for name in "ab"]
    for number, path in enumerate(paths):
        song(number, bars=2).dump_midi(path)
    return [str(path) for path in paths]


def test_pieces_between_two_scores_are_written_and_told(files: list[str], tmp_path: Path) -> None:
    task: Any = Shifts()
    made = write_samples(task=task, folder=tmp_path / "run", interpolate=files, steps=3, num_samples=7, audio=False)
    assert [path.name for path in made] == ["000.mid", "001.mid", "002.mid"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "From the first score to the last" in page and "<td>0.50</td>" in page and "<td>1.00</td>" in page


def test_a_slide_of_a_prompt_is_written_and_told(files: list[str], tmp_path: Path) -> None:
    task: Any = Shifts()
    made = write_samples(task=task, folder=tmp_path / "run", prompt=files[0], slide={"pitch": 3}, num_samples=2, audio=False)
    assert len(made) == 2
    before, after = Score(files[0]), Score(made[1])
    assert mean_pitch(after) == pytest.approx(mean_pitch(before) + 3)
    assert "Asked for: pitch +3 standard deviations" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolate": ["a"]}, r"interpolate=\['a'\] must be two scores"),
        ({"interpolate": ["a", "b"], "slide": {"pitch": 1}}, "can't be asked for together"),
        ({"interpolate": ["a", "b"], "key": "C major"}, "key can't be asked for with interpolate"),
        ({"interpolate": ["a", "b"], "prompt": "c"}, "prompt can't be asked for with interpolate"),
        ({"slide": {"pitch": 1}}, "slide changes a score: prompt="),
        ({"slide": {"pitch": "high"}, "prompt": "c"}, "slide.pitch is 'high', must be a number"),
        ({"slide": {"swing": 1}, "prompt": "c"}, "slide has 'swing'"),
        ({"slide": {"pitch": 1}, "prompt": "c", "infill": {"bars": [1, 2]}}, "infill can't be asked for with slide"),
    ],
)
def test_what_can_not_be_asked_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_wish(options, Shifts())


def test_models_without_latents_and_few_steps_are_refused(files: list[str]) -> None:
    class Plain:
        def check_request(self, *_: Any, **__: Any) -> list[str]:
            return []

        def sample(self, **_: Any) -> list[Score]:
            return []

    plain: Any = Plain()
    with pytest.raises(ValueError, match="Plain has no latents; train one with task=vae"):
        check_requests({"interpolate": files}, plain)
    with pytest.raises(ValueError, match="steps is too low"):
        latent_wish({"interpolate": files, "steps": 1}, Shifts())
    assert latent_wish({"infill": {"bars": None}, "slide": None}, plain) is None


def test_likeness_counts_common_notes() -> None:
    first, second = Score(480), Score(96)
    first.tracks.append(Track(notes=[Note(480 * beat, 480, 60 + beat, 80) for beat in range(4)]))
    second.tracks.append(Track(notes=[Note(96 * beat, 96, 60 + beat, 80) for beat in range(2)]))
    assert likeness(first, second) == pytest.approx(2 * 2 / 6)
    assert likeness(first, first) == 1.0 and notes_of_bar(first) == 4.0


def test_steps_without_two_scores_are_refused_and_eight_by_default(files: list[str]) -> None:
    with pytest.raises(ValueError, match="steps=3 is the number of pieces between two scores"):
        latent_wish({"steps": 3}, Shifts())
    wish = latent_wish({"interpolate": files}, Shifts())
    assert wish is not None and wish.steps == 8


def test_a_model_with_latents_has_no_likelihood_to_rank_by() -> None:
    class Rated(Shifts):
        def nats_per_token(self, *_: Any, **__: Any) -> list[float]:
            return []

    task: Any = Rated()
    with pytest.raises(ValueError, match="rank_by=likelihood: Rated has no likelihood"):
        ranking({"best_of": 2, "rank_by": "likelihood"}, task, labels={})
