"""Self-attention over packed pieces, causal or bidirectional, with rotary positions, grouped heads and a key-value cache.

Shapes: b batch, t time, n = b * t tokens, d model width, h query heads, g key-value heads, k head width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from etude.models.symbolic import kernels


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Restricts attention to tokens of the same piece, in one of three equivalent forms.

    Exactly one field is set, depending on the constructor: `split`, `mask` or `variable`. `choose` takes the fastest.
    """

    lengths: tuple[int, ...] | None = None  # tokens of each piece of the flattened rows; attention is computed piece by piece
    mask_b1tt: Tensor | None = None  # True where attention is allowed
    offsets: Tensor | None = None  # int32 start of each piece, then n, for the variable-length CUDA kernel

    @classmethod
    def split(cls, documents_bt: Tensor) -> Self:
        """Returns a packing that computes attention piece by piece, without a mask: the fastest on CPU."""
        starts = starts_of_pieces(documents_bt)
        ends = torch.cat((starts[1:], starts.new_tensor([documents_bt.numel()])))
        return cls(lengths=tuple((ends - starts).tolist()))

    @classmethod
    def mask(cls, documents_bt: Tensor, *, causal: bool = True) -> Self:
        """Returns a packing with a block-diagonal mask, for any device and precision; memory grows with t^2."""
        same_btt = documents_bt[:, :, None] == documents_bt[:, None, :]
        return cls(mask_b1tt=(same_btt.tril() if causal else same_btt)[:, None])

    @classmethod
    def variable(cls, documents_bt: Tensor) -> Self:
        """Returns a packing with offsets for `torch.nn.attention.varlen` (CUDA, half precision)."""
        starts = starts_of_pieces(documents_bt)
        return cls(offsets=torch.cat((starts, starts.new_tensor([documents_bt.numel()]))).int())

    @classmethod
    def choose(cls, documents_bt: Tensor, *, dtype: torch.dtype, fused: bool = True, causal: bool = True) -> Self:
        """Returns the fastest packing for the device and precision of the computation."""
        if fused and documents_bt.device.type == "cpu":
            return cls.split(documents_bt)
        if fused and documents_bt.is_cuda and dtype in (torch.float16, torch.bfloat16):
            return cls.variable(documents_bt)
        return cls.mask(documents_bt, causal=causal)


