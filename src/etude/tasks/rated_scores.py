"""How likely scores are under a language model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from symusic import Score
from torch import Tensor

from etude.core.batch import Batch
from etude.music.score import num_notes
from etude.tokens.grammar import BOS
from etude.tokens.tokenizer import Tokenizer


@torch.inference_mode()
def nats_per_token(
    logits: Callable[[Batch], Tensor],
    scores: Sequence[Score],
    *,
    tokenizer: Tokenizer,
    controls: Sequence[int],
    device: torch.device,
) -> list[float]:
    """Returns -ln p(score) / number of its tokens for each score, as `evaluate.py` counts it: without controls and EOS.

    Args:
        logits: returns the logits [b, t, v] of each next token of a batch.
        controls: the control tokens between BOS and the score.

    Returns:
        Nats per token; NaN for a score without notes, or one that the tokenizer can't represent.
    """
    return [_rate(logits, score, tokenizer, list(controls), device) for score in scores]


def _rate(
    logits: Callable[[Batch], Tensor], score: Score, tokenizer: Tokenizer, controls: list[int], device: torch.device
) -> float:
    if not num_notes(score):
        return float("nan")
    try:
        body = tokenizer.compress(tokenizer.encode_prompt(score)).astype(np.int64)
    except ValueError:  # only drums outside of the range, or a metre that has no token
        return float("nan")
    opening = np.array([BOS, *controls], dtype=np.int64)
    ids = torch.from_numpy(np.concatenate([opening, body[:-1]])).to(device)[None]
    zeros, features = np.zeros(len(opening), dtype=np.int64), tokenizer.features(body[:-1])
    batch: Batch = {
        "tokens": ids,
        "documents": torch.zeros_like(ids, dtype=torch.int32),
        "positions": torch.arange(ids.shape[1], device=device)[None],
        **{
            f"feature_{name}": torch.from_numpy(np.concatenate([zeros, values]).astype(np.int64)).to(device)[None]
            for name, values in features.items()
        },
    }
    predicted = logits(batch)[0, len(opening) - 1 :].float()
    return float(F.cross_entropy(predicted, torch.from_numpy(body).to(device)))
