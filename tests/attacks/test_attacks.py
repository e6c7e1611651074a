"""Attacks against plain formulas, linear classifiers whose answers are known, and their own budgets."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.attacks.budget import Budget, relative, snr_db, within_snr
from etude.attacks.ensemble import ensemble
from etude.attacks.gradient import apgd, checkpoints, fgsm, pgd
from etude.attacks.minimal import carlini_wagner
from etude.attacks.notes import Changes, change_notes
from etude.attacks.objectives import Fooled, cross_entropy, dlr, margin, targeted_dlr
from etude.attacks.square import square, window_area

EXAMPLES, BANDS, FRAMES, CLASSES = 6, 8, 10, 4


def network(seed: int = 0, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Flatten(), nn.Linear(BANDS * FRAMES, 24), nn.Tanh(), nn.Linear(24, classes))
    return made.requires_grad_(False).eval()


def mels(seed: int = 1) -> Tensor:
    return torch.randn(EXAMPLES, BANDS, FRAMES, generator=torch.Generator().manual_seed(seed))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(direction: Tensor) -> nn.Module:
    """Two classes; the second one's logit is <direction, x>."""
    layer = nn.Linear(direction.numel(), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(direction).flatten(), direction.flatten()]))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer).requires_grad_(False)


# --- gradients ---


def test_fgsm_is_the_formula() -> None:
    model, x, y = network(), mels(), torch.arange(EXAMPLES) % CLASSES
    budget = within_snr(x, 20)
    moved = fgsm(lambda z: cross_entropy(model(z), y), x, budget)
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), y, reduction="sum").backward()
    assert leaf.grad is not None
    epsilon = 0.1 * x.flatten(1).square().mean(1).sqrt()
    expected = x + epsilon[:, None, None] * leaf.grad.sign()
    assert (moved - expected).abs().max() < 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_the_formula(norm: str) -> None:
    model, x, y = network(), mels(), torch.zeros(EXAMPLES, dtype=torch.int64)
    budget = within_snr(x, 20, norm=norm)
    found = pgd(lambda z: cross_entropy(model(z), y), x, budget, steps=5, step_size=0.4, random_start=False)
    rms = x.flatten(1).square().mean(1).sqrt()
    size = 0.1 * (rms if norm == "linf" else rms * math.sqrt(BANDS * FRAMES))
    changed = x.clone()
    for _ in range(5):
        leaf = changed.clone().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]
        for row in range(EXAMPLES):
            if norm == "linf":
                step = (changed[row] + 0.4 * size[row] * gradient[row].sign() - x[row]).clamp(-size[row], size[row])
            else:
                step = changed[row] + 0.4 * size[row] * gradient[row] / gradient[row].norm() - x[row]
                step = step * min(1.0, float(size[row] / step.norm()))
            changed[row] = x[row] + step
    assert (found - changed).abs().max() < 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_attack_stays_inside_the_signal_to_noise_ratio(norm: str) -> None:
    model, x, y = network(), mels(), torch.arange(EXAMPLES) % CLASSES
    counted = torch.ones(EXAMPLES, 1, FRAMES)
    counted[:, :, 7:] = 0  # padding
    budget = within_snr(x, 15, norm=norm, counted=counted)

    def loss_of(z: Tensor) -> Tensor:
        return cross_entropy(model(z), y)

    for found in (
        fgsm(loss_of, x, budget),
        pgd(loss_of, x, budget, generator=draws()),
        pgd(loss_of, x, budget, restarts=3, generator=draws()),
        apgd(loss_of, x, budget, steps=20, generator=draws()),
        square(loss_of, x, budget, queries=30, generator=draws()),
    ):
        measured = snr_db(x, found, counted)
        assert (measured >= 15 - 1e-3).all() and (measured < 40).all()
        assert torch.equal(found[:, :, 7:], x[:, :, 7:])
        assert (budget.of(found - x) <= budget.size * (1 + 1e-5)).all()


