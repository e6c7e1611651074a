"""Meta-experience replay: with interpolation 1 it is replay, its weights by hand, the optimizer's copies, refusals."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.optim.optimizers import ScheduleFree, lookahead_adamw
from etude.techniques.continual.meta_replay import MetaReplay
from etude.techniques.continual.replay import Replay
from etude.techniques.optim.stages import Stages
from etude.techniques.weights.schedule_free import ScheduleFree as ScheduleFreeTechnique
from tests.continual import EACH, Mean, PointData, Points, two_phases
from tests.toys import same, trainer, weights


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"every": 3, "size": 6, "batch_size": 2, "cycle": 2}


def looked(technique: MetaReplay, look: Callable[[], tuple[torch.Tensor, ...]]) -> list[tuple[torch.Tensor, ...]]:
    """Returns a list that copies of what `look` finds after each step are added to."""
    seen: list[tuple[torch.Tensor, ...]] = []
    technique.on_train_batch_end = lambda *_: seen.append(tuple(x.detach().clone() for x in look()))  # type: ignore[assignment]
    return seen


def test_with_interpolation_1_it_is_replay(tmp_path: Path) -> None:
    sizes = {"size": 16, "batch_size": 16}  # all that is kept, since each technique draws for itself
    plain = two_phases(tmp_path / "a", Replay(**sizes), steps=7)
    meta = two_phases(tmp_path / "b", MetaReplay(**sizes, cycle=3, interpolation=1.0), steps=7)
    half = two_phases(tmp_path / "c", MetaReplay(**sizes, cycle=3, interpolation=0.5), steps=7)
    assert same(weights(plain), weights(meta)) and not same(weights(plain), weights(half))


def test_the_weights_by_hand(tmp_path: Path) -> None:
    technique, task = MetaReplay(size=2 * EACH, batch_size=EACH, cycle=3, interpolation=0.25), Mean()
    seen = looked(technique, lambda: (task.w,))
    two_phases(tmp_path, technique, steps=5, task=task)
    first, second = Points().x[:EACH].mean(0), Points().x[EACH:].mean(0)
    began = w = torch.zeros(4, dtype=torch.float64)
    expected, taken = [], 0
    for step in range(10):
        if step == 5:
            began, taken = w, 0  # a phase begins a cycle
        slope = w - first if step < 5 else (w - second) + (w - first)  # of all that is remembered, as often as of what is new
        w, taken = w - 0.1 * slope, taken + 1
        if taken == 3:
            w = began + 0.25 * (w - began)
            began, taken = w, 0
        expected.append(w)
    torch.testing.assert_close(torch.stack([w for (w,) in seen]), torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("optimizer", "copy"), [(ScheduleFree, "z"), (lookahead_adamw, "slow_params")])
def test_copies_that_the_optimizer_keeps_go_the_same_way(tmp_path: Path, optimizer: Any, copy: str) -> None:
    def after_a_cycle(interpolation: float) -> tuple[torch.Tensor, torch.Tensor]:
        task = Mean(optimizer=partial(optimizer, lr=0.1))
        technique = MetaReplay(size=8, cycle=5, interpolation=interpolation)
        seen = looked(technique, lambda: (task.w, task.trainer.optimizers[0].state[task.w][copy]))
        average = [ScheduleFreeTechnique()] if optimizer is ScheduleFree else []
        phases = Stages(stages=[{"name": "first", "max_steps": 5}, {"name": "second"}])
        run = trainer(tmp_path / str(interpolation), max_steps=6, callbacks=[phases, technique, *average], limit_val_batches=0)
        run.fit(task, PointData(5))
        return seen[4]

    (whole, its_copy), (half, other) = after_a_cycle(1.0), after_a_cycle(0.5)
    assert whole.abs().min() > 0 and its_copy.abs().min() > 0
    torch.testing.assert_close(half, whole / 2)  # from weights of 0
    torch.testing.assert_close(other, its_copy / 2)


def test_bad_options_are_told() -> None:
    for option, value in (("cycle", 1), ("interpolation", 0), ("interpolation", 1.5), ("size", 0)):
        with pytest.raises(ValueError, match=rf"technique\.meta_replay\.{option} is {value}, must be"):
            MetaReplay(**{option: value})
