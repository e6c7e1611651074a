"""The documents of packed rows as sequences of ids, which can be changed and packed again.

The sequence of a document is its input tokens and its last target: BOS or CONT, controls, body and, where the piece ends, EOS.

Shapes: b rows, t tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.tokens.grammar import BOS, EOS
from etude.tokens.tokenizer import Tokenizer

IGNORED = -100
EMPTY = {"targets": IGNORED, "documents": -1, "piece": -1}  # what padding holds; -1 for labels, else 0
ONE_EACH = ("piece", "documents")  # entries that are the same for all tokens of a document, and labels
Batch = dict[str, Any]


@dataclass(frozen=True)
class RowDocument:
    """A document of a packed row.

    row, start, stop: where its inputs are. ids: its sequence, int64 [stop - start + 1].
    features: name -> those of its inputs, int64 [stop - start].
    plain: whether its positions count up from 0 and exactly its body and EOS count for the loss. It is not so for a piece with a
        hole (see `infilling`), nor where another technique has masked targets.
    """

    row: int
    start: int
    stop: int
    ids: np.ndarray
    features: dict[str, np.ndarray]
    plain: bool

    @property
    def begins(self) -> bool:
        """Whether it begins where its piece does."""
        return bool(self.ids[0] == BOS)

    @property
    def ends(self) -> bool:
        """Whether it ends where its piece does."""
        return bool(self.ids[-1] == EOS)


def counts(ids: np.ndarray, first_body: int) -> np.ndarray:
    """Returns which ids of a sequence without holes count for the loss: body and EOS, bool [n]."""
    counted: np.ndarray = (ids >= first_body) | (ids == EOS)
    return counted


def documents_of_rows(batch: Batch, tokenizer: Tokenizer) -> list[RowDocument]:
    """Returns the documents of a batch of packed rows, row by row."""
    names = [name for name in batch if name.startswith("feature_")]
    arrays = {name: batch[name].cpu().numpy() for name in ("tokens", "targets", "documents", "positions", *names)}
    found = []
    for row, owner in enumerate(arrays["documents"]):
        borders = np.flatnonzero(np.diff(owner, prepend=-2, append=-2))
        for start, stop in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            if owner[start] < 0:
                continue
            inputs, targets = arrays["tokens"][row, start:stop], arrays["targets"][row, start:stop]
            ids = np.append(inputs, targets[-1]).astype(np.int64)
            expected = np.where(counts(ids[1:], tokenizer.first_body), ids[1:], IGNORED)
            in_order = np.array_equal(arrays["positions"][row, start:stop], np.arange(stop - start))
            features = {name.removeprefix("feature_"): arrays[name][row, start:stop] for name in names}
            plain = in_order and ids[-1] != IGNORED and np.array_equal(targets, expected)
            found.append(RowDocument(row, start, stop, ids, features, plain))
    return found


def places(documents: Sequence[RowDocument]) -> list[tuple[int, int]]:
    """Returns the row of each document, and how many documents are before it in that row."""
    rows = [document.row for document in documents]
    return [(row, rows[:number].count(row)) for number, row in enumerate(rows)]


def repacked(batch: Batch, tokenizer: Tokenizer, documents: Sequence[RowDocument], new: Sequence[np.ndarray | None]) -> Batch:
    """Returns the batch whose documents have other sequences; the shape of its rows stays, [b, t].

    What no longer fits at the end of a row is cut, and what is left of it is padding. Labels stay those of the document, and
    features those of the data as far as a sequence begins like the old one.

    Args:
        documents: all of `documents_of_rows`. new: the sequence of each, plain; None where it stays as it is.
    """
    if all(ids is None for ids in new):
        return batch
    length = batch["tokens"].shape[1]
    found: Batch = {}
    for name, value in batch.items():
        found[name] = torch.full_like(value, -1 if name.startswith("label_") else EMPTY.get(name, 0))
    at = number = 0
    row = -1
    for document, ids in zip(documents, new, strict=True):
        if document.row != row:
            row, at, number = document.row, 0, 0
        size = min(document.stop - document.start if ids is None else len(ids) - 1, length - at)
        if size > 0:
            target = slice(at, at + size)
            for name, value in batch.items():
                if ids is None:
                    found[name][row, target] = value[row, document.start : document.start + size]
                elif name in ONE_EACH or name.startswith("label_"):
                    found[name][row, target] = value[row, document.start]
            if ids is not None:
                for name, values in _entries(document, ids, tokenizer).items():
                    if name in found:
                        found[name][row, target] = torch.from_numpy(values[:size]).to(found[name])
            found["documents"][row, target] = number
        at, number = at + size, number + 1
    return found


def _entries(document: RowDocument, ids: np.ndarray, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """The entries of a batch for the inputs of a plain sequence, [n - 1] each."""
    inputs, following = ids[:-1], ids[1:]
    features = tokenizer.features(inputs)
    same = np.cumprod(inputs[: len(document.ids) - 1] == document.ids[:-1][: len(inputs)]).sum()
    for name, values in features.items():
        if name in document.features:  # a window that begins inside its piece does not tell the features of its first notes
            features[name] = np.concatenate([document.features[name][:same], values[same:]])
    return {
        "tokens": inputs,
        "targets": np.where(counts(following, tokenizer.first_body), following, IGNORED),
        "positions": np.arange(len(inputs)),
        **{f"feature_{name}": values for name, values in features.items()},
    }


def mapped(batch: Batch, documents: Sequence[RowDocument], maps: Sequence[np.ndarray | None]) -> Batch:
    """Returns the batch with a map of ids, int [v], applied to inputs and targets of each document; None leaves it as it is.

    It keeps positions, features and what counts for the loss, so that it also suits pieces with holes.
    """
    tokens, targets = batch["tokens"].clone(), batch["targets"].clone()
    for document, table in zip(documents, maps, strict=True):
        if table is None:
            continue
        place = (document.row, slice(document.start, document.stop))
        given = torch.from_numpy(np.asarray(table, np.int64)).to(tokens.device)
        tokens[place] = given[tokens[place]]
        targets[place] = _mapped_targets(targets[place], given)
    return {**batch, "tokens": tokens, "targets": targets}


def _mapped_targets(targets: Tensor, table: Tensor) -> Tensor:
    return torch.where(targets == IGNORED, targets, table[targets.clamp(min=0)])