def test_more_effort_finds_no_lower_loss() -> None:
    model, x, y = network(), mels(), torch.arange(EXAMPLES) % CLASSES
    budget = within_snr(x, 10)

    def loss_of(z: Tensor) -> Tensor:
        return cross_entropy(model(z), y)

    plain, one = loss_of(x), loss_of(fgsm(loss_of, x, budget))
    many = loss_of(pgd(loss_of, x, budget, steps=40, random_start=False))
    restarted = loss_of(pgd(loss_of, x, budget, steps=20, restarts=4, generator=draws()))
    single = loss_of(pgd(loss_of, x, budget, steps=20, generator=draws()))
    adaptive = loss_of(apgd(loss_of, x, budget, steps=40, generator=draws()))
    assert (one > plain).all() and many.mean() > one.mean()
    assert (restarted >= single - 1e-5).all()
    assert adaptive.mean() > many.mean() * 0.99


def test_of_a_linear_loss_all_attacks_find_the_maximum() -> None:
    direction = torch.randn(BANDS, FRAMES, generator=draws(3))
    x = mels()
    for norm, dual in (("linf", direction.abs().sum()), ("l2", direction.norm())):
        budget = relative(x, 0.2, norm=norm)
        highest = (x * direction).flatten(1).sum(1) + budget.size * dual

        def loss_of(z: Tensor) -> Tensor:
            return (z * direction).flatten(1).sum(1)

        torch.testing.assert_close(loss_of(fgsm(loss_of, x, budget)), highest)
        found = loss_of(pgd(loss_of, x, budget, steps=20, step_size=0.5, generator=draws()))
        torch.testing.assert_close(found, highest, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loss_of(apgd(loss_of, x, budget, steps=20, generator=draws())), highest, rtol=1e-4, atol=1e-4)
        assert (loss_of(square(loss_of, x, budget, queries=400, generator=draws())) > loss_of(x)).all()


def test_checkpoints_of_apgd() -> None:
    assert sorted(checkpoints(100))[:4] == [22, 41, 57, 70]  # p: 0.22, 0.41, 0.57, 0.70


# --- objectives ---


def test_losses_of_attacks_by_hand() -> None:
    logits, true = torch.tensor([[3.0, 1.0, 0.0, -1.0], [2.0, 4.0, 1.0, 0.0]]), torch.tensor([0, 0])
    assert margin(logits, true).tolist() == [-2.0, 2.0]
    torch.testing.assert_close(dlr(logits, true), torch.tensor([-2 / 3, 2 / 3]))
    # towards class 2: (0 - 3) / (3 - (0 - 1) / 2), (1 - 2) / (4 - (1 + 0) / 2)
    torch.testing.assert_close(targeted_dlr(logits, true, torch.tensor([2, 2])), torch.tensor([-3 / 3.5, -1 / 3.5]))
    torch.testing.assert_close(dlr(5 * logits + 2, true), dlr(logits, true))
    two = torch.tensor([[1.0, 4.0]])
    assert dlr(two, torch.tensor([0])).item() == margin(two, torch.tensor([0])).item() == 3.0


def test_a_success_on_the_way_is_kept() -> None:
    model, x = network(), mels()
    y = model(x).argmax(1)
    record = Fooled(model, x, y, within_snr(x, 0))
    pgd(record.loss(), x, record.budget, steps=30, generator=draws())
    assert record.found.any() and record.passes == 30
    wrong = model(record.examples).argmax(1) != y
    assert torch.equal(wrong, record.found)
    torch.testing.assert_close(record.budget.of(record.examples - x)[wrong], record.distance[wrong])
    outside = Fooled(model, x, y, within_snr(x, 60))
    outside.logits(record.examples)
    assert not outside.found.any()


# --- minimal changes ---


def test_carlini_wagner_finds_the_distance_to_a_plane() -> None:
    direction, x = torch.randn(BANDS, FRAMES, generator=draws(3)), mels()
    model = linear(direction)
    y = model(x).argmax(1)
    record = carlini_wagner(model, x, y, steps=300, searches=8)
    expected = (x * direction).flatten(1).sum(1).abs() / direction.norm()
    assert record.found.all()
    assert (record.distance >= expected * (1 - 1e-4)).all()
    torch.testing.assert_close(record.distance, expected, rtol=0.1, atol=0.02)


# --- Square and the ensemble ---


