"""Contrastive search: likely tokens whose hidden state is unlike those before.

Shapes: b rows, k candidates of each, r = b * k, t time, v vocabulary, d model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.models.symbolic.sampling import PAD, ForkingDecoder, distribution, forbid, prompt_features, to_device, unpadded
from etude.models.symbolic.transformer import Transformer


@torch.inference_mode()
def contrastive_search(
    model: Transformer,
    prompt_bt: Tensor,
    *,
    decoder: ForkingDecoder,
    max_new_tokens: int,
    top_k: int = 4,
    alpha: float = 0.6,
    temperature: float = 1.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    padding_b: Tensor | None = None,
    penalties: Callable[[], np.ndarray] | None = None,
    on_step: Callable[[int], Any] | None = None,
    on_tokens: Callable[[np.ndarray], Any] | None = None,
) -> list[list[int]]:
    """Continues every prompt, token by token, by the candidate v of the `top_k` most probable ones with the largest

        (1 - alpha) p(v) - alpha max_j cos(h_v, h_j)

    where h are the last hidden states of the candidate and of all tokens before it. There is no randomness. What the decoder
    forbids is no candidate.

    Args:
        decoder: a new decoder for b * top_k rows, which all follow their prompt.
        top_k: candidates, at least 1; with 1 it takes the most probable token.
        alpha: in [0, 1]; 0 takes the most probable token.
        temperature, top_p, min_p: of p, see `sampling.distribution`.
        model, prompt_bt, max_new_tokens, padding_b, penalties, on_step, on_tokens: as of `sampling.generate`.

    Returns:
        The prompt and continuation of each row, with EOS if it was reached.

    Source: Su et al. 2022, "A Contrastive Framework for Neural Text Generation", eq. 5.
    """
    batch, device = prompt_bt.shape[0], prompt_bt.device
    first_b = torch.arange(batch) * top_k  # the first of the rows that share a prompt
    many_rt = prompt_bt.repeat_interleave(top_k, 0)
    was_training = model.training
    model.eval()
    try:
        cache = model.new_cache(batch * top_k, prompt_bt.shape[1] + max_new_tokens)
        if padding_b is not None:
            cache.pad(padding_b.repeat_interleave(top_k))
        features = to_device(prompt_features(decoder, many_rt), device)
        h_btd = model.hidden(many_rt, features=features, cache=cache)[first_b]
        logits_bv = model.unembed(h_btd[:, -1]).float().cpu()
        past_btd = F.normalize(h_btd.float(), dim=-1)
        nothing_b1t = torch.zeros(batch, 1, 0, dtype=torch.bool) if padding_b is None else _padded(prompt_bt, padding_b)
        made: list[Tensor] = []
        while len(made) < max_new_tokens and not (finished := decoder.finished[::top_k]).all():
            logits_bv = forbid(logits_bv, decoder.allowed()[::top_k], finished)
            if penalties is not None:
                logits_bv = logits_bv - torch.from_numpy(penalties()[::top_k])
            p_bv = distribution(logits_bv, temperature=temperature, top_p=top_p, min_p=min_p)
            p_bk, ids_bk = p_bv.topk(top_k, dim=-1)
            ids_bk = torch.where(p_bk > 0, ids_bk, ids_bk[:, :1])  # fewer than k may be allowed
            ids_bk[torch.from_numpy(finished)] = PAD
            decoder.push(ids_bk.flatten().numpy())
            features = to_device({name: values[:, None] for name, values in decoder.features().items()}, device)
            h_rd = model.hidden(ids_bk.view(-1, 1).to(device), features=features, cache=cache)[:, 0]
            h_bkd = F.normalize(h_rd.float(), dim=-1).view(batch, top_k, -1)
            alike_bkt = torch.einsum("bkd,btd->bkt", h_bkd, past_btd).cpu()
            alike_bkt[..., : nothing_b1t.shape[-1]].masked_fill_(nothing_b1t, -1.0)
            alike_bk = alike_bkt.amax(-1)
            best_b = ((1 - alpha) * p_bk - alpha * alike_bk).masked_fill(p_bk == 0, -torch.inf).argmax(-1)
            chosen_b = first_b + best_b
            rows_r = chosen_b.repeat_interleave(top_k)
            cache.select(rows_r.to(device), last=True)
            decoder.select(rows_r.tolist())
            made.append(ids_bk[torch.arange(batch), best_b])
            past_btd = torch.cat([past_btd, h_bkd[torch.arange(batch), best_b.to(device)][:, None]], dim=1)
            logits_bv = model.unembed(h_rd[chosen_b.to(device)]).float().cpu()
            if on_step is not None:
                on_step(len(made))
            if on_tokens is not None:
                on_tokens(made[-1].numpy())
    finally:
        model.train(was_training)
    return unpadded(prompt_bt, made, decoder, [0] * batch if padding_b is None else padding_b.tolist())


def _padded(prompt_bt: Tensor, padding_b: Tensor) -> Tensor:
    """Which tokens of the prompts are padding, bool [b, 1, t]."""
    return (torch.arange(prompt_bt.shape[1]) < padding_b.cpu()[:, None])[:, None]
