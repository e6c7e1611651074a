"""Build training rows from token sequences that are not from a data set, such as samples."""

from collections.abc import Sequence
from itertools import cycle

import torch
from torch import Tensor

from etude.tokens.grammar import BOS, EOS, PAD
from etude.tokens.tokenizer import Tokenizer

IGNORED = -100


def packed_rows(
    tokenizer: Tokenizer, sequences: Sequence[Tensor], *, rows: int, length: int, ended: Sequence[bool] | None = None
) -> dict[str, Tensor]:
    """Fills `rows` rows of `length` tokens with pieces, each from its beginning; the last piece of a row is cut.

    Args:
        tokenizer: the tokenizer of the sequences.
        sequences: body ids of each piece, int64 [n], without BOS and EOS; used in order, and repeated if there are too few.
        ended: whether EOS follows each of them; None for all.

    Returns:
        A batch like those of the data module: tokens, targets (-100 where the loss does not count), documents (-1 padding),
        positions, feature_* and piece (always -1), all [rows, length].

    Raises:
        ValueError: no sequences.
    """
    if not sequences:
        raise ValueError("sequences is empty; give at least one")
    shape = (rows, length)
    found = {
        "tokens": torch.full(shape, PAD),
        "targets": torch.full(shape, IGNORED),
        "documents": torch.full(shape, -1, dtype=torch.int32),
        "positions": torch.zeros(shape, dtype=torch.int32),
        "piece": torch.full(shape, -1),
        **{f"feature_{name}": torch.zeros(shape, dtype=torch.int64) for name in tokenizer.feature_sizes},
    }
    pieces = cycle(zip(sequences, [True] * len(sequences) if ended is None else ended, strict=True))
    for row in range(rows):
        at = number = 0
        while at < length - 1:
            body, ends = next(pieces)
            taken = min(len(body) + ends, length - at)  # BOS and the body; EOS is the last target if it fits
            span = slice(at, at + taken)
            inputs = torch.cat([torch.tensor([BOS]), body])[:taken]
            found["tokens"][row, span] = inputs
            found["targets"][row, span] = torch.cat([body, torch.tensor([EOS])])[:taken]
            found["documents"][row, span] = number
            found["positions"][row, span] = torch.arange(taken, dtype=torch.int32)
            for name, values in tokenizer.features(body.numpy()).items():
                found[f"feature_{name}"][row, at + 1 : at + taken] = torch.from_numpy(values.astype("int64"))[: taken - 1]
            at, number = at + taken, number + 1
    return found
