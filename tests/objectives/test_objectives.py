"""Objectives: slow copies and queues follow once a step, `losses` changes nothing; masks have the shares that are asked for."""

import pytest
import torch
from torch import Tensor

from etude.losses.contrastive import nt_xent, sinkhorn, swapped_prediction
from etude.objectives.mae import Mae
from etude.objectives.masked import Masked
from etude.objectives.views import Byol, Moco, SimClr, Swav, ViewObjective


def views(seed: int = 0, count: int = 6) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 8, generator=draws) for _ in range(2)]


def state(module: torch.nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


@pytest.mark.parametrize("kind", [SimClr, Moco, Byol, Swav])
def test_losses_change_nothing_and_reach_every_weight(kind: type[ViewObjective]) -> None:
    torch.manual_seed(0)
    objective = kind(dim=8, hidden_dim=16, projection_dim=4)
    before = state(objective)
    loss, _ = objective.losses(views(), views(1) if kind.uses_copy else [])
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(before, state(objective), strict=True))
    assert all(p.grad is not None and p.grad.any() for p in objective.parameters() if p.requires_grad)


def test_simclr_compares_projections() -> None:
    objective = SimClr(dim=8)
    one, two = views()
    torch.testing.assert_close(
        objective.losses([one, two], [])[0], nt_xent(objective.projector(one), objective.projector(two), temperature=0.1)
    )


def test_the_queue_takes_the_keys_of_all_batches_of_a_step_in_turn() -> None:
    objective = Moco(dim=8, projection_dim=4, queue_size=20)
    first = objective.queue.clone()
    left = [objective.losses(views(i), views(i + 10))[1]["keys"] for i in range(2)]
    assert all(len(keys) == 12 for keys in left)  # of both views
    objective.after_step({"keys": left})
    assert int(objective.place) == 0 and torch.equal(objective.queue, torch.cat(left)[-20:])  # 24 keys, 20 places
    objective.after_step({"keys": left[:1]})
    assert int(objective.place) == 12 and torch.equal(objective.queue[:12], left[0]) and not torch.equal(first, objective.queue)


def test_swav_assigns_a_batch_together_with_earlier_views() -> None:
    torch.manual_seed(0)
    objective = Swav(dim=8, projection_dim=4, num_prototypes=5, queue_size=10)
    first, left = objective.losses([*views(), *views(2)], [])
    assert left["keys"].shape == (12, 4) and int(objective.filled) == 0
    objective.after_step({"keys": [left["keys"]]})
    assert int(objective.filled) == 10 and torch.equal(objective.queue, left["keys"][-10:])
    assert float(objective.losses([*views(), *views(2)], [])[0].detach()) != pytest.approx(float(first.detach()), abs=1e-6)
    alone = Swav(dim=8, projection_dim=4, num_prototypes=5, queue_size=0)
    alone.after_step({"keys": [left["keys"]]})


def test_small_views_predict_and_are_not_predicted() -> None:
    """With the assignments of two views, the loss is the mean over each prediction of another view's assignment."""
    torch.manual_seed(0)
    objective = Swav(dim=8, projection_dim=4, num_prototypes=5)
    one, two, small = *views(), views(3)[0]
    unit = torch.nn.functional.normalize(objective.prototypes, dim=1)
    scores = [torch.nn.functional.normalize(objective.projector(x), dim=1) @ unit.T for x in (one, two, small)]
    assigned = [sinkhorn(x) for x in scores[:2]]
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]
    expected = torch.stack([swapped_prediction(scores[i], assigned[j]) for i, j in pairs]).mean()
    torch.testing.assert_close(objective.losses([one, two, small], [])[0], expected)


def test_a_slow_projector_keeps_its_momentum() -> None:
    objective = Byol(dim=8, momentum=0.75)
    assert objective.slow_projector is not None
    for parameter in objective.projector.parameters():
        parameter.data += 1
    before = [p.clone() for p in objective.slow_projector.parameters()]
    objective.after_step({})
    for old, new in zip(before, objective.slow_projector.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


def test_masks_have_the_shares_that_are_asked_for() -> None:
    torch.manual_seed(0)
    tokens, real = torch.arange(64 * 512).view(64, 512), torch.ones(64, 512, dtype=torch.bool)
    real[:, 400:] = False
    found = Masked(dim=8, share=0.2, replaced=0.3, kept=0.1, span=4.0).corrupt(tokens, real)
    assert not found.asked[:, 400:].any() and not (found.hidden & ~found.asked).any()
    share = found.asked[:, :400].float().mean()
    assert abs(float(share) - 0.2) < 0.02
    assert abs(float(found.hidden.sum() / found.asked.sum()) - 0.6) < 0.02
    assert not (found.tokens != tokens)[~found.asked].any() and (found.tokens != tokens).sum() / found.asked.sum() > 0.25
    runs = found.asked[:, 1:400] & ~found.asked[:, :399]
    length = float(found.asked[:, :400].sum() / (runs.sum() + found.asked[:, 0].sum()))
    assert 4.0 < length < 6.5  # spans of 4 on average, which may touch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masked(dim=8, share=0.0), "objective.share=0.0"),
        (lambda: SimClr(dim=8, temperature=0.0), "objective.temperature=0.0 must be above 0"),
        (lambda: Byol(dim=8, momentum=1.0), r"objective.momentum=1.0 must lie in \[0, 1\)"),
        (lambda: Moco(dim=8, queue_size=0), "objective.queue_size=0 must be at least 1"),
        (lambda: Swav(dim=8, small_crop=[0.5, 0.2]), r"small_crop=\[0.5, 0.2\] \[lowest, highest\] within \(0, 1\]"),
        (lambda: Mae(dim=8, values=4, rows=2, share=1.0), "objective.share=1.0 must lie in"),
        (lambda: Swav(dim=8, num_prototypes=1), "objective.num_prototypes=1 must be at least 2"),
    ],
)
def test_wrong_options_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
