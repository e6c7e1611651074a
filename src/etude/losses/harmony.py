"""Harmony loss: difference between the pitch classes (chroma) of input and output.

Shapes: b batch, m mel bands, f frames; 12 pitch classes, C first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8


def chroma(log_mel_bmf: Tensor, filterbank_12m: Tensor) -> Tensor:
    """Returns the magnitude of each pitch class [b, 12, f] of natural-log mels: filterbank @ exp(log mel).

    Args:
        log_mel_bmf: natural-log mel magnitudes (`contract.denormalise` of a generator's output).
        filterbank_12m: weight of each band in each pitch class, from `etude.audio.chroma.mel_chroma_filterbank`; see
            there for the limits of few bands.
    """
    return filterbank_12m @ log_mel_bmf.exp()


def chroma_loss(fake_bmf: Tensor, source_bmf: Tensor, *, filterbank_12m: Tensor) -> Tensor:
    """Returns 1 - the correlation of chroma vectors, averaged over frames, in [0, 2]; 0 where they are proportional.

    1 - sum_f w_f cos(c_f - mean c_f, c'_f - mean c'_f), where w_f is the frame's share of the source's chroma energy: loud
    frames count most, silent ones not at all. The loudness of a frame does not matter. The mean over the 12 classes is
    subtracted because wide bands and drums raise all classes alike, which would bring every cosine near 1. The source gets
    no gradient.

    Args:
        fake_bmf, source_bmf: natural-log mels, equal shapes.
        filterbank_12m: see `chroma`.

    Source: Fujishima 1999 for chroma; the loss is our own.
    """
    # neither cosines nor shares depend on scale: subtracting the peak keeps exp from overflowing
    fake = fake_bmf.float() - fake_bmf.detach().float().amax(dim=-2, keepdim=True)
    source = source_bmf.detach().float()
    source = source - source.amax(dim=(-2, -1), keepdim=True)
    fake_b12f, source_b12f = (chroma(mel, filterbank_12m) for mel in (fake, source))
    fake_b12f, source_b12f = (c - c.mean(dim=-2, keepdim=True) for c in (fake_b12f, source_b12f))
    weight_bf = torch.linalg.vector_norm(source_b12f, dim=-2)
    weight_bf = weight_bf / weight_bf.sum(dim=-1, keepdim=True).clamp(min=EPSILON)
    cosine_bf = F.cosine_similarity(fake_b12f, source_b12f, dim=-2, eps=EPSILON)
    loss: Tensor = (weight_bf * (1 - cosine_bf)).sum(dim=-1).mean()
    return loss
