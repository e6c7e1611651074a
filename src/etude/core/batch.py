"""Functions that count, select and join the examples of batches.

A batch is a dictionary of tensors. All its entries hold the examples along the same axis, which the task declares as
`example_axis`: 0 for token rows [b, t], 1 for mels of several styles [s, b, m, f]. The task declares it, and not the batch, so
it is not lost when a batch is collated, pinned, moved to another device or extended by a technique.

If rows of tokens are packed, an example is a whole row with all its documents. Attention never crosses documents, so rows of
different batches can be mixed, but a document can't be taken out of its row. Labels of documents are entries of shape [b, t].
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = dict[str, Any]


class HasExamples(Protocol):
    """An object that declares the example axis of its batches, such as a `Task`."""

    @property
    def example_axis(self) -> int | None:
        """The axis, the same for every entry of a batch; None if it is not declared."""
        ...


def num_examples(batch: Batch, *, of: HasExamples) -> int:
    """Returns the number of examples in a batch of the task `of`.

    Raises: ValueError if the task declares no axis, or the entries hold different numbers of examples.
    """
    axis = _axis(of)
    if not batch:
        raise ValueError("the batch is empty; it has no entry to count examples in")
    sizes = {name: _size(name, value, axis) for name, value in batch.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the entries of the batch hold different numbers of examples on axis {axis}: {sizes}")
    return next(iter(sizes.values()))


def take(batch: Batch, indices: Sequence[int] | Tensor, *, of: HasExamples) -> Batch:
    """Returns a batch of the examples with the given indices, in that order; an index may be repeated. It is differentiable.

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
    """Returns one batch with the examples of all batches, in their order. It is differentiable.

    Args:
        batches: at least one; all have the same entries, with equal sizes on all axes but the example axis.
        of: the task that the batches are for.

    Raises: ValueError if there is no batch, or the entries differ in name, size or type (the message names the entry).
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
            raise ValueError(f"the batches can't be joined: {name} has the shapes {shapes}, which differ outside axis {axis}")
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


def own_inputs(batch: Batch) -> Batch:
    """Returns the batch for another network: without `embeddings`, which one network has made of the tokens."""
    return {name: value for name, value in batch.items() if name != "embeddings"}
