"""Replay: what the memory's loss does to the optimum, its terms, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.techniques.continual.replay import Replay
from etude.techniques.optim.stages import Stages
from tests.continual import EACH, Mean, Points, two_phases
from tests.test_composition import Matrix, build
from tests.test_composition import fit as fit_matrix
from tests.toys import ToyGan, trainer


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"every": 3, "size": 6, "batch_size": 2}


def test_the_second_phase_ends_between_its_data_and_what_is_remembered(tmp_path: Path) -> None:
    technique = Replay(size=2 * EACH, batch_size=EACH, strength=0.5)
    task = two_phases(tmp_path, technique, steps=300)
    first, second = Points().x[:EACH], Points().x[EACH:]
    assert technique.memory.num_kept == EACH  # all of the first phase
    torch.testing.assert_close(task.w.detach(), (second.mean(0) + 0.5 * first.mean(0)) / 1.5, rtol=0, atol=1e-9)


def test_each_term_of_each_player_is_replayed_with_its_weight(tmp_path: Path) -> None:
    technique = Replay(size=8, batch_size=4, strength=0.5)
    task, batch = ToyGan(noise=0.0), {"a": torch.randn(4, 8), "b": torch.randn(4, 8)}
    task.trainer = trainer(tmp_path, max_steps=1)
    assert technique.extra_losses(task, batch, {}) == {}
    technique.memory.add(batch, of=task)
    technique.memory.end_section()
    terms = technique.extra_losses(task, batch, {})
    plain = task.losses(batch)
    assert sorted(terms) == ["discriminator/replay_all", "generator/replay_adversarial", "generator/replay_cycle"]
    torch.testing.assert_close(terms["generator/replay_cycle"], plain["generator/cycle"])
    scales = technique.scale_losses(task, terms)
    assert scales == {"generator/replay_cycle": 5.0, "generator/replay_adversarial": 0.5, "discriminator/replay_all": 0.25}


def test_documents_of_two_genres_are_replayed_as_they_were_trained_on(tmp_path: Path) -> None:
    songs = Matrix(tmp_path).songs
    stages = [{"name": name, "data": {"genre": name}, "max_steps": 4} for name in ("folk", "classical")]
    seen: list[int] = []

    class Heard(Replay):
        def extra_losses(self, task: Any, batch: Any, losses: Any) -> Any:
            seen.extend(p for each in self.memory.draw(4, self.generator(0), of=task) for p in each["piece"].unique().tolist())
            return super().extra_losses(task, batch, losses)

    technique = Heard(size=4, batch_size=2)
    fit_matrix(tmp_path / "run", lambda: build("language_model", songs), [Stages(stages=stages), technique])
    _, data = build("language_model", songs)
    genres = data.pieces()["genre"]
    assert seen and {genres[piece] for piece in seen if piece >= 0} == {"folk"}
    assert len({kept.key for kept in technique.memory.ended[0]}) == 2  # its share of the memory


@pytest.mark.parametrize("option", ["size", "batch_size", "strength"])
def test_bad_options_are_told(option: str) -> None:
    with pytest.raises(ValueError, match=rf"technique\.replay\.{option} is -1, must be"):
        Replay(**{option: -1})


def test_a_memory_that_does_not_fit_is_told(tmp_path: Path) -> None:
    songs = Matrix(tmp_path).songs
    with pytest.raises(ValueError, match=r"technique replay would remember 100 pieces, and LanguageModel has \d+ to train on"):
        fit_matrix(tmp_path / "one", lambda: build("language_model", songs), [Replay(size=100, every=3)])
    with pytest.raises(ValueError, match=r"a memory of 2 is less than one piece for each of 9 phases or sections"):
        fit_matrix(tmp_path / "two", lambda: build("language_model", songs), [Replay(size=2, every=1)])
    with pytest.raises(ValueError, match=r"technique replay holds on .* single phase"):
        fit_matrix(tmp_path / "three", lambda: build("language_model", songs), [Replay(size=2)])
    assert Mean.example_axis == 0
