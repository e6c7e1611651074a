"""The check of an optimizer's state when a run is resumed: every optimizer, every tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from etude.core.checkpoints import LastCheckpoint
from etude.core.optimizer_state import check_state
from etude.core.protocols import WrapsOptimizer
from tests.toys import PairsData, ToyGan, trainer

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def stepped(name: str) -> tuple[Any, dict[str, nn.Parameter]]:
    """An optimizer after three steps on a matrix, a convolution kernel and a bias."""
    torch.manual_seed(0)
    parameters = {"matrix": nn.Parameter(torch.randn(6, 4)), "kernel": nn.Parameter(torch.randn(3, 2, 5))}
    parameters["bias"] = nn.Parameter(torch.randn(7))
    found = OmegaConf.load(CONF / f"{name}.yaml")
    groups = [
        {"params": [parameters["matrix"], parameters["kernel"]]},
        {"params": [parameters["bias"]], "weight_decay": 0.0},
    ]
    optimizer = instantiate(found.get("optimizer", found), _convert_="all")(groups)
    for _ in range(3):
        for p in parameters.values():
            p.grad = torch.randn_like(p)
        if name == "sophia":
            optimizer._hessian = [torch.rand_like(p) for p in parameters.values()]
        optimizer.step()
    return optimizer, parameters


def tensors(optimizer: Any) -> list[tuple[Any, Any, int | None]]:
    """(state of a parameter, its name, place in a list) of every tensor of more than one element."""
    states = [*optimizer.state.values(), *(optimizer.optimizer.state.values() if isinstance(optimizer, WrapsOptimizer) else ())]
    found: list[tuple[Any, Any, int | None]] = []
    for state in states:
        for name, value in state.items():
            if isinstance(value, Tensor) and value.numel() > 1:
                found.append((state, name, None))
            elif isinstance(value, list):
                found += [(state, name, place) for place, part in enumerate(value) if isinstance(part, Tensor)]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_moment_of_another_size_is_refused_and_its_own_accepted(name: str) -> None:
    optimizer, parameters = stepped(name)
    check_state([optimizer], parameters.items())
    assert len(tensors(optimizer)) >= 3
    for state, moment, place in tensors(optimizer):
        own = state[moment]
        wrong = (own if place is None else own[place]).new_zeros(3, 9)
        for bad in (wrong, wrong[0, :1], "x"):
            state[moment] = bad if place is None else [*own[:place], bad, *own[place + 1 :]]
            with pytest.raises(
                ValueError, match=rf"the optimizer's {moment} of (matrix|kernel|bias) has the shape .*, must have \["
            ):
                check_state([optimizer], parameters.items())
        state[moment] = own
    check_state([optimizer], parameters.items())


def test_it_is_told_before_the_first_batch(tmp_path: Path) -> None:
    last = LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=100)
    trainer(tmp_path, max_steps=2, callbacks=[last]).fit(ToyGan(), PairsData())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    saved["optimizer_states"][0]["state"][0]["exp_avg_sq"] = torch.ones(1)
    torch.save(saved, tmp_path / "wrong.ckpt")
    task = ToyGan()
    with pytest.raises(ValueError, match=r"the optimizer's exp_avg_sq of ab.0.weight has the shape \[1\], must have \[16, 8\]"):
        run = trainer(tmp_path, max_steps=4, callbacks=[last])
        run.fit(task, PairsData(), ckpt_path=tmp_path / "wrong.ckpt", weights_only=True)
    assert task.batches_trained == 2
