"""Contrast between places: what stands at a place of the output should know its place in the input.

Shapes: b batch, p places, d feature dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_nce(query_bpd: Tensor, key_bpd: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Mean cross-entropy, in nats, of finding each query's own place among the sample's keys; ln p where they say nothing.

    -ln( exp(q_i . k_i / T) / sum_j exp(q_i . k_j / T) ), q and k of unit length, j over all places of the same sample.

    Args:
        query_bpd: features of the output at p places.
        key_bpd: features of the input at the same places; no gradient goes into them.
        temperature: T, above 0.

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive.

    Source: Park et al. 2020 (CUT), eq. 3 and 4, internal negatives; the mean over layers is the caller's.
    """
    if query_bpd.shape != key_bpd.shape or query_bpd.ndim != 3:
        raise ValueError(
            f"query has shape {tuple(query_bpd.shape)} and key {tuple(key_bpd.shape)}; give both as [batch, places, features]"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, must be above 0; 0.07 is CUT's")
    query, key = F.normalize(query_bpd.float(), dim=-1), F.normalize(key_bpd.detach().float(), dim=-1)
    logits_bpp = query @ key.transpose(1, 2) / temperature
    places = torch.arange(logits_bpp.shape[1], device=logits_bpp.device).expand(logits_bpp.shape[:2])
    return F.cross_entropy(logits_bpp.flatten(0, 1), places.flatten())
