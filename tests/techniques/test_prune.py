"""Pruning: scores by hand and against gates, what is switched off stays off under any optimizer, refusals."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etude.core.task import Task
from etude.core.technique import Composition
from etude.models.symbolic.attention import Attention
from etude.models.symbolic.blocks import Block, FeedForward
from etude.optim.optimizers import lookahead_adamw, muon
from etude.techniques.continual.packnet import PackNet
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.grow_width import GrowWidth
from etude.techniques.weights.lora import Lora
from etude.techniques.weights.prune import Prune
from tests.toys import PairsData, ToyGan, trainer


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"heads": 0.5, "rounds": 2}


class Blocks(Task):
    """Two residual blocks of two heads and six hidden units on sequences of two vectors."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        super().__init__(optimizer=options.pop("optimizer", partial(torch.optim.SGD, lr=0.1)), **options)
        self.blocks = nn.ModuleList(
            Block(
                attention=Attention(dim=8, num_heads=2, num_kv_heads=2, qk_norm=True, fused=False),
                feed_forward=FeedForward(dim=8, hidden_dim=6), dropout=0.0, fused=False,
            )
            for _ in range(2)
        )  # fmt: skip
        for p in self.parameters():
            nn.init.normal_(p, std=0.3)

    @property
    def residual_blocks(self) -> Any:
        return tuple(self.blocks)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        x = torch.stack([batch["a"], batch["b"]], 1)
        angles = torch.zeros(x.shape[0] * 2, 1, 2)
        for block in self.blocks:
            x = block(x, (angles.cos(), angles.sin()))
        return {"distance": (x - batch["b"][:, None]).square().mean()}


class Gate(nn.Module):
    """Multiplies what comes in by one factor a unit."""

    def __init__(self, layer: nn.Linear, units: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(units))
        layer.register_forward_pre_hook(lambda _, x: (x[0].unflatten(-1, (units, -1)) * self.gate[:, None]).flatten(-2))


def batch() -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(3)
    return {name: torch.randn(5, 8, generator=draws) for name in ("a", "b")}


def test_scores_are_the_derivatives_by_gates(tmp_path: Path) -> None:
    task, technique = Blocks(), Prune(layers=0.5, heads=0.5)
    technique.setup(trainer(tmp_path, max_steps=8), task, "fit")
    task.losses(batch())["distance"].backward()
    technique.transform_gradients(task)
    gates = {n: Gate(layer.output, layer.num_units) for n, layer in technique._units.items()}
    task.losses(batch())["distance"].backward()
    assert sorted(gates) == ["blocks.0.attention", "blocks.0.feed_forward", "blocks.1.attention", "blocks.1.feed_forward"]
    for name, gate in gates.items():
        torch.testing.assert_close(technique.sums[name], gate.gate.grad.abs(), rtol=1e-4, atol=1e-7)
    both = gates["blocks.0.attention"].gate.grad.sum() + gates["blocks.0.feed_forward"].gate.grad.sum()
    torch.testing.assert_close(technique.sums["blocks.0"], both.abs(), rtol=1e-4, atol=1e-7)


def test_the_rule_by_hand(tmp_path: Path) -> None:
    technique, task = Prune(heads=None, units=0.5, rounds=2, start=0.5, end=1.0), Blocks()
    technique.setup(trainer(tmp_path, max_steps=8), task, "fit")
    names = ("blocks.0.feed_forward", "blocks.1.feed_forward")
    # divided by the lengths 10 and 1: .6 .8 0 0 0 0, and 0 0 .1 .2 .3 .927
    technique.sums = {names[0]: torch.tensor([6.0, 8, 0, 0, 0, 0]), names[1]: torch.tensor([0, 0, 0.1, 0.2, 0.3, 0.86**0.5])}
    technique.done = 1
    technique._prune(task)  # 3 of 12: the first zeros
    assert [technique.pruned[name].tolist() for name in names] == [[False, False, True, True, True, False], [False] * 6]
    technique.done = 2
    technique._prune(task)  # 6 of 12
    assert technique.pruned[names[0]].tolist() == [False, False, True, True, True, True]
    assert technique.pruned[names[1]].tolist() == [True, True, False, False, False, False]
    assert [technique._at(number) for number in range(2)] == [4, 8]


def test_the_least_block_goes_and_one_unit_of_each_layer_is_left(tmp_path: Path) -> None:
    technique, task = Prune(heads=None, units=0.9, layers=0.5, rounds=1), Blocks()
    technique.setup(trainer(tmp_path, max_steps=8), task, "fit")
    technique.sums = {name: torch.ones(layer.num_units) for name, layer in technique._units.items()}
    technique.sums |= {"blocks.0": torch.tensor(0.2), "blocks.1": torch.tensor(0.1)}
    technique.done = 1
    technique._prune(task)
    task.trainer = trainer(tmp_path, max_steps=8)
    with torch.no_grad():
        technique._put_back(task)
    assert technique.pruned_blocks == ["blocks.1"] and int(technique.pruned["blocks.0.feed_forward"].sum()) == 5
    x, angles = torch.randn(3, 2, 8), torch.zeros(6, 1, 2)
    assert torch.equal(task.blocks[1](x, (angles.cos(), angles.sin())), x)  # without a block its input is its output


