"""Growing width: a unit that joins changes nothing at first, neither in the weights nor in their average; then it learns."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.core.task import Task
from etude.core.technique import Composition
from etude.optim.optimizers import ScheduleFree, muon
from etude.techniques.optim.stages import Stages
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.grow_layers import GrowLayers
from etude.techniques.weights.grow_width import GrowWidth
from etude.techniques.weights.prune import Prune
from etude.techniques.weights.schedule_free import ScheduleFree as ScheduleFreeTechnique
from tests.techniques.test_prune import Blocks, batch
from tests.toys import PairsData, ToyGan, same, trainer, weights


class Watched(GrowWidth):
    """Notes the widths, and the loss just before and just after units join."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.widths: list[int] = []
        self.changes: list[float] = []
        self.full: list[float] = []

    @property
    def name(self) -> str:
        return "grow_width"

    def after_step(self, task: Task) -> None:
        before, width = self.loss(task), self._layers[0].width
        super().after_step(task)
        self.widths.append(int(self._layers[0].width or 0))
        if self.widths[-1] != width:
            self.changes.append(abs(self.loss(task) - before))
        layers = [layer.width for layer in self._layers]
        for layer in self._layers:
            layer.width = None  # as the checkpoint is read
        self.full.append(abs(self.loss(task) - self.loss_of(task, layers)))

    def loss(self, task: Task) -> float:
        return float(task.losses(batch())["distance"])

    def loss_of(self, task: Task, widths: list[Any]) -> float:
        for layer, width in zip(self._layers, widths, strict=True):
            layer.width = width
        return self.loss(task)


@pytest.mark.parametrize("optimizer", [partial(torch.optim.AdamW, lr=0.05, weight_decay=0.3), muon, ScheduleFree])
def test_units_join_evenly_without_a_change_of_the_function(tmp_path: Path, optimizer: Any) -> None:
    technique, task = Watched(start=0.34, end=0.75, rounds=2), Blocks(optimizer=optimizer)
    assert task.blocks[0].feed_forward.num_units == 6
    average = [ScheduleFreeTechnique()] if optimizer is ScheduleFree else []
    trainer(tmp_path, max_steps=8, callbacks=[technique, *average], limit_val_batches=0).fit(task, PairsData())
    assert technique.widths == [2, 2, 4, 4, 4, 6, 6, 6]
    assert len(technique.changes) == 2 and max(technique.changes) < 1e-5
    assert max(technique.full) < 1e-5  # a network with all units, those that wait included, computes the same


def test_the_average_of_the_weights_keeps_its_function_too(tmp_path: Path) -> None:
    average = Ema(decay=0.7, every=1)
    found: list[float] = []

    class Looked(Watched):
        def after_step(self, task: Task) -> None:
            width = self._layers[0].width
            average._swap(task)
            before = self.loss(task)
            average._swap(task)
            super().after_step(task)
            if self._layers[0].width != width:
                average._swap(task)
                found.append(abs(self.loss(task) - before))
                average._swap(task)

    technique, task = Looked(start=0.34, end=0.75, rounds=2), Blocks(optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer(tmp_path, max_steps=8, callbacks=[technique, average], limit_val_batches=0).fit(task, PairsData())
    assert len(found) == 2 and max(found) < 1e-5


def test_copies_learn_different_things(tmp_path: Path) -> None:
    technique, task = GrowWidth(start=0.5, end=0.25, rounds=1), Blocks()
    trainer(tmp_path, max_steps=8, callbacks=[technique], limit_val_batches=0).fit(task, PairsData())
    layer, sources = task.blocks[0].feed_forward, technique._sources[0]
    for unit, source in enumerate(sources.tolist(), start=3):
        assert (layer.gate.weight[unit] - layer.gate.weight[source]).abs().max() > 1e-4
    assert layer.width == 6 and layer.output.weight[:, 3:].abs().sum(0).min() > 0


def test_what_joins_takes_over_a_share_of_the_outgoing_weights(tmp_path: Path) -> None:
    technique, task = GrowWidth(start=0.5, rounds=1), Blocks()
    technique.setup(trainer(tmp_path, max_steps=4), task, "fit")
    layer = task.blocks[1].feed_forward
    before = layer.output.weight.detach().clone()
    assert not before[:, 3:].any() and layer.width == 3
    with torch.no_grad():
        technique._join(1, 6, {})
    after, sources, shares = layer.output.weight.detach(), technique._sources[1], technique._shares[1]
    assert ((shares >= 0.25) & (shares <= 0.75)).all()
    summed = after[:, :3].clone()
    for unit, source in enumerate(sources.tolist(), start=3):
        assert torch.equal(layer.up.weight[unit], layer.up.weight[source])
        summed[:, source] += after[:, unit]
    torch.testing.assert_close(summed, before[:, :3])
    torch.testing.assert_close(after[:, 3], shares[0] * before[:, sources[0]])


def test_all_units_from_the_start_is_training_without_it(tmp_path: Path) -> None:
    plain, grown = Blocks(), Blocks()
    trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(plain, PairsData())
    trainer(tmp_path, max_steps=4, callbacks=[GrowWidth(start=1.0)], limit_val_batches=0).fit(grown, PairsData())
    assert same(weights(plain), weights(grown))


def test_a_layer_that_was_frozen_grows_when_it_is_trained_again(tmp_path: Path) -> None:
    phases = [{"name": "whole", "max_steps": 2}, {"name": "part", "max_steps": 4, "frozen": ["blocks.0"]}, {"name": "again"}]
    technique, task = GrowWidth(start=0.5, end=0.5, rounds=1), Blocks()
    trainer(tmp_path, max_steps=8, callbacks=[Stages(stages=phases), technique], limit_val_batches=0).fit(task, PairsData())
    assert [layer.width for layer in technique._layers] == [6, 6]


@pytest.mark.parametrize("other", [lambda: GrowWidth(rounds=2), lambda: Prune(layers=0.5)], ids=["grow_width", "prune"])
def test_a_layer_that_the_first_phase_freezes_counts_in_any_order(tmp_path: Path, other: Any) -> None:
    phases = [{"name": "part", "max_steps": 3, "frozen": ["blocks.0"]}, {"name": "all"}]
    one, two = Blocks(), Blocks()
    trainer(tmp_path, max_steps=8, callbacks=[Stages(stages=phases), other()], limit_val_batches=0).fit(one, PairsData())
    trainer(tmp_path, max_steps=8, callbacks=[other(), Stages(stages=phases)], limit_val_batches=0).fit(two, PairsData())
    assert same(weights(one), weights(two))


def test_what_cannot_grow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="technique grow_width needs feed-forward layers that are trained, and ToyGan has none"):
        GrowWidth().setup(trainer(tmp_path, max_steps=4), ToyGan(), "fit")
    with pytest.raises(ValueError, match=r"technique\.grow_width\.start is 0, must be in \(0, 1\]"):
        GrowWidth(start=0)
    with pytest.raises(ValueError, match=r"technique\.grow_width\.rounds is 0, must be at least 1"):
        GrowWidth(rounds=0)
    with pytest.raises(ValueError, match="grow_layers' and 'grow_width' both claim"):
        Composition([GrowWidth(), GrowLayers()])
