"""The checkpoint of the last whole step, which is written when an error ends the training.

An error comes in the middle of a step: the batch is counted and drawn from the loader, techniques have seen it, and a forward
pass may have changed buffers; but until the optimizer writes, weights and moments are those of the last whole step. So after each
step the small rest is remembered: counters, positions of the loaders, states of techniques, and buffers. Weights and other large
tensors are not copied: if the optimizer has begun its step, or PyTorch has counted a change of one of them, nothing is written.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core import lightning
from etude.core.any_task import AnyTask
from etude.core.gradients import restorables
from etude.core.sharding import is_sharded
from etude.core.technique import Composition

COUNTERS = ("batches_trained", "steps_trained")
LARGE = 2**18  # values of a buffer that is not copied after each step, such as a queue, which changes after the step anyway


class WholeStep:
    """The state of a run after an optimizer step, without copies of weights; see the module."""

    def __init__(self) -> None:
        self.step = -1
        self._buffers: list[tuple[Tensor, Tensor]] = []  # each with its value after the step

    def remember(self, trainer: pl.Trainer, task: AnyTask) -> None:
        """Remembers the state after a step, as a checkpoint that is written now would hold it."""
        if is_sharded(trainer):  # writing is a matter of all ranks there
            return
        self.step = trainer.global_step
        self._composition: Composition = task.composition
        self._composition.stepping = False
        self._loops = _copied(lightning.loops_state(trainer))
        self._counters = {name: vars(task)[name] for name in COUNTERS if name in vars(task)}
        self._callbacks = {c.state_key: _copied(state) for c in lightning.callbacks_of(trainer) if (state := c.state_dict())}
        self._objects = [(each, _copied(vars(each))) for each in restorables(task)]
        self._weights = list(task.parameters())
        buffers = _saved_buffers(task)
        large = [one for one in buffers if one.numel() > LARGE]
        self._fixed = [(one, one._version) for one in (*self._large(trainer), *large)]
        # copied, since BatchNorm changes its buffers without counting
        self._buffers = [(one, one.detach().clone()) for one in buffers if one.numel() <= LARGE]

    def _large(self, trainer: pl.Trainer) -> Iterator[Tensor]:
        yield from self._weights
        for optimizer in trainer.optimizers:
            for state in optimizer.state.values():
                yield from _tensors(state)
        yield from _tensors(self._callbacks)

    def fault(self, *, in_validation: bool = False) -> str | None:
        """Returns why no checkpoint of the last whole step can be made; None if one can.

        in_validation: techniques have exchanged the weights for the validation, and have put them back.
        """
        if self.step < 0:
            return "the error came before the end of the first step"
        if not in_validation and (self._composition.stepping or any(one._version != count for one, count in self._fixed)):
            return "the step had begun to change the weights"
        if not all(bool(torch.isfinite(one).all()) for one in self._weights):
            return "the weights are not finite"
        return None

    def checkpoint(self, trainer: pl.Trainer, task: AnyTask) -> dict[str, Any]:
        """Returns the checkpoint of the last whole step; `fault` must be None. The task is set back to that step."""
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)
        for name, number in self._counters.items():
            setattr(task, name, number)
        for each, state in self._objects:
            vars(each).update(state)
        found = lightning.dump_checkpoint(trainer)
        for key, state in self._callbacks.items():
            found["callbacks"][key] = {**found["callbacks"].get(key, {}), **state}
        return {**found, "loops": self._loops, "global_step": self.step}

    def write(self, trainer: pl.Trainer, task: AnyTask, path: Path, *, in_validation: dict[str, Any] | None = None) -> str | None:
        """Writes the checkpoint of the last whole step to `path`; returns why it could not, None if it is written.

        in_validation: states of callbacks that make a resumed run begin with the validation in which the error came.
        """
        if (fault := self.fault(in_validation=in_validation is not None)) is not None:
            return fault
        try:
            found = self.checkpoint(trainer, task)
            if in_validation is not None:
                found["callbacks"] |= in_validation
                found["loops"] = lightning.loops_state(trainer)
            trainer.strategy.checkpoint_io.save_checkpoint(found, path)
        except Exception as error:  # nothing may hide the error that ended the training
            return " ".join(str(error).split())
        return None


def _copied(node: Any) -> Any:
    """Returns a copy of nested dictionaries and lists; the tensors in it are the same."""
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_copied(value) for value in node]
    return node


def _saved_buffers(task: AnyTask) -> list[Tensor]:
    """Returns the buffers that a checkpoint holds."""
    return [
        value
        for module in task.modules()
        for name, value in module._buffers.items()
        if value is not None and name not in module._non_persistent_buffers_set
    ]


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _tensors(value)
