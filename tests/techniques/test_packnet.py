"""PackNet: kept weights do not move, under any optimizer and average; shares, recalling, resuming, refusals."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from etude.core.task import Task
from etude.optim.optimizers import ScheduleFree as ScheduleFreeOptimizer
from etude.techniques.continual.packnet import PackNet
from etude.techniques.optim.stages import Stages
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.schedule_free import ScheduleFree
from tests.paradigms.harness import assert_resumes
from tests.paradigms.test_continual import Classifier, GenreData, genres
from tests.test_composition import Matrix, build
from tests.test_composition import fit as fit_matrix
from tests.toys import trainer

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
OPTIMIZERS = sorted(path.stem for path in CONF.glob("*.yaml"))


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"every": 3}


def phases(steps: int = 8, **options: Any) -> Stages:
    return Stages(stages=[{"name": name, "max_steps": steps, **options} for name in ("one", "two")] + [{"name": "three"}])


def optimizer_of(name: str) -> Any:
    node = OmegaConf.load(CONF / f"{name}.yaml")
    return instantiate(node.optimizer if "optimizer" in node else node)


def train(
    folder: Path, technique: PackNet, *callbacks: Any, steps: int = 8, made: tuple[Task, Any] | None = None, **options: Any
) -> tuple[Task, Any]:
    torch.manual_seed(0)
    task, data = made or (Classifier(seed=1, **options), GenreData())
    run = trainer(folder, max_steps=3 * steps, callbacks=[phases(steps), technique, *callbacks], limit_val_batches=0)
    run.fit(task, data)
    return task, run


class Kept(PackNet):
    """Remembers the weights with which each phase ended."""

    def on_phase_end(self, task: Task) -> None:
        super().on_phase_end(task)
        self.__dict__.setdefault("ends", []).append({n: p.detach().clone() for n, p in task.named_parameters()})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_kept_weights_do_not_move_in_any_optimizer(tmp_path: Path, name: str) -> None:
    technique = Kept()
    callbacks = [ScheduleFree()] if name == "schedule_free" else []
    made = build("language_model", Matrix(tmp_path).songs) if name == "sophia" else (Classifier(seed=1), GenreData())
    made[0].use_optimizer(optimizer_of(name))
    task, run = train(tmp_path, technique, *callbacks, made=made)
    evaluated = {n: p.detach() for n, p in task.named_parameters()}
    if isinstance(run.optimizers[0], ScheduleFreeOptimizer):
        averages = {id(p): x for p, x in run.optimizers[0].evaluation_weights().items()}
        evaluated = {n: averages.get(id(p), p.detach()) for n, p in task.named_parameters()}
    assert technique.ended == 2
    for phase, end in enumerate(technique.ends, start=1):
        for weights in (dict(task.named_parameters()), evaluated):
            for key, owner in technique.owner.items():
                own = owner == phase
                assert _largest(weights[key], end[key], own) <= 2e-7
    moved = [_largest(p, technique.ends[1][n], technique.owner[n] == 0) for n, p in task.named_parameters()]
    assert max(moved) > 1e-4  # the free ones went on


def _largest(weight: torch.Tensor, held: torch.Tensor, which: torch.Tensor) -> float:
    apart = (weight.detach() - held)[which].abs()
    return float(apart.max()) if apart.numel() else 0.0


def test_kept_weights_do_not_move_under_an_average(tmp_path: Path) -> None:
    technique, average = Kept(), Ema(decay=0.8, every=1)
    train(tmp_path, technique, average, steps=100)
    for key, owner in technique.owner.items():
        for phase in (1, 2):
            assert _largest(average._average[key], technique.ends[phase - 1][key], owner == phase) <= 2e-7


def test_phases_have_equal_shares_of_matrices_and_the_first_has_all_vectors(tmp_path: Path) -> None:
    technique = Kept()
    task, _ = train(tmp_path, technique)
    for key, p in task.named_parameters():
        counts = torch.bincount(technique.owner[key].flatten().long(), minlength=3).tolist()
        if p.ndim < 2:
            assert counts == [0, p.numel(), 0]
        else:
            third = p.numel() / 3
            assert all(abs(count - third) <= 2 for count in counts)
    ends = technique.ends
    for key, owner in technique.owner.items():
        assert not ends[0][key][owner != 1].any() and not ends[1][key][owner == 0].any()  # what was not kept was set to 0


def test_a_recalled_phase_computes_what_it_computed_when_it_ended(tmp_path: Path) -> None:
    technique, x, outputs = PackNet(keep=0.4), torch.randn(20, 12, generator=torch.Generator().manual_seed(3)), []

    def look(task: Any) -> torch.Tensor:
        was, task.net[2].training = task.net[2].training, False
        with torch.no_grad():
            found = task.net(x)
        task.net[2].training = was
        return found

    class Looked(PackNet):
        def on_phase_end(self, task: Any) -> None:
            super().on_phase_end(task)
            outputs.append(look(task))

    technique = Looked(keep=0.4)
    task, _ = train(tmp_path, technique)
    latest = look(task)
    for phase, before in enumerate(outputs):
        with technique.recalled(task, phase):
            torch.testing.assert_close(look(task), before, rtol=0, atol=1e-6)
        assert (before - latest).abs().max() > 1e-3
    with technique.recalled(task, 2):
        assert torch.equal(look(task), latest)
    assert torch.equal(look(task), latest)


def test_its_own_weights_go_on_learning_after_they_were_chosen(tmp_path: Path) -> None:
    ends = {}
    for retrain in (0.0, 0.5):
        technique = Kept(retrain=retrain)
        train(tmp_path, technique)
        ends[retrain] = technique.ends[0]
    assert any(not torch.equal(ends[0.0][key], ends[0.5][key]) for key in ends[0.0])


@pytest.mark.parametrize("kill", [3, 5, 6, 7, 9])
def test_killed_in_any_part_of_a_phase_it_does_the_same(tmp_path: Path, kill: int) -> None:
    assert_resumes(tmp_path, genres, lambda: [phases(4), PackNet(retrain=0.5), Ema(decay=0.5)], kill=kill)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, r"technique\.packnet\.keep is 0\.0, must be in \(0, 1\]"),
        ({"retrain": 1.0}, r"technique\.packnet\.retrain is 1\.0, must be in \[0, 1\)"),
        ({"every": 0}, r"technique\.packnet\.every is 0"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackNet(**options)


def test_a_single_phase_and_phases_of_unknown_length_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"technique packnet holds on .* single phase"):
        fit_matrix(tmp_path / "one", lambda: build("language_model", Matrix(tmp_path).songs), [PackNet()])
    run = trainer(tmp_path, max_steps=24, callbacks=[phases(), PackNet(every=4)])
    with pytest.raises(ValueError, match=r"technique packnet divides the weights of Classifier among phases or among sections"):
        run.fit(Classifier(), GenreData())
    open_ended = Stages(stages=[{"name": "one", "patience": 2}, {"name": "two"}])
    run = trainer(tmp_path, max_steps=4, callbacks=[open_ended, PackNet()])
    with pytest.raises(ValueError, match=r"retrains at the end of a phase of Classifier, and that of one is not known"):
        run.fit(Classifier(optimizer=partial(torch.optim.SGD, lr=0.1)), GenreData())
