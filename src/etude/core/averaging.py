"""Weights that stand in for the trained ones in validation, sampling and export, put back bit for bit afterwards."""

from collections.abc import Collection
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class EvaluationWeights:
    """A second set of a task's weights: swapped in for validation, saved as the checkpoint's `state_dict`.

    Whoever loads the checkpoint for sampling or export gets these weights without knowing of the technique that made them;
    the training weights travel in the technique's own state and come back when training goes on. A tied weight, which has
    several names, is held once, under its first. Without `values` nothing is swapped or saved.

    `values` maps names of the state dictionary to tensors; while `swapped`, they are the trained ones.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.swapped = False
        self._restored: dict[str, dict[str, Tensor]] = {}

    @staticmethod
    def trained(task: pl.LightningModule) -> dict[str, Tensor]:
        """Returns the task's weights and buffers of floating point, each once, under its first name; not copies."""
        unique: dict[int, tuple[str, Tensor]] = {}
        for name, value in task.state_dict().items():
            if value.is_floating_point():
                unique.setdefault(value.data_ptr(), (name, value))
        return dict(unique.values())

    @torch.no_grad()
    def begin(self, task: pl.LightningModule) -> None:
        """At the start of training: gives a task that was loaded from a checkpoint its training weights back."""
        if not self._restored:
            return
        weights = self.trained(task)
        self.values = {name: value.to(weights[name].device) for name, value in self._restored.get("average", {}).items()}
        for name, value in self._restored["training_weights"].items():
            weights[name].copy_(value)
        self._restored = {}

    @torch.no_grad()
    def grow(self, task: pl.LightningModule) -> None:
        """Takes in, as they are, the weights that a phase has added to the task, and those parts by which others have grown."""
        if not self.values:
            return
        for name, weight in self.trained(task).items():
            known = self.values.get(name)
            if known is None or known.shape != weight.shape:
                self.values[name] = weight.clone()
                if known is not None:
                    self.values[name][tuple(slice(size) for size in known.shape)] = known

    @torch.no_grad()
    def swap(self, task: pl.LightningModule) -> None:
        """Exchanges the task's weights and `values`; twice is nothing, bit for bit."""
        if not self.values:
            return
        for name, weight in self.trained(task).items():
            held = weight.clone()
            weight.copy_(self.values[name])
            self.values[name].copy_(held)
        self.swapped = not self.swapped

    def swap_back(self, task: pl.LightningModule) -> None:
        """Gives the task its training weights, where it does not have them."""
        if self.swapped:
            self.swap(task)

    def save(self, task: pl.LightningModule, checkpoint: dict[str, Any], state_key: str, *, with_average: bool = True) -> None:
        """Puts `values` into the checkpoint's `state_dict`, the training weights into the technique's state.

        with_average: `values` go into the technique's state as well, where they can't be had from elsewhere on resuming.
        """
        if not self.values:
            return
        weights = self.trained(task)
        averages = {weights[name].data_ptr(): value for name, value in self.values.items()}
        own = checkpoint["callbacks"][state_key]
        own["training_weights"] = weights
        if with_average:
            own["average"] = self.values
        checkpoint["state_dict"] = {
            name: averages.get(value.data_ptr(), value) for name, value in checkpoint["state_dict"].items()
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes from the technique's state what `save` put there, for `begin`."""
        self._restored = {key: state[key] for key in ("average", "training_weights") if key in state}


def use_training_weights(task: pl.LightningModule, checkpoint: dict[str, Any], here: Collection[str]) -> None:
    """Gives a run without the technique whose average is the checkpoint's `state_dict` the training weights to go on from.

    here: state keys of the run's techniques.
    """
    for key, state in checkpoint.get("callbacks", {}).items():
        if key in here or not isinstance(state, dict) or "training_weights" not in state:
            continue
        own, trained = task.state_dict(), state["training_weights"]
        first = {value.data_ptr(): name for name, value in reversed(own.items())}  # a tied weight is held under its first name
        for name, value in own.items():
            if first[value.data_ptr()] in trained:
                checkpoint["state_dict"][name] = trained[first[value.data_ptr()]]


def refuse_split_weights(trainer: pl.Trainer, name: str) -> None:
    """Raises: ValueError where the strategy splits the weights, which the technique `name` averages whole."""
    if type(trainer.strategy).__name__ in ("ModelParallelStrategy", "FSDPStrategy"):
        raise ValueError(f"technique {name} averages whole weights, trainer=fsdp splits them; add technique=[]")
