"""Batches of packed rows of tokens, and the sampler of their plans (which documents make up a row)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.scores.documents import Documents
from etude.data.scores.packing import EMPTY_PLAN, VARIATION, Packer

PAD, BOS, EOS, CONT = 0, 1, 2, 3
IGNORED = -100
MULTIPLE = 8  # evaluation rows are cut to the longest one, rounded up to this multiple, which suits matrix kernels


class PackedRows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A dataset that is indexed with a list of plans, one for each row, and returns a batch of tensors [B, T]:

    tokens: int64.
    targets: int64; -100 where the loss does not count: padding, controls, where a hole is and, in evaluation, EOS and context.
    documents: int32, index of the document in the row, -1 for padding.
    positions: int32, position in the document.
    feature_*: int64.
    piece: int64, row of the piece in the split's manifest, -1 for padding.
    label_*: int64, class of the piece, -1 for padding and if it has none.

    labels: name -> class of each row of the split's manifest, int64 [n].
    """

    def __init__(self, documents: Documents, *, max_len: int, evaluation: bool, labels: Mapping[str, np.ndarray] | None = None):
        self.documents, self.max_len, self.evaluation = documents, max_len, evaluation
        self.labels = dict(labels or {})

    def __getitems__(self, plans: Sequence[np.ndarray]) -> dict[str, Tensor]:
        shape = (len(plans), self.max_len)
        arrays: dict[str, np.ndarray] = {
            "tokens": np.full(shape, PAD, np.int64),
            "targets": np.full(shape, IGNORED, np.int64),
            "documents": np.full(shape, -1, np.int32),
            "positions": np.zeros(shape, np.int32),
        }
        arrays |= {f"feature_{name}": np.zeros(shape, np.int64) for name in self.documents.tokenizer.feature_sizes}
        arrays |= {name: np.full(shape, -1, np.int64) for name in ("piece", *(f"label_{name}" for name in self.labels))}
        longest = max(self._write(plan, {name: array[b] for name, array in arrays.items()}) for b, plan in enumerate(plans))
        if self.evaluation:
            longest = min(self.max_len, -(-max(longest, 1) // MULTIPLE) * MULTIPLE)
            arrays = {name: np.ascontiguousarray(array[:, :longest]) for name, array in arrays.items()}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _write(self, plan: np.ndarray, row: dict[str, np.ndarray]) -> int:
        """Writes the documents of a plan into one row; returns their number of tokens."""
        at, documents = 0, self.documents
        for number, document in enumerate(plan):
            _, piece, start, stop, final, counted, controls = document[:VARIATION].tolist()
            variation = document[VARIATION:]
            body = documents.body(piece, variation, start, stop)
            first = at + 1 + controls  # index of the first body token; the last body token is only a target, unless EOS follows
            end = first + len(body) - 1 + final
            row["tokens"][at] = BOS if start == 0 else CONT
            row["tokens"][at + 1 : first] = documents.prefix(piece, variation)
            row["tokens"][first:end] = body[: end - first]
            targets = np.where(documents.uncounted(body, variation), IGNORED, body.astype(np.int64))
            row["targets"][first - 1 + counted - start : first - 1 + len(body)] = targets[counted - start :]
            if final and not self.evaluation:
                row["targets"][end - 1] = EOS
            row["documents"][at:end] = number
            row["positions"][at:first] = np.arange(first - at)
            row["positions"][first:end] = first - at + documents.positions(piece, variation, start, start + end - first)
            for name, values in documents.features(piece, variation).items():
                row[f"feature_{name}"][first:end] = values[start : start + end - first]
            row["piece"][at:end] = documents.view.table["row"][piece]
            for name, classes in self.labels.items():
                row[f"label_{name}"][at:end] = classes[documents.view.table["row"][piece]]
            at = end
        return at


class RowSampler(torch.utils.data.Sampler[list[np.ndarray]]):
    """Yields the plans of one batch at a time, without end; an epoch is a fixed number of batches.

    packer: yields the plans of rows.
    batch_size: rows for each rank.
    num_batches: batches of an epoch.
    rank, world: of every `world * batch_size` rows, row r goes to rank r mod world.
    """

    def __init__(self, packer: Packer, *, batch_size: int, num_batches: int, rank: int = 0, world: int = 1):
        self.packer, self.batch_size, self.num_batches, self.rank, self.world = (
            packer,
            batch_size,
            num_batches,
            rank,
            world,
        )
        self.drawn = 0  # batches of the current epoch
        self.number = 0  # batches since the start of the run
        self._resumed = False

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        if not self._resumed or self.drawn >= self.num_batches:
            self.drawn = 0
        self._resumed = False
        rows = iter(self.packer)
        while self.drawn < self.num_batches:
            self.packer.draw = self.number
            batch = [next(rows) for _ in range(self.batch_size * self.world)][self.rank :: self.world]
            self.drawn, self.number = self.drawn + 1, self.number + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream; it is the same on every rank, so the number of ranks may change on resuming."""
        return {"drawn": self.drawn, "total": self.number, "packer": self.packer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict`, in the middle of its epoch."""
        self.drawn, self.number, self._resumed = int(state["drawn"]), int(state["total"]), True
        self.packer.load_state_dict(state["packer"])


def evaluation_batches(packer: Packer, *, batch_size: int, rank: int, world: int) -> list[list[np.ndarray]]:
    """Returns the plans of one pass over all pieces; empty rows are added so that every rank has the same number."""
    rows = list(packer)
    rows += [EMPTY_PLAN] * (-len(rows) % world)
    mine = rows[rank::world]
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
