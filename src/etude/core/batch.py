"""Batches, and the examples that they hold: counting, choosing and joining them is written here once.

A batch is a dictionary of tensors. All its entries hold the examples along one axis, which the task declares as
`example_axis`: 0 for token rows [b, t], 1 for mels of several styles [s, b, m, f]. The declaration stands in the task and not
in the batch, so that collation, pinned memory, a move to another device and a technique's own entries can't lose it.

An example of packed token rows is a whole row, with all documents in it: tokens see their own document only, so rows can be
mixed freely, but a document can't leave its row. Labels of the documents inside go along as entries of shape [b, t].
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = dict[str, Any]


class HasExamples(Protocol):
    """What says along which axis its batches hold their examples; a `Task` does."""

    @property
    def example_axis(self) -> int | None:
        """The axis, the same for every entry of a batch; None where nobody has said."""
        ...


def num_examples(batch: Batch, *, of: HasExamples) -> int:
    """Returns the number of examples in a batch of the task `of`.

    Raises: ValueError where the task declares no axis, or the entries don't agree on the number.
    """
    axis = _axis(of)
    if not batch:
        raise ValueError("the batch is empty; it has no entry to count examples in")
    sizes = {name: _size(name, value, axis) for name, value in batch.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the entries of the batch hold different numbers of examples on axis {axis}: {sizes}")
    return next(iter(sizes.values()))


def take(batch: Batch, indices: Sequence[int] | Tensor, *, of: HasExamples) -> Batch:
    """Returns a batch of the examples `indices`, in their order; an index may occur several times. Gradients pass through.

    Args:
        indices: int64 [n] or a sequence, each in [0, number of examples).
        of: the task that the batch is for.

    Raises: IndexError for an index out of range; ValueError as `num_examples`.
    """
    count, axis = num_examples(batch, of=of), _axis(of)
    chosen = torch.as_tensor(indices, dtype=torch.int64).flatten()
    if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
        raise IndexError(f"indices={chosen.tolist()} must lie in [0, {count}), the examples of the batch")
    return {name: value.index_select(axis, chosen.to(value.device)) for name, value in batch.items()}


def join(batches: Sequence[Batch], *, of: HasExamples) -> Batch:
    """Returns one batch of the examples of all batches, in their order. Gradients pass through.

    Args:
        batches: at least one; all have the same entries, equal in every axis but that of the examples.
        of: the task that the batches are for.

    Raises: ValueError where there is no batch, or the batches don't fit together (the message names the entry).
    """
    axis = _axis(of)
    if not batches:
        raise ValueError("there is no batch to join; give at least one")
    for batch in batches:
        num_examples(batch, of=of)
        if different := sorted(batch.keys() ^ batches[0].keys()):
            raise ValueError(f"the batches can't be joined: not all of them have {', '.join(different)}")
    for name, first in batches[0].items():
        shapes = [list(batch[name].shape) for batch in batches]
        if len({tuple(shape[:axis] + shape[axis + 1 :]) for shape in shapes}) > 1:
            raise ValueError(f"the batches can't be joined: {name} has the shapes {shapes}, which differ beside axis {axis}")
        if kinds := {str(batch[name].dtype) for batch in batches} - {str(first.dtype)}:
            raise ValueError(f"the batches can't be joined: {name} is {first.dtype} in one, {', '.join(kinds)} in another")
    return {name: torch.cat([batch[name] for batch in batches], dim=axis) for name in batches[0]}


def _axis(of: HasExamples) -> int:
    if of.example_axis is None:
        raise ValueError(
            f"{type(of).__name__} does not say which axis of its batches holds the examples; set example_axis in the class"
        )
    return of.example_axis


def _size(name: str, value: Any, axis: int) -> int:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} of the batch is a {type(value).__name__}; only tensors can be split into examples")
    if value.ndim <= axis:
        raise ValueError(f"{name} of the batch has the shape {list(value.shape)}, and no axis {axis} for examples")
    return value.shape[axis]