def starts_of_pieces(documents_bt: Tensor) -> Tensor:
    """Returns the index of the first flattened token of each piece, int64 [pieces]; padding counts as pieces, too."""
    starts = torch.ones_like(documents_bt, dtype=torch.bool)
    starts[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
    return starts.flatten().nonzero().flatten()


def positions_in(documents_bt: Tensor) -> Tensor:
    """Returns each token's position in its piece, int64 [b, t]."""
    index = torch.arange(documents_bt.numel(), device=documents_bt.device)
    starts = torch.zeros_like(index)
    runs = starts_of_pieces(documents_bt)
    starts[runs] = runs
    return (index - starts.cummax(0).values).view_as(documents_bt)


class KVCache:
    """Key-value cache in preallocated buffers, so that adding a token copies nothing.

    Args:
        num_layers, batch, num_kv_heads, head_dim: sizes of the model and of the batch.
        max_len: number of tokens that fit.
        dtype, device: dtype and device of the buffers; keys and values are cast to dtype when they are written.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, batch, num_kv_heads, max_len, head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.batch, self.max_len, self.length = batch, max_len, 0
        self.visible_b11t: Tensor | None = None  # False for padding in front of a row; None without padding
        self.rotary: tuple[Tensor, Tensor] | None = None  # cos and sin of every position, set by the model
        self.step: Callable[[Tensor, Tensor, Tensor, KVCache], Tensor | None] | None = (
            None  # a `decoding.SingleStep`, set by the model
        )

    def reserve(self, time: int) -> None:
        """Raises a ValueError unless `time` more tokens fit."""
        end = self.length + time
        if end > self.max_len:
            raise ValueError(
                f"cache max_len={self.max_len} is full: {end} tokens do not fit; "
                f"create it with new_cache(..., max_len={end}) or more"
            )

    def pad(self, padding_b: Tensor) -> None:
        """Hides the first tokens of each row, which only fill it up to the length of the longest: int64 [b]."""
        slots = torch.arange(self.max_len, device=self.keys.device)
        self.visible_b11t = (slots >= padding_b.to(slots.device)[:, None])[:, None, None]

    def visible(self, end: int) -> Tensor | None:
        """Returns which of the first `end` tokens are no padding, bool [b, 1, 1, end]; None if all are."""
        return None if self.visible_b11t is None else self.visible_b11t[..., :end]

    def select(self, rows: Tensor, *, last: bool = False) -> None:
        """Makes row i a copy of the former row rows[i]; their number may change.

        last: copies only the latest token, where rows share all others; their number may not change then.
        """
        if len(rows) == self.batch:
            first = self.length - 1 if last else 0
            for buffer in (self.keys, self.values):
                buffer[:, :, :, first : self.length] = buffer[:, rows, :, first : self.length]
        else:
            self.keys, self.values, self.batch = self.keys[:, rows], self.values[:, rows], len(rows)
            self.step = None  # it holds the former buffers
        if self.visible_b11t is not None:
            self.visible_b11t = self.visible_b11t[rows]

    def append(self, layer: int, k_bgtk: Tensor, v_bgtk: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new keys and values of one layer; returns all keys and values of that layer, [b, g, length + t, k]."""
        end = self.length + k_bgtk.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.length : end] = k_bgtk
        values[:, :, self.length : end] = v_bgtk
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    """Multi-head attention, softmax(q k' / sqrt(k)) v, without bias and without dropout on the weights.

    With qk_norm the queries and keys are normalised per head and the queries scaled by one learnt temperature a head,
    which bounds the attention scores (a gain per channel would not commute with the rotation).

    Args:
        dim: model width d, a multiple of num_heads.
        num_heads, num_kv_heads: h and g; g divides h.
        qk_norm: whether to normalise queries and keys.
        fused: use the functions of `kernels`, which raise on second derivatives; False uses plain PyTorch, which supports them.
        rotate_values: rotate the values, too, and the result back (Miyato et al. 2024, eq. 7).
        causal: whether a token attends only to itself and earlier tokens; False is bidirectional and takes no cache.

    Source: Vaswani et al. 2017; Henry et al. 2020 (query-key normalisation; here with one temperature per head);
    Ainslie et al. 2023 (grouped heads).
    """

    def __init__(
        self, *, dim: int, num_heads: int, num_kv_heads: int, qk_norm: bool, fused: bool, rotate_values: bool = False,
        causal: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.fused, self.rotate_values = fused, rotate_values
        self.query_key = nn.Linear(dim, (num_heads + num_kv_heads) * self.head_dim, bias=False)
        self.value = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.causal = causal
        self.temperature = nn.Parameter(torch.ones(num_heads)) if qk_norm else None

    def forward(
        self,
        x_btd: Tensor,
        rotary: tuple[Tensor, Tensor],
        *,
        packing: Packing | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Returns the attention output [b, t, d]; tokens attend within their piece (packing) or row, and to the cache."""
        batch, time, dim = x_btd.shape
        q_hnk, k_gnk = self._query_key(x_btd, rotary)
        v_ngk = self.value(x_btd).view(batch * time, self.num_kv_heads, self.head_dim)
        v_gnk = kernels.rotary(v_ngk, *rotary, fused=self.fused) if self.rotate_values else v_ngk.transpose(0, 1)
        if cache is not None:
            mixed = _attend_with_cache(q_hnk, k_gnk, v_gnk, batch, cache, layer)
        elif self.fused and self.causal and q_hnk.is_cpu and torch.is_grad_enabled() and _lengths(packing, batch, time):
            mixed = kernels.causal_attention(q_hnk, k_gnk, v_gnk, lengths=_lengths(packing, batch, time))
        else:
            exact = not self.fused and torch.is_grad_enabled()  # only PyTorch's math kernel can be differentiated twice
            with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
                mixed = _scaled_dot_product(q_hnk, k_gnk, v_gnk, batch, packing, causal=self.causal)
        if self.rotate_values:  # rotate back, so that values are rotated by the difference of the two angles
            cos, sin = rotary
            rotated_hnk = kernels.rotary(mixed.reshape(batch * time, self.num_heads, -1), cos, -sin, fused=self.fused)
            mixed = rotated_hnk.transpose(0, 1)
        output: Tensor = self.output(mixed.reshape(batch, time, dim))
        return output

    def _query_key(self, x_btd: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the scaled queries [h, n, k] and the keys [g, n, k], both rotated."""
        tokens = x_btd.shape[0] * x_btd.shape[1]
        qk_nhk = self.query_key(x_btd).view(tokens, self.num_heads + self.num_kv_heads, self.head_dim)
        scale = self.head_dim**-0.5
        if self.temperature is not None:
            gain = torch.cat((self.temperature * scale, self.temperature.new_ones(self.num_kv_heads)))
            qk_nhk = kernels.rms_norm(qk_nhk, gain, fused=self.fused)
        qk_hnk = kernels.rotary(qk_nhk, *rotary, fused=self.fused)
        q_hnk, k_gnk = torch.split(qk_hnk, [self.num_heads, self.num_kv_heads])
        return (q_hnk if self.temperature is not None else q_hnk * scale), k_gnk

    def maps(self, x_btd: Tensor, rotary: tuple[Tensor, Tensor], *, packing: Packing | None = None, **_: object) -> list[Tensor]:
        """Returns the attention weights of each piece, [h, l, l], rows summing to 1; arguments as of `forward`.

        The fused kernels never store them, so they are computed here, in memory that grows with l^2.
        """
        q_hnk, k_gnk = self._query_key(x_btd, rotary)
        k_hnk = k_gnk.repeat_interleave(self.num_heads // self.num_kv_heads, dim=0)
        runs = list(_lengths(packing, *x_btd.shape[:2]))
        if packing is not None and packing.offsets is not None:
            runs = packing.offsets.diff().tolist()
        if sum(runs) != q_hnk.shape[1]:
            raise ValueError("attention maps need a packing by pieces, not a mask; train with model.fused=true")
        found = []
        for q, k in zip(torch.split(q_hnk, runs, 1), torch.split(k_hnk, runs, 1), strict=True):
            scores = (q @ k.transpose(1, 2)).float()
            if self.causal:
                hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
                scores = scores.masked_fill(hidden, float("-inf"))
            found.append(scores.softmax(-1))
        return found


def _lengths(packing: Packing | None, batch: int, time: int) -> tuple[int, ...]:
    """Returns the number of tokens of each piece; empty for a packing of another kind."""
    return (time,) * batch if packing is None else packing.lengths or ()


def _batched(x_hnk: Tensor, batch: int) -> Tensor:
    """Reshapes [h, n, k] to [b, h, t, k]."""
    heads, tokens, width = x_hnk.shape
    return x_hnk.reshape(heads, batch, tokens // batch, width).transpose(0, 1)


def _attend_with_cache(q_hnk: Tensor, k_gnk: Tensor, v_gnk: Tensor, batch: int, cache: KVCache, layer: int) -> Tensor:
    q_bhtk = _batched(q_hnk, batch)
    time = q_bhtk.shape[2]
    keys, values = cache.append(layer, _batched(k_gnk, batch), _batched(v_gnk, batch))
    query, shown = q_bhtk.to(keys.dtype), cache.visible(keys.shape[2])
    if time == 1:  # treat the heads that share a key-value head as its queries, so that the cache is not repeated
        query = query.reshape(batch, keys.shape[1], -1, query.shape[-1])
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=shown, scale=1.0)
        return mixed.reshape(batch, -1).to(q_hnk.dtype)
    visible = None
    if cache.length or shown is not None:
        visible = torch.ones(time, keys.shape[2], dtype=torch.bool, device=query.device).tril(cache.length)
    if shown is not None and visible is not None:  # padding sees itself, since the softmax over nothing is not defined
        visible = visible & (shown | visible.triu(cache.length))
    mixed = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=visible, is_causal=visible is None, enable_gqa=True, scale=1.0
    )
    return mixed.transpose(1, 2).to(q_hnk.dtype)


def _scaled_dot_product(
    q_hnk: Tensor, k_gnk: Tensor, v_gnk: Tensor, batch: int, packing: Packing | None, *, causal: bool
) -> Tensor:
    """Returns attention by PyTorch's kernels, [b, t, h, k] or [n, h, k] depending on the packing."""
    if packing is not None and packing.offsets is not None:
        return _variable_length_attention(q_hnk, k_gnk, v_gnk, packing.offsets, causal=causal)
    if packing is not None and packing.lengths is not None:
        pieces = zip(*(torch.split(x, list(packing.lengths), 1) for x in (q_hnk, k_gnk, v_gnk)), strict=True)
        attend = partial(F.scaled_dot_product_attention, is_causal=causal, enable_gqa=True, scale=1.0)
        return torch.cat([attend(q[None], k[None], v[None])[0] for q, k, v in pieces], dim=1).transpose(0, 1)
    q, k, v = (_batched(x, batch) for x in (q_hnk, k_gnk, v_gnk))
    mask = None if packing is None else packing.mask_b1tt
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=True, scale=1.0)
    return mixed.transpose(1, 2)


def _variable_length_attention(q_hnk: Tensor, k_gnk: Tensor, v_gnk: Tensor, offsets: Tensor, *, causal: bool) -> Tensor:
    from torch.nn.attention import varlen  # CUDA only

    longest = int((offsets[1:] - offsets[:-1]).max())
    groups = q_hnk.shape[0] // k_gnk.shape[0]
    q, k, v = (x.transpose(0, 1).contiguous() for x in (q_hnk, k_gnk, v_gnk))
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    mixed = varlen.varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=1.0, window_size=(-1, 0 if causal else -1))
    assert isinstance(mixed, Tensor)  # it is a tuple only if auxiliary outputs are requested
    return mixed
