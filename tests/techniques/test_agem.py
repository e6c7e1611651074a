"""The gradient that is used never points against a memory, in training, to 1e-12; refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.techniques.continual.agem import Agem
from tests.paradigms.test_continual import Classifier, GenreData
from tests.test_composition import Matrix, build
from tests.test_composition import fit as fit_matrix
from tests.toys import same, trainer, weights


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"every": 2, "size": 8, "batch_size": 2, "margin": 0.9}  # so that every step is changed


class Watched(Agem):
    """Notes the smallest product of the gradient that is used with that of a memory, both of length 1."""

    worst = 1.0

    def transform_gradients(self, task: Any) -> None:
        super().transform_gradients(task)
        draws = self.generator(task.steps_trained)
        for batches in [self.memory.draw(self.batch_size, draws, of=task)] if self.memory.num_kept else []:
            slopes = task.gradient_of(batches[0])
            own = torch.cat([p.grad.flatten() for p in task.parameters()])
            reference = torch.cat([slopes[name].flatten() for name, _ in task.named_parameters()])
            self.worst = min(self.worst, float(own @ reference / (own.norm() * reference.norm())))


class InDouble(GenreData):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "x": batch["x"].double()}


def test_no_step_points_against_a_memory(tmp_path: Path) -> None:
    def run(callbacks: list[Any]) -> Any:
        torch.manual_seed(0)
        task = Classifier(seed=1)
        task.example_axis = 0
        task.net[2].p = 0.0
        fitted = trainer(tmp_path, max_steps=12, callbacks=callbacks, limit_val_batches=0)
        fitted.fit(task.double(), InDouble())
        return weights(task)

    technique = Watched(every=4, size=24, batch_size=8)
    on = run([technique])
    assert technique.projected > 2 and technique.worst > -1e-12
    assert not same(on, run([]))


@pytest.mark.parametrize("option", ["size", "batch_size", "margin", "every"])
def test_bad_options_are_told(option: str) -> None:
    with pytest.raises(ValueError, match=rf"technique\.agem\.{option} is -1, must be"):
        Agem(**{option: -1})


def test_a_memory_that_does_not_fit_and_a_single_phase_are_told(tmp_path: Path) -> None:
    songs = Matrix(tmp_path).songs
    with pytest.raises(ValueError, match=r"technique agem would remember 100 pieces, and LanguageModel has \d+ to train on"):
        fit_matrix(tmp_path / "one", lambda: build("language_model", songs), [Agem(size=100, every=3)])
    with pytest.raises(ValueError, match=r"technique agem holds on .* single phase"):
        fit_matrix(tmp_path / "two", lambda: build("language_model", songs), [Agem(size=4)])
