"""Growing: a block that waits is the identity and rests, one that joins changes nothing at first."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from etude.models.mel.generator import MelGenerator
from etude.techniques.weights.grow_layers import GrowLayers, _networks
from tests.tasks.test_style_transfer import batch, task
from tests.toys import MelsData, ToyGan, trainer


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"end": 1.0}


def deep() -> Any:
    return task(model=partial(MelGenerator, dim=8, num_blocks=4))


class Steps(pl.Callback):
    """After each step: which blocks have a state in the optimizer, and what the first generator gives."""

    def __init__(self) -> None:
        self.stepped: list[list[bool]] = []
        self.active: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        state = trainer.optimizers[0].state
        self.stepped.append([block.project.weight in state for block in pl_module.generators[0].blocks])
        self.active.append(int(trainer.callback_metrics["grow_layers/active"]))


def test_blocks_join_evenly_and_those_that_wait_rest(tmp_path: Path) -> None:
    steps, made = Steps(), deep()
    trainer(tmp_path, max_steps=8, callbacks=[GrowLayers(start=0.25, end=0.75), steps]).fit(made, MelsData())
    assert steps.active == [1, 1, 2, 2, 3, 3, 4, 4]
    assert steps.stepped[1] == [True, False, False, False] and steps.stepped[4] == [True, True, True, False]
    assert all(len(blocks) == 4 for blocks in _networks(made)) and len(_networks(made)) == 6


def test_waiting_or_not_the_function_is_the_same(tmp_path: Path) -> None:
    made = deep()
    technique = GrowLayers(start=0.5)
    technique.setup(trainer(tmp_path, max_steps=4), made, "fit")
    mel = batch(3, 1, 24)["mel"][0]
    generator = made.generators[0]
    torch.nn.init.normal_(generator.outlet.weight, std=0.1)
    outputs = []
    for active in (2, 3, 4):
        technique.active = active
        outputs.append(generator(mel).detach())
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    generator(mel).square().sum().backward()
    assert generator.blocks[3].project.weight.grad.abs().sum() > 0  # and from 0 it can learn


def test_what_cannot_grow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two residual blocks, ToyGan has none"):
        GrowLayers().setup(trainer(tmp_path, max_steps=4), ToyGan(), "fit")
    with pytest.raises(ValueError, match=r"grow_layers.start is 0, must be in \(0, 1\]"):
        GrowLayers(start=0)
