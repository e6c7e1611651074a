"""Elastic weight consolidation: the optimum of a quadratic solved by hand, Fisher information, phases that add up, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from etude.core.technique import StepSlot
from etude.optim.consolidation import fisher_diagonal
from etude.techniques.continual.ewc import Ewc
from tests.continual import EACH, Mean, PointData, Points, two_phases
from tests.paradigms.test_continual import Classifier
from tests.test_composition import Matrix, build
from tests.test_composition import fit as fit_matrix
from tests.toys import ToyGan, same, trainer, weights


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"every": 3, "samples": 4}


def halves() -> tuple[torch.Tensor, torch.Tensor]:
    x = Points().x
    return x[:EACH], x[EACH:]


@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_the_second_phase_ends_at_the_optimum_that_is_solved_by_hand(tmp_path: Path, strength: float) -> None:
    first, second = halves()
    task = two_phases(tmp_path, Ewc(strength=strength, samples=EACH), steps=300)
    held, fisher = first.mean(0), first.var(0, unbiased=False)  # at w = mean the gradients of single points are w - x
    expected = (second.mean(0) + strength * fisher * held) / (1 + strength * fisher)
    torch.testing.assert_close(task.w.detach(), expected, rtol=0, atol=1e-9)


def test_fisher_information_is_that_of_single_examples_by_vmap_and_not_that_of_the_batch() -> None:
    torch.manual_seed(0)
    task = Classifier().double().eval()
    x, y = torch.randn(64, 12, dtype=torch.float64), torch.randint(0, 4, (64,))

    def loss(parameters: dict[str, torch.Tensor], one: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(task.net, parameters, one[None]), label[None])

    parameters = {name.removeprefix("net."): p.detach() for name, p in task.named_parameters()}
    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    task.train()  # dropout is off nevertheless
    found = fisher_diagonal(task, [{"x": x[i : i + 1], "y": y[i : i + 1]} for i in range(64)])
    assert task.net[2].training
    for name, slopes in each.items():
        torch.testing.assert_close(found[f"net.{name}"], slopes.square().mean(0), rtol=1e-12, atol=1e-15)
    of_batch = fisher_diagonal(task, [{"x": x, "y": y}])
    ratio = sum(float(v.sum()) for v in found.values()) / sum(float(v.sum()) for v in of_batch.values())
    assert ratio > 5  # what one gradient of the batch would miss


def test_penalties_of_phases_add_up_around_one_centre_and_online_ones_decay() -> None:
    def after_two(**options: Any) -> tuple[Ewc, list[torch.Tensor]]:
        technique, task = Ewc(samples=EACH, **options), Mean()
        task.trainer = trainer(Path(), max_steps=1)
        places = [torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([0.0, -1, 5, 2]).double()]
        for place, points in zip(places, halves(), strict=True):
            task.w.data.copy_(place)
            technique.memory.add({"x": points, "piece": torch.arange(EACH)}, of=task)
            technique._consolidate(task)
        return technique, places

    first, second = halves()
    technique, places = after_two()
    each = [(place - points).square().mean(0) for place, points in zip(places, (first, second), strict=True)]
    probes = torch.randn(2, 4, dtype=torch.float64)

    def of_both(w: torch.Tensor) -> torch.Tensor:
        return sum(((f * (w - c) ** 2).sum() for f, c in zip(each, places, strict=True)), torch.tensor(0.0))

    def of_one(w: torch.Tensor) -> torch.Tensor:
        return (technique.fisher["w"] * (w - technique.centre["w"]) ** 2).sum()

    torch.testing.assert_close(of_both(probes[0]) - of_both(probes[1]), of_one(probes[0]) - of_one(probes[1]))
    online, _ = after_two(decay=0.25)
    torch.testing.assert_close(online.fisher["w"], 0.25 * each[0] + each[1])
    assert torch.equal(online.centre["w"], places[1])


def test_a_run_that_starts_from_another_one_holds_what_that_one_learned(tmp_path: Path) -> None:
    first, held = Mean(), Ewc(strength=1e6, samples=8, every=100)
    technique = two_phases(tmp_path, held, steps=3, task=first) and held
    carried = Ewc(strength=1e6, samples=8)
    found = carried.carried_state(technique.state_dict())
    assert found is not None
    carried.load_state_dict(found)
    again = Mean()
    again.load_state_dict(first.state_dict())
    run = trainer(tmp_path, max_steps=1, callbacks=[carried], limit_val_batches=0)
    run.fit(again, PointData(1))
    assert carried.fisher["w"].gt(held.fisher["w"]).all() and not carried._carried
    assert torch.equal(carried.centre["w"].isfinite(), torch.ones(4, dtype=torch.bool)) and carried.step_slot is StepSlot.PLAN


def test_each_player_has_a_penalty_of_its_own(tmp_path: Path) -> None:
    technique = Ewc(every=1, samples=2)
    task, batch = ToyGan(), {"a": torch.randn(3, 8), "b": torch.randn(3, 8)}
    task.trainer = trainer(tmp_path, max_steps=1)
    technique.memory.add(batch, of=task)
    technique._consolidate(task)
    assert sorted(technique.extra_losses(task, batch, {})) == ["discriminator/ewc", "generator/ewc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, r"technique\.ewc\.strength is -1\.0, must be above 0"),
        ({"decay": 0.0}, r"technique\.ewc\.decay is 0\.0, must be in \(0, 1\]"),
        ({"samples": 0}, r"technique\.ewc\.samples is 0"),
        ({"every": 0}, r"technique\.ewc\.every is 0"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ewc(**options)


def test_a_single_phase_and_more_samples_than_pieces_are_told(tmp_path: Path) -> None:
    songs = Matrix(tmp_path).songs
    with pytest.raises(ValueError, match=r"technique ewc holds on .* single phase; choose stage=genres"):
        fit_matrix(tmp_path / "one", lambda: build("language_model", songs), [Ewc(samples=4)])
    with pytest.raises(ValueError, match=r"technique ewc would remember 64 pieces, and LanguageModel has \d+ to train on"):
        fit_matrix(tmp_path / "two", lambda: build("language_model", songs), [Ewc(every=3)])


def test_another_strength_is_another_run(tmp_path: Path) -> None:
    weak, strong = (two_phases(tmp_path, Ewc(strength=s, samples=8), steps=5) for s in (0.1, 1.0))
    assert not same(weights(weak), weights(strong))
