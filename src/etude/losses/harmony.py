"""Harmony kept: the output's pitch classes are the input's.

Shapes: b batch, m mel bands, f frames; 12 pitch classes, C first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8


def chroma(log_mel_bmf: Tensor, filterbank_12m: Tensor) -> Tensor:
    """Returns magnitude of each pitch class [b, 12, f] of natural-log mels: filterbank @ exp(log mel).

    Args:
        log_mel_bmf: natural-log mel magnitudes (`contract.denormalise` of what a generator gives).
        filterbank_12m: share of each band in each pitch class, `etude.audio.chroma.mel_chroma_filterbank`, which also
            says what few bands cannot tell.
    """
    return filterbank_12m @ log_mel_bmf.exp()


def chroma_loss(fake_bmf: Tensor, source_bmf: Tensor, *, filterbank_12m: Tensor) -> Tensor:
    """1 - correlation of the pitch classes' magnitudes, frame by frame, in [0, 2]; 0 where they are proportional.

    1 - sum_f w_f cos(c_f - mean c_f, c'_f - mean c'_f), w the source's share of the sample's chroma energy: loud frames
    count, silent ones don't, and the level of a frame is free. The mean over the 12 classes is taken off because broad
    bands and drums raise all classes alike, which would bring any two cosines near 1. No gradient goes into the source.

    Args:
        fake_bmf, source_bmf: natural-log mels, equal shapes.
        filterbank_12m: see `chroma`.

    Source: Fujishima 1999 for chroma; the loss is of this house.
    """
    # cosines and shares are free of scale: taking the peak off first keeps exp from overflowing
    fake = fake_bmf.float() - fake_bmf.detach().float().amax(dim=-2, keepdim=True)
    source = source_bmf.detach().float()
    source = source - source.amax(dim=(-2, -1), keepdim=True)
    fake_b12f, source_b12f = (chroma(mel, filterbank_12m) for mel in (fake, source))
    fake_b12f, source_b12f = (c - c.mean(dim=-2, keepdim=True) for c in (fake_b12f, source_b12f))
    weight_bf = torch.linalg.vector_norm(source_b12f, dim=-2)
    weight_bf = weight_bf / weight_bf.sum(dim=-1, keepdim=True).clamp(min=EPSILON)
    cosine_bf = F.cosine_similarity(fake_b12f, source_b12f, dim=-2, eps=EPSILON)
    return (weight_bf * (1 - cosine_bf)).sum(dim=-1).mean()
