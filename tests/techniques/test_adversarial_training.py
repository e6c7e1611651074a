"""Adversarial training: the change is the attack's and within its budget, each method is its formula, and runs resume."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.attacks.budget import snr_db, within_snr
from etude.core.continuous import ContinuousInput, predictions
from etude.core.technique import Composition, Power, Technique
from etude.losses.divergence import mean_kl
from etude.techniques.robust.adversarial_training import AdversarialTraining
from tests.robust import first_batch, pair
from tests.test_composition import build, fit
from tests.toys import same


def matrix_options(kind: str, folder: Path, build: Any) -> dict[str, Any]:
    return {"snr_db": 20.0, "steps": 2}  # so that eight steps show it


@pytest.mark.parametrize("kind", ["classifier", "grader"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_raises_the_loss_within_the_ratio(tmp_path: Path, kind: str, norm: str) -> None:
    task, data = pair(kind, tmp_path)
    task.eval()
    batch = first_batch(data)
    given = ContinuousInput(task, batch)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    random = torch.get_rng_state()
    changed = AdversarialTraining(snr_db=20, norm=norm).transform_batch(task, batch)
    assert torch.equal(random, torch.get_rng_state()) and same(before, dict(task.state_dict()))
    assert all(parameter.grad is None for parameter in task.parameters())
    moved = ContinuousInput(task, changed).values
    ratio = snr_db(given.values, moved, given.counted)
    assert (ratio >= 20 - 1e-3).all() and (ratio < 26).all()
    noise = given.values + within_snr(given.values, 20, norm=norm, counted=given.counted).random(given.values)
    plain, noisy, attacked = (
        float(torch.stack(list(task.losses(b).values())).sum().detach()) for b in (batch, given.replaced(noise), changed)
    )
    assert attacked > plain and attacked - plain > 3 * abs(noisy - plain)


def test_no_budget_changes_nothing_and_a_share_of_rows_stays(tmp_path: Path) -> None:
    task, data = pair("grader", tmp_path)
    batch = first_batch(data)
    assert torch.equal(AdversarialTraining(snr_db=math.inf).transform_batch(task, batch)["mel"], batch["mel"])
    changed = AdversarialTraining(snr_db=20, clean=0.5, seed=3).transform_batch(task, batch)
    stayed = (changed["mel"] == batch["mel"]).flatten(2).all(-1)
    assert stayed.any() and not stayed.all()


def test_gradients_still_reach_the_embeddings(tmp_path: Path) -> None:
    task, data = pair("classifier", tmp_path)
    changed = AdversarialTraining(snr_db=20).transform_batch(task, first_batch(data))
    torch.stack(list(task.losses(changed).values())).sum().backward()
    table: Any = dict(task.named_parameters())["model.networks.0.embedding.weight"]
    assert table.grad is not None and table.grad.abs().sum() > 0


def test_freelb_is_the_mean_over_its_ascent(tmp_path: Path) -> None:
    task, data = pair("grader", tmp_path)
    task.eval()  # so that both computations see the same network
    batch = first_batch(data)
    technique = AdversarialTraining(method="freelb", snr_db=20, steps=3, step_size=0.4, norm="l2")
    found = technique.make_losses(task, batch)
    given = ContinuousInput(task, batch)
    budget = within_snr(given.values, 20, norm="l2")
    change, points = budget.random(given.values, technique.generator(0)), []
    for _ in range(3):
        losses = task.losses(given.replaced((given.values + change).requires_grad_()))
        points.append(losses)
        leaf = (given.values + change).requires_grad_()
        total = torch.stack([task.loss_weights.get(n, 1.0) * v for n, v in task.losses(given.replaced(leaf)).items()]).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
        step = gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
        change = budget.projected(change + 0.4 * budget.size[:, None, None] * step)
    for name in found:
        torch.testing.assert_close(found[name], torch.stack([p[name] for p in points]).mean(), atol=1e-6, rtol=1e-5)


def test_vat_finds_a_change_that_moves_predictions_more_than_chance(tmp_path: Path) -> None:
    task, data = pair("classifier", tmp_path)
    batch = first_batch(data)
    technique = AdversarialTraining(method="vat", snr_db=10, weight=3.0, steps=2)
    found = technique.extra_losses(task, batch, {})["vat"]
    given = ContinuousInput(task, batch)
    budget = within_snr(given.values, 10, counted=given.counted)
    said = predictions(task, batch)
    chance = mean_kl(
        said, predictions(task, given.replaced(given.values + budget.random(given.values).sign() * budget.like(given.values)))
    )
    assert found > 2 * chance > 0
    assert technique.scale_losses(task, {"vat": found}) == {"vat": 3.0}
    unlabelled = {name: torch.full_like(v, -1) if name.startswith("label_") else v for name, v in batch.items()}
    torch.testing.assert_close(technique.extra_losses(task, unlabelled, {})["vat"], found)


def test_divergence_by_hand() -> None:
    one, other = {"a": torch.tensor([[math.log(3.0), 0.0]])}, {"a": torch.tensor([[0.0, 0.0]])}
    assert mean_kl(one, other).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    assert mean_kl({"a": torch.zeros(0, 2)}, {"a": torch.zeros(0, 2)}).item() == 0


@pytest.mark.parametrize("method", ["pgd", "freelb", "vat"])
@pytest.mark.parametrize("kind", ["classifier", "grader"])
def test_every_method_trains_and_resumes(tmp_path: Path, kind: str, method: str) -> None:
    def run(folder: str, **options: Any) -> dict[str, Any]:
        technique = AdversarialTraining(method=method, snr_db=20, steps=2)
        return fit(tmp_path / folder, lambda: pair(kind, tmp_path), [technique], **options)

    whole = run("whole")
    run("half", kill_at=3)
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])
    off = fit(tmp_path / "off", lambda: pair(kind, tmp_path), [])
    assert not same(off["trained"], whole["trained"])


def test_only_freelb_owns_the_losses() -> None:
    class Owner(Technique):
        claims = frozenset({Power.LOSSES})

        def make_losses(self, task: Any, batch: Any) -> dict[str, Tensor]:
            return {}

    Composition([AdversarialTraining(), Owner()])
    with pytest.raises(ValueError, match="both claim how the task's losses are made"):
        Composition([AdversarialTraining(method="freelb"), Owner()])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "madry"}, r"method is 'madry'; choose pgd, freelb, vat"),
        ({"snr_db": -1.0}, r"snr_db=-1\.0 must be at least 0 dB"),
        ({"norm": "l1"}, r"norm is 'l1'; choose linf or l2"),
        ({"steps": 0}, r"steps is 0, must be at least 1"),
        ({"step_size": 0.0}, r"step_size is 0\.0, must be above 0"),
        ({"clean": 1.0}, r"clean is 1\.0, must be in \[0, 1\)"),
        ({"method": "vat", "clean": 0.5}, r"clean=0\.5 is for method=pgd, not vat; leave it out"),
        ({"weight": 2.0}, r"weight=2\.0 is for method=vat, not pgd; leave it out"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=rf"technique\.adversarial_training\.{told}"):
        AdversarialTraining(**options)


def test_tasks_without_continuous_inputs_are_refused(tmp_path: Path) -> None:
    task, _ = build("gan", tmp_path)
    with pytest.raises(ValueError, match=r"technique adversarial_training changes continuous inputs .* ToyGan does not have"):
        AdversarialTraining().setup(None, task, "fit")  # type: ignore[arg-type]
    apart, _ = pair("classifier", tmp_path, sharing="soft")
    with pytest.raises(ValueError, match=r"technique adversarial_training can't change the inputs of this Classifier: .*hard"):
        AdversarialTraining().setup(None, apart, "fit")  # type: ignore[arg-type]