def test_magnitude_is_the_length_of_the_outgoing_weights(tmp_path: Path) -> None:
    technique, task = Prune(rule="magnitude", heads=0.5), Blocks()
    technique.setup(trainer(tmp_path, max_steps=8), task, "fit")
    scores = technique._scores(task)
    weight = task.blocks[0].attention.output.weight
    torch.testing.assert_close(scores["blocks.0.attention"], torch.stack([weight[:, :4].norm(), weight[:, 4:].norm()]))
    feed_forward = task.blocks[0].feed_forward.output.weight
    torch.testing.assert_close(scores["blocks.0.feed_forward"], feed_forward.norm(dim=0))
    torch.testing.assert_close(scores["blocks.0"], torch.cat([weight, feed_forward], 1).norm())


@pytest.mark.parametrize("optimizer", [partial(torch.optim.AdamW, lr=0.05, weight_decay=0.3), lookahead_adamw, muon])
def test_what_is_pruned_stays_0_and_the_share_is_met(tmp_path: Path, optimizer: Any) -> None:
    technique, task = Prune(heads=0.5, units=0.5, start=0.2, end=0.5, rounds=3), Blocks(optimizer=optimizer)
    trainer(tmp_path, max_steps=12, callbacks=[technique], limit_val_batches=0).fit(task, PairsData())
    assert sum(int(mask.sum()) for mask in technique.pruned.values()) == 2 + 6
    for name, mask in technique.pruned.items():
        layer = technique._units[name]
        columns = layer.output.weight.detach().view(8, layer.num_units, -1)
        assert not columns[:, mask].any() and columns[:, ~mask].abs().amax((0, 2)).min() > 0


def test_bad_options_and_nothing_to_prune_are_told(tmp_path: Path) -> None:
    for options, message in (
        ({"heads": 1.0}, r"technique\.prune\.heads is 1\.0, must be in \(0, 1\)"),
        ({"heads": None, "units": None}, r"technique\.prune: heads, units and layers are all null"),
        ({"rule": "size"}, r"technique\.prune\.rule is 'size', must be one of gradient, magnitude"),
        ({"start": 0.9, "end": 0.5}, r"technique\.prune\.start is 0\.9, must not be above"),
        ({"rounds": 0}, r"technique\.prune\.rounds is 0, must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Prune(**options)
    with pytest.raises(ValueError, match="technique prune needs at least two heads that are trained, and ToyGan has none"):
        Prune().setup(trainer(tmp_path, max_steps=4), ToyGan(), "fit")
    with pytest.raises(ValueError, match="technique prune would prune none of the 4 heads of Blocks"):
        Prune(heads=0.2).setup(trainer(tmp_path, max_steps=4), Blocks(), "fit")


def test_weights_that_are_held_cannot_be_pruned() -> None:
    with pytest.raises(ValueError, match="technique 'packnet' holds weights at their values, and technique 'prune' sets them"):
        Composition([Prune(), PackNet(), Ema()])
    with pytest.raises(ValueError, match="technique 'lora' holds weights at their values, and technique 'prune' sets them"):
        Composition([Lora(), Prune()])
    Composition([Prune(), GrowWidth(), Ema()])


def test_blocks_that_a_phase_froze_do_not_count(tmp_path: Path) -> None:
    technique, task = Prune(heads=None, units=None, layers=0.5, rounds=1, rule="magnitude"), Blocks()
    technique.setup(trainer(tmp_path, max_steps=8), task, "fit")
    technique.done, technique.pruned_blocks = 1, ["columns.0.blocks.0"]  # of an earlier column
    assert technique._shares_now(task) == {"layers": 0.0}
    technique._prune(task)
    assert len(technique.pruned_blocks) == 2 and technique._shares_now(task) == {"layers": 0.5}


def test_a_gradient_that_is_not_finite_does_not_spoil_the_scores(tmp_path: Path) -> None:
    technique, task = Prune(heads=0.5), Blocks()
    technique.setup(trainer(tmp_path, max_steps=8), task, "fit")
    for bad in (False, True):
        task.zero_grad()
        task.losses(batch())["distance"].backward()
        if bad:
            task.blocks[0].feed_forward.output.weight.grad[:, 2] = torch.inf
        technique.transform_gradients(task)
    sums = technique.sums["blocks.0.feed_forward"]
    assert sums.isfinite().all() and sums[2] > 0
    assert Prune.kept_options(technique.state_dict()) == {"rounds"}
