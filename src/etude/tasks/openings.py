"""The tokens with which samples begin: of one prompt, of several with different lengths, or of none.

Shapes: b rows, t tokens of the longest opening.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from symusic import Score
from torch import Tensor

from etude.tasks.prompted_samples import at_tempo, continued
from etude.tokens.grammar import BOS, PAD, JoinedDecoder
from etude.tokens.tokenizer import Tokenizer
from etude.tokens.wished_tracks import wishes_of


@dataclass(frozen=True)
class Opening:
    """What a sample begins with.

    Attributes:
        ids: BOS, the control tokens, and the prompt.
        prompt: the score to continue, and its tokens; None without a prompt.
    """

    ids: list[int]
    prompt: Score | None = None
    body: np.ndarray | None = None

    @classmethod
    def of(cls, prompt: Score | None, *, tokenizer: Tokenizer, controls: Sequence[int]) -> Opening:
        """Returns the opening of a prompt, or of a piece without one. Raises: ValueError if it can't be represented."""
        if prompt is None:
            return cls([BOS, *controls])
        body = tokenizer.encode_prompt(prompt)
        return cls([BOS, *controls, *body.tolist()], prompt, body)

    def completed(self, sequence: Sequence[int], *, tokenizer: Tokenizer, tempo_bpm: float | None) -> Score:
        """Returns the score of a sequence that begins with this opening; the prompt itself stays as it is."""
        if self.prompt is not None:
            return continued(tokenizer, self.prompt, sequence, opening=len(self.ids))
        return at_tempo(tokenizer.decode(sequence), tempo_bpm)


@dataclass(frozen=True)
class Rows:
    """Openings side by side, `count` rows of each.

    Attributes:
        tokens_bt: int64, shorter openings have PAD in front.
        padding_b: how many PAD, int64; None if all openings have the same length.
        decoder: follows the rows.
    """

    tokens_bt: Tensor
    padding_b: Tensor | None
    decoder: JoinedDecoder

    @classmethod
    def of(
        cls, openings: Sequence[Opening], count: int, *, tokenizer: Tokenizer, labels: Mapping[str, Any], num_bars: int | None
    ) -> Rows:
        """Returns the rows of openings; labels and num_bars are what is asked of the samples."""
        longest = max(len(opening.ids) for opening in openings)
        padding = [longest - len(opening.ids) for opening in openings for _ in range(count)]
        rows = [[PAD] * (longest - len(opening.ids)) + opening.ids for opening in openings for _ in range(count)]
        decoders = [
            tokenizer.decoder(
                count, num_bars=num_bars, labels=labels, prompt=opening.body,
                wishes=wishes_of(tokenizer, labels, prompt=opening.prompt),
            )
            for opening in openings
        ]  # fmt: skip
        return cls(torch.tensor(rows), torch.tensor(padding) if any(padding) else None, JoinedDecoder(decoders))


def drawn_together(openings: Sequence[Opening], *, mixed: bool) -> list[list[int]]:
    """Returns the numbers of the openings of each batch: all in one if lengths may be mixed, else one batch for each length."""
    if mixed:
        return [list(range(len(openings)))] if openings else []
    lengths = sorted({len(opening.ids) for opening in openings})
    return [[number for number, opening in enumerate(openings) if len(opening.ids) == length] for length in lengths]
