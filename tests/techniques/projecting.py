"""What the tests of agem and gem share: runs that note how gradients lie to those of a memory, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.core.rehearsal import Rehearsal
from tests.paradigms.test_continual import Classifier, GenreData
from tests.test_composition import Matrix, build
from tests.test_composition import fit as fit_matrix
from tests.toys import same, trainer, weights


class InDouble(GenreData):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "x": batch["x"].double()}


def watched(kind: type[Any], drawn: Callable[[Any, Any], list[list[Any]]]) -> Any:
    """A technique of this kind that notes the smallest product of the gradient that is used with that of a memory, both of
    length 1; drawn: (technique, task) -> the batches of each memory of the step."""

    class Watched(kind):  # type: ignore[misc]
        worst = 1.0

        @property
        def name(self) -> str:
            return kind.__module__.rpartition(".")[2]

        def transform_gradients(self, task: Any) -> None:
            super().transform_gradients(task)
            for batches in drawn(self, task) if self.memory.num_kept else []:
                slopes = task.gradient_of(batches[0])
                own = torch.cat([p.grad.flatten() for p in task.parameters()])
                reference = torch.cat([slopes[name].flatten() for name, _ in task.named_parameters()])
                self.worst = min(self.worst, float(own @ reference / (own.norm() * reference.norm())))

    return Watched(every=4, size=24, batch_size=8)


def never_points_against(technique: Any, folder: Path) -> None:
    def run(callbacks: list[Any]) -> Any:
        torch.manual_seed(0)
        task = Classifier(seed=1)
        task.example_axis = 0
        task.net[2].p = 0.0
        fitted = trainer(folder, max_steps=12, callbacks=callbacks, limit_val_batches=0)
        fitted.fit(task.double(), InDouble())
        return weights(task)

    on = run([technique])
    assert technique.projected > 2 and technique.worst > -1e-12
    assert not same(on, run([]))


def refuses(kind: type[Rehearsal], folder: Path) -> None:
    """Options out of range, a memory larger than the data and a single phase are told."""
    name = kind.__module__.rpartition(".")[2]
    for option in ("size", "batch_size", "margin", "every"):
        with pytest.raises(ValueError, match=rf"technique\.{name}\.{option} is -1, must be"):
            kind(**{option: -1})  # type: ignore[call-arg]
    songs = Matrix(folder).songs
    larger = kind(size=100, every=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=rf"technique {name} would remember 100 pieces, and LanguageModel has \d+ to train on"):
        fit_matrix(folder / "one", lambda: build("language_model", songs), [larger])
    with pytest.raises(ValueError, match=rf"technique {name} holds on .* single phase"):
        fit_matrix(folder / "two", lambda: build("language_model", songs), [kind(size=4)])  # type: ignore[call-arg]
