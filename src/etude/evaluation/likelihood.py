"""Turn summed negative log-likelihoods into rates that can be compared across tokenizers."""

import math
from collections.abc import Sequence

import numpy as np


def likelihood(
    nats_p: Sequence[float], *, tokens_p: Sequence[int], frames_p: Sequence[float], notes_p: Sequence[int]
) -> dict[str, float]:
    """Returns nats per token, nats per frame and bits per note of a set of P pieces.

    Every rate is (nats summed over pieces) / (units summed over pieces), so long pieces have more weight, as in published
    results. Nats per token depend on the tokenizer. The other two do not, since the numbers of frames and notes are
    properties of the music.

    Args:
        nats_p: -ln p(piece), summed over the counted tokens of each piece, [P].
        tokens_p: counted tokens of each piece, [P], > 0 in sum.
        frames_p: length of each piece in sixteenth notes (steps of the JSB grid), [P], > 0 in sum.
        notes_p: notes of each piece, [P], > 0 in sum.

    Returns:
        nats_per_token, nats_per_frame, bits_per_note, and nats_per_token_stderr: the standard error over pieces of the
        ratio (Cochran, "Sampling Techniques", 1977, eq. 6.9); NaN for one piece.

    Raises:
        ValueError: no pieces, lists of different lengths, or a sum of units that is not positive.
    """
    units = {"tokens_p": tokens_p, "frames_p": frames_p, "notes_p": notes_p}
    nats = np.asarray(nats_p, np.float64)
    if len(nats) == 0:
        raise ValueError("nats_p is empty; score at least one piece")
    arrays = {}
    for name, values in units.items():
        arrays[name] = np.asarray(values, np.float64)
        if len(arrays[name]) != len(nats):
            raise ValueError(f"{name} has {len(arrays[name])} entries, nats_p has {len(nats)}; give one per piece")
        if not arrays[name].sum() > 0:
            raise ValueError(f"{name} sums to {arrays[name].sum():g}, must be above 0; leave out pieces without notes")
    tokens = arrays["tokens_p"]
    per_token = nats.sum() / tokens.sum()
    num = len(nats)
    spread = float(((nats - per_token * tokens) ** 2).sum())
    return {
        "nats_per_token": float(per_token),
        "nats_per_frame": float(nats.sum() / arrays["frames_p"].sum()),
        "bits_per_note": float(nats.sum() / arrays["notes_p"].sum() / math.log(2)),
        "nats_per_token_stderr": math.sqrt(spread / (num - 1) * num) / tokens.sum() if num > 1 else math.nan,
    }


def sixteenths(duration_beats: float) -> int:
    """Returns the length of a piece in sixteenth-note frames: ceil(4 * beats), at least 1."""
    return max(math.ceil(4 * duration_beats - 1e-9), 1)
