"""Takes batches apart into single examples, and puts examples together again; for memories of what was trained on.

Of packed rows of tokens an example is one document: a whole piece, or a window of a piece that was cut at bars. Of all other
batches it is an entry along the task's `example_axis`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from etude.core.batch import Batch, HasExamples, join, num_examples, take

PADDING = {"targets": -100, "documents": -1, "piece": -1}  # of packed rows; -1 of labels, 0 of everything else
MULTIPLE = 8  # padded rows are rounded up to this length, which suits matrix kernels


def is_packed(batch: Batch) -> bool:
    """Whether a batch is of packed rows of tokens, [b, t]."""
    return {"tokens", "documents", "piece"} <= batch.keys()


def keys_of(batch: Batch, *, of: HasExamples) -> list[tuple[int | None, tuple[int, int, int]]]:
    """Returns for each example its piece (None if the batch does not say it) and its place, which `example_at` takes.

    A place is (row, first token, end) in packed rows, otherwise (index, 0, 0).
    """
    if not is_packed(batch):
        count = num_examples(batch, of=of)
        pieces = batch["piece"].tolist() if "piece" in batch and batch["piece"].ndim == 1 else [None] * count
        return [(piece, (index, 0, 0)) for index, piece in enumerate(pieces)]
    return list(_documents(batch["documents"], batch["piece"]))


def _documents(documents_bt: Tensor, piece_bt: Tensor) -> Iterator[tuple[int, tuple[int, int, int]]]:
    for row, (numbers, pieces) in enumerate(zip(documents_bt.cpu(), piece_bt.cpu(), strict=True)):
        found, lengths = torch.unique_consecutive(numbers, return_counts=True)
        start = 0
        for number, length in zip(found.tolist(), lengths.tolist(), strict=True):
            if number >= 0:
                yield int(pieces[start]), (row, start, start + length)
            start += length


def example_at(batch: Batch, place: tuple[int, int, int], *, of: HasExamples) -> Batch:
    """Returns one example as a batch of its own, on the CPU: a copy."""
    row, start, end = place
    if not is_packed(batch):
        return {name: value.detach().cpu().clone() for name, value in take(batch, [row], of=of).items()}
    found = {name: value[row : row + 1, start:end].detach().cpu().clone() for name, value in batch.items()}
    return {**found, "documents": torch.zeros_like(found["documents"])}


def num_tokens(example: Batch) -> int:
    """Returns the length of a document in tokens; 0 for an example that is not of tokens."""
    return int(example["tokens"].shape[1]) if is_packed(example) else 0


def batches_of(examples: Sequence[Batch], *, of: HasExamples, device: torch.device) -> list[Batch]:
    """Returns the examples as few batches as possible: documents as padded rows of one batch, others by their shapes."""
    groups: dict[Any, list[Batch]] = {}
    for example in examples:
        groups.setdefault(_kind(example), []).append(example)
    made = [_padded(group) if is_packed(group[0]) else join(group, of=of) for group in groups.values()]
    return [{name: value.to(device) for name, value in batch.items()} for batch in made]


def _kind(example: Batch) -> Any:
    if is_packed(example):
        return tuple(sorted(example))
    return tuple(sorted((name, tuple(value.shape), str(value.dtype)) for name, value in example.items()))


def _padded(documents: Sequence[Batch]) -> Batch:
    longest = -(-max(num_tokens(each) for each in documents) // MULTIPLE) * MULTIPLE
    found: dict[str, Tensor] = {}
    for name in documents[0]:
        filling = PADDING.get(name, -1 if name.startswith("label_") else 0)
        rows = [each[name] for each in documents]
        found[name] = torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[1]), value=filling) for row in rows])
    return found
