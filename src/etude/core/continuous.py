"""Continuous inputs of tasks as techniques change them, and what a task predicts from them.

Shapes: n examples; r predictions (documents, segments or tokens), c classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from etude.core.any_task import AnyTask
from etude.core.batch import Batch
from etude.core.class_protocols import ClassifiesInputs
from etude.core.gradients import outputs_at
from etude.core.protocols import PredictsTokens, TakesInputs


def check_inputs(technique: str, task: AnyTask, *, predicts: bool = False) -> None:
    """Checks that a technique can change the continuous inputs of one network.

    predicts: whether it also compares what the network predicts.

    Raises: ValueError for a task without continuous inputs, with several players, or without logits if they are needed.
    """
    kind = type(task).__name__
    if not isinstance(task, TakesInputs):
        raise ValueError(
            f"technique {technique} changes continuous inputs (mels, embeddings), which {kind} does not have; remove it from "
            "technique=[...]"
        )
    if len(task.players) > 1:  # type: ignore[attr-defined]
        raise ValueError(
            f"technique {technique} changes the inputs of one network, but {kind} trains several against each other; remove it "
            "from technique=[...]"
        )
    if predicts and not isinstance(task, ClassifiesInputs | PredictsTokens):
        raise ValueError(
            f"technique {technique} compares predictions of classes or tokens, which {kind} does not make; remove it from "
            "technique=[...]"
        )
    try:
        task.inputs({})  # a network without continuous inputs says so before it looks at the batch
    except ValueError as error:
        raise ValueError(f"technique {technique} can't change the inputs of this {kind}: {error}") from error
    except KeyError:
        pass


class ContinuousInput:
    """The continuous input of a task on one batch, its examples in the first axis.

    values: [n, ...], detached. counted: [n, ...] or what broadcasts to it, 1 where values are real and 0 in padding; None if
    all are. An example is a row of tokens with all its documents, or one mel; styles are counted with the rows.
    """

    def __init__(self, task: AnyTask, batch: Batch) -> None:
        self._task, self._batch = task, batch
        ((self._name, self._own),) = task.inputs(batch).items()
        axis = task.example_axis or 0
        self.values = self._own.detach().flatten(0, axis)
        packed = "documents" in batch and self._own.ndim == 3
        self.counted = (batch["documents"] >= 0)[..., None].to(self._own) if packed else None

    def changed(self, change: Tensor) -> Batch:
        """Returns the batch with `change` [n, ...] added to its input; gradients still reach what computed the input."""
        return self._with(self._own + change.to(self._own).reshape(self._own.shape))

    def replaced(self, values: Tensor) -> Batch:
        """Returns the batch with these inputs [n, ...] instead."""
        return self._with(values.to(self._own).reshape(self._own.shape))

    def _with(self, own: Tensor) -> Batch:
        found: Batch = self._task.with_inputs(self._batch, {self._name: own})
        return found

    def loss_of(self) -> Callable[[Tensor], Tensor]:
        """Returns the function from inputs [n, ...] to the weighted sum of the task's losses, a scalar."""

        def loss_of(values: Tensor) -> Tensor:
            losses = self._task.losses_at(self.replaced(values))
            return torch.stack([self._task.loss_weights.get(name, 1.0) * losses[name].float() for name in sorted(losses)]).sum()

        return loss_of


def predictions(task: AnyTask, batch: Batch) -> dict[str, Tensor]:
    """Returns logits [r, c] in float32 for each head, or of each counted token, without changing the state of the run.

    All calls in one step use the same dropout mask.
    """
    if isinstance(task, ClassifiesInputs):
        return {name: logits.float() for name, logits in outputs_at(task, batch, "class_logits").items()}
    logits: Tensor = outputs_at(task, batch, "logits")
    return {"tokens": logits[batch["targets"] != -100].float()}