def test_windows_of_square_shrink_at_the_papers_queries() -> None:
    assert [window_area(q, 10_000, 0.8) for q in (0, 10, 11, 51, 9000)] == [0.8, 0.8, 0.4, 0.2, 0.8 / 2**9]
    assert window_area(1, 500, 0.8) == 0.4  # query 20 of 10,000


class Masked(nn.Module):
    """A classifier that hides its gradient: its inputs are rounded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x + ((x * 200).round() / 200 - x).detach() - (x - x.detach()))
        return found


def test_the_ensemble_breaks_what_hides_its_gradients() -> None:
    model, x = network(classes=3), mels()
    y = model(x).argmax(1)
    masked, budget = Masked(model), within_snr(x, 3)
    record = Fooled(masked, x, y, budget)
    pgd(record.loss(), x, budget, steps=20, random_start=False)
    assert not record.found.any()  # the gradient is 0
    found, robust, broken = ensemble(lambda rows: masked, x, y, budget, steps=10, queries=300, generator=draws())
    assert broken["square"] > 0 and not robust.all()
    assert torch.equal(masked(found).argmax(1) == y, robust)
    assert (snr_db(x, found)[~robust] >= 3 - 1e-3).all()
    _, exposed, _ = ensemble(lambda rows: model, x, y, budget, steps=10, queries=50, generator=draws())
    assert exposed.sum() <= robust.sum()


def test_the_ensemble_is_at_least_as_strong_as_each_attack() -> None:
    model, x = network(), mels()
    y = model(x).argmax(1)
    budget = within_snr(x, 12)
    _, robust, broken = ensemble(lambda rows: model, x, y, budget, steps=20, queries=50, generator=draws())
    record = Fooled(model, x, y, budget)
    pgd(record.loss(), x, budget, steps=50, generator=draws(1))
    assert sum(broken.values()) == EXAMPLES - int(robust.sum())
    assert robust.sum() <= (~record.found).sum()


# --- notes ---


def test_notes_are_changed_greedily() -> None:
    worth = torch.tensor([[0.0, 5.0, 1.0], [0.0, 2.0, 3.0], [0.0, -1.0, 0.0]])  # of each token at each place
    tokens = torch.zeros(3, dtype=torch.int64)
    changes = Changes(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1, 2, 1, 2, 1]))

    def loss_of(tried: Tensor) -> Tensor:
        return worth[torch.arange(3), tried].sum(1)

    for notes, expected, losses in ((0, [0, 0, 0], [0]), (1, [1, 0, 0], [0, 5]), (9, [1, 2, 0], [0, 5, 8])):
        found, seen = change_notes(loss_of, tokens, changes, notes=notes, batch_size=2)
        assert found.tolist() == expected and seen == losses
    with pytest.raises(ValueError, match="notes=-1 is below 0"):
        change_notes(loss_of, tokens, changes, notes=-1)


# --- budgets ---


def test_a_budget_of_nothing_changes_nothing() -> None:
    model, x, y = network(), mels(), torch.zeros(EXAMPLES, dtype=torch.int64)
    budget = within_snr(x, math.inf)
    for found in (fgsm, pgd, apgd, square):
        assert torch.equal(found(lambda z: cross_entropy(model(z), y), x, budget), x)  # type: ignore[operator]


def test_bad_budgets_are_told() -> None:
    x = mels()
    with pytest.raises(ValueError, match="snr_db=-3 must be at least 0 dB"):
        within_snr(x, -3)
    with pytest.raises(ValueError, match=r"a budget of -0\.1 times the inputs is below 0"):
        relative(x, -0.1)
    with pytest.raises(ValueError, match=r"a budget of -1\.0 is below 0"):
        Budget(torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="norm=l1 is unknown; choose linf or l2"):
        within_snr(x, 40, norm="l1")
    with pytest.raises(ValueError, match="steps=0"):
        pgd(lambda z: z, x, within_snr(x, 40), steps=0)
    with pytest.raises(ValueError, match="restarts=2 from the same inputs"):
        pgd(lambda z: z, x, within_snr(x, 40), restarts=2, random_start=False)
    with pytest.raises(ValueError, match="queries=0"):
        square(lambda z: z, x, within_snr(x, 40), queries=0)
