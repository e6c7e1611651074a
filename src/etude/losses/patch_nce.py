"""PatchNCE: contrastive loss that ties each position of the output to the same position of the input.

Shapes: b batch, p positions, d feature dimensions, f frames.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patch_nce(query_bpd: Tensor, key_bpd: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Returns the cross-entropy, in nats, of identifying each query's key among those of all positions; ln p at chance level.

    -ln( exp(q_i . k_i / T) / sum_j exp(q_i . k_j / T) ), q and k of unit length, j over all positions of the same sample.

    Args:
        query_bpd: features of the output at p positions.
        key_bpd: features of the input at the same positions; they get no gradient.
        temperature: T, above 0.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    Source: Park et al. 2020 (CUT), eq. 3 and 4, internal negatives; the caller averages over layers.
    """
    if query_bpd.shape != key_bpd.shape or query_bpd.ndim != 3:
        raise ValueError(
            f"query has shape {tuple(query_bpd.shape)} and key {tuple(key_bpd.shape)}; give both as [batch, positions, features]"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, must be above 0; 0.07 is CUT's")
    query, key = F.normalize(query_bpd.float(), dim=-1), F.normalize(key_bpd.detach().float(), dim=-1)
    logits_bpp = query @ key.transpose(1, 2) / temperature
    positions = torch.arange(logits_bpp.shape[1], device=logits_bpp.device).expand(logits_bpp.shape[:2])
    return F.cross_entropy(logits_bpp.flatten(0, 1), positions.flatten())


def layers_nce(
    queries_bdf: Sequence[Tensor], keys_bdf: Sequence[Tensor], *, heads: Iterable[nn.Module], positions_p: Tensor
) -> Tensor:
    """Returns the mean of `patch_nce` over layers, each projected by its head.

    Args:
        queries_bdf, keys_bdf: a layer of the output's and of the input's features each, [b, d, f].
        heads: one for each layer, applied to the last dimension. positions_p: the frames that are compared.
    """
    pairs = zip(heads, queries_bdf, keys_bdf, strict=True)
    found = [patch_nce(*(head(x[..., positions_p].transpose(1, 2)) for x in (query, key))) for head, query, key in pairs]
    return torch.stack(found).mean()
