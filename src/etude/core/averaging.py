"""Averaged weights that replace the training weights in validation and checkpoints."""

from collections.abc import Collection
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.sharding import is_sharded


class EvaluationWeights:
    """A second set of weights, such as an average: used for validation and saved as the checkpoint's `state_dict`.

    Code that loads the checkpoint for sampling or export gets these weights and needs to know nothing of the technique that
    computed them. The training weights are saved in the technique's state and restored, bit for bit, when training continues. A
    tied weight, which has several names, is stored once, under the first. While `values` is empty nothing is swapped or saved.

    values: name in the state dictionary -> tensor. While `swapped` is True, the model has these weights and `values` holds the
        training weights.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.swapped = False
        self._restored: dict[str, dict[str, Tensor]] = {}

    @staticmethod
    def float_weights(task: pl.LightningModule) -> dict[str, Tensor]:
        """Returns the task's floating-point weights and buffers (not copies), each once, under its first name."""
        unique: dict[int, tuple[str, Tensor]] = {}
        for name, value in task.state_dict().items():
            if value.is_floating_point():
                unique.setdefault(value.data_ptr(), (name, value))
        return dict(unique.values())

    @torch.no_grad()
    def restore(self, task: pl.LightningModule) -> None:
        """Restores the training weights and `values` after a checkpoint was loaded; call it when training starts."""
        if not self._restored:
            return
        weights = self.float_weights(task)
        self.values = {name: value.to(weights[name].device) for name, value in self._restored.get("average", {}).items()}
        for name, value in self._restored["training_weights"].items():
            weights[name].copy_(value)
        self._restored = {}

    @torch.no_grad()
    def extend(self, task: pl.LightningModule) -> None:
        """Copies the weights that a phase has added to the task, and the new entries of enlarged ones, into `values`."""
        if not self.values:
            return
        for name, weight in self.float_weights(task).items():
            known = self.values.get(name)
            if known is None or known.shape != weight.shape:
                self.values[name] = weight.clone()
                if known is not None:
                    self.values[name][tuple(slice(size) for size in known.shape)] = known

    @torch.no_grad()
    def swap(self, task: pl.LightningModule) -> None:
        """Exchanges the task's weights with `values`; a second call undoes the first, bit for bit."""
        if not self.values:
            return
        for name, weight in self.float_weights(task).items():
            previous = weight.clone()
            weight.copy_(self.values[name])
            self.values[name].copy_(previous)
        self.swapped = not self.swapped

    def swap_back(self, task: pl.LightningModule) -> None:
        """Undoes `swap` if it was called; otherwise does nothing."""
        if self.swapped:
            self.swap(task)

    def save(self, task: pl.LightningModule, checkpoint: dict[str, Any], state_key: str, *, with_average: bool = True) -> None:
        """Writes `values` to the checkpoint's `state_dict` and the training weights to the technique's state.

        state_key: of the technique. with_average: also write `values` to the technique's state, for resuming; False if they can
        be computed again.
        """
        if not self.values:
            return
        weights = self.float_weights(task)
        averages = {weights[name].data_ptr(): value for name, value in self.values.items()}
        own = checkpoint["callbacks"][state_key]
        own["training_weights"] = weights
        if with_average:
            own["average"] = self.values
        checkpoint["state_dict"] = {
            name: averages.get(value.data_ptr(), value) for name, value in checkpoint["state_dict"].items()
        }

    def load(self, state: dict[str, Any]) -> None:
        """Reads what `save` wrote to the technique's state; `restore` then uses it."""
        self._restored = {key: state[key] for key in ("average", "training_weights") if key in state}


def use_training_weights(task: pl.LightningModule, checkpoint: dict[str, Any], techniques: Collection[str]) -> None:
    """Replaces an average in the checkpoint's `state_dict` by the training weights, if this run lacks the averaging technique.

    Without this, training would continue from the average. techniques: the state keys of this run's techniques.
    """
    for key, state in checkpoint.get("callbacks", {}).items():
        if key in techniques or not isinstance(state, dict) or "training_weights" not in state:
            continue
        own, trained = task.state_dict(), state["training_weights"]
        first = {value.data_ptr(): name for name, value in reversed(own.items())}  # a tied weight is stored under its first name
        for name, value in own.items():
            if first[value.data_ptr()] in trained:
                checkpoint["state_dict"][name] = trained[first[value.data_ptr()]]


def refuse_split_weights(trainer: pl.Trainer, name: str) -> None:
    """Raises: ValueError if the strategy shards the weights; the technique `name` needs whole weights."""
    if is_sharded(trainer):
        raise ValueError(f"technique {name} averages whole weights, but trainer=fsdp shards them; add technique=[]")
