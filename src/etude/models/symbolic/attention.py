"""Self-attention over packed pieces, causal or bidirectional, with rotary positions, grouped heads, windows and a cache.

Shapes: b batch, t time, n = b * t tokens, d model width, h query heads, g key-value heads, k head width.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from etude.models.symbolic import kernels
from etude.models.symbolic.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Restricts attention to tokens of the same piece, in one of three equivalent forms.

    Which fields are set depends on the constructor: `split`, `mask` or `variable`. `choose` takes the fastest.
    """

    lengths: tuple[int, ...] | None = None  # tokens of each piece of the flattened rows; attention is computed piece by piece
    mask_b1tt: Tensor | None = None  # True where attention is allowed
    offsets: Tensor | None = None  # int32 start of each piece, then n, for the variable-length CUDA kernel
    longest: int | None = None  # with offsets: no piece has more tokens; it is the length of a row, which needs no look

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
        offsets = torch.cat((starts, starts.new_tensor([documents_bt.numel()]))).int()
        return cls(offsets=offsets, longest=documents_bt.shape[1])

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
        window: a token attends only to the last `window` tokens, itself included; None for all. Needs causal.

    Source: Vaswani et al. 2017; Henry et al. 2020 (query-key normalisation; here with one temperature per head);
    Ainslie et al. 2023 (grouped heads); Beltagy et al. 2020, section 3.1 (windows).
    """

    unit_name: ClassVar[str] = "heads"

    def __init__(
        self, *, dim: int, num_heads: int, num_kv_heads: int, qk_norm: bool, fused: bool, rotate_values: bool = False,
        causal: bool = True, window: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.fused, self.rotate_values = fused, rotate_values
        self.query_key = nn.Linear(dim, (num_heads + num_kv_heads) * self.head_dim, bias=False)
        self.value = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.causal, self.window = causal, window
        self.temperature = nn.Parameter(torch.ones(num_heads)) if qk_norm else None

    @property
    def num_units(self) -> int:
        """Query heads h; the output layer reads them one after the other."""
        return self.num_heads

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
            mixed = _attend_with_cache(q_hnk, k_gnk, v_gnk, batch, cache, layer, self.window)
        elif self.fused and self.causal and q_hnk.is_cpu and torch.is_grad_enabled() and _lengths(packing, batch, time):
            mixed = kernels.causal_attention(q_hnk, k_gnk, v_gnk, lengths=_lengths(packing, batch, time), window=self.window)
        else:
            exact = not self.fused and torch.is_grad_enabled()  # only PyTorch's math kernel can be differentiated twice
            with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
                mixed = _scaled_dot_product(q_hnk, k_gnk, v_gnk, batch, packing, causal=self.causal, window=self.window)
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
        elif packing is not None and packing.mask_b1tt is not None:
            starts = ~packing.mask_b1tt[:, 0].diagonal(-1, 1, 2)  # a token that does not see the one before begins a piece
            begins = F.pad(starts, (1, 0), value=True).flatten().nonzero().flatten()
            runs = torch.cat((begins, begins.new_tensor([q_hnk.shape[1]]))).diff().tolist()
        found = []
        for q, k in zip(torch.split(q_hnk, runs, 1), torch.split(k_hnk, runs, 1), strict=True):
            scores = (q @ k.transpose(1, 2)).float()
            if self.causal:
                scores = scores.masked_fill(~_seen(q, k, self.window), float("-inf"))
            found.append(scores.softmax(-1))
        return found


def _lengths(packing: Packing | None, batch: int, time: int) -> tuple[int, ...]:
    """Returns the number of tokens of each piece; empty for a packing of another kind."""
    return (time,) * batch if packing is None else packing.lengths or ()


def _batched(x_hnk: Tensor, batch: int) -> Tensor:
    """Reshapes [h, n, k] to [b, h, t, k]."""
    heads, tokens, width = x_hnk.shape
    return x_hnk.reshape(heads, batch, tokens // batch, width).transpose(0, 1)


def _seen(q: Tensor, k: Tensor, window: int | None) -> Tensor:
    """Returns which keys each query sees if the queries belong to the last keys, bool [queries, keys]."""
    before = k.shape[-2] - q.shape[-2]
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(before)
    return seen if window is None else seen.triu(before - window + 1)


def _attend_with_cache(
    q_hnk: Tensor, k_gnk: Tensor, v_gnk: Tensor, batch: int, cache: KVCache, layer: int, window: int | None
) -> Tensor:
    q_bhtk, k_bgtk, v_bgtk = (_batched(x, batch).to(cache.dtype) for x in (q_hnk, k_gnk, v_gnk))
    time, shown = q_bhtk.shape[2], cache.visible(layer, q_bhtk.shape[2])
    keys, values = cache.append(layer, k_bgtk, v_bgtk)
    before, mixed = keys.shape[2] - time, []
    if time > 1 and before == 0 and shown is None:
        return _causal_attention(q_bhtk, k_bgtk, v_bgtk, window).transpose(1, 2).to(q_hnk.dtype)
    for first, last, start in _query_blocks(time, before, window):
        q, k, v = q_bhtk[:, :, first:last], keys[:, :, start : before + last], values[:, :, start : before + last]
        visible = shown
        if time > 1:
            visible = _seen(q, k, window)
            if shown is not None:  # padding sees itself, since the softmax over nothing is not defined
                visible = visible & (shown[..., start : before + last] | visible.triu(k.shape[2] - q.shape[2]))
        mixed.append(_grouped_attention(q, k, v, visible, by_products=cache.by_products[layer]))
    return torch.cat(mixed, dim=2).transpose(1, 2).to(q_hnk.dtype)


def _query_blocks(time: int, before: int, window: int | None) -> list[tuple[int, int, int]]:
    """Returns (first query, end of the queries, first key) of each block of queries; `before` keys precede the first query."""
    size = kernels.QUERY_BLOCK
    starts = [(i, 0 if window is None else max(0, before + i - window + 1)) for i in range(0, time, size)]
    return [(i, min(i + size, time), start if time > 1 else 0) for i, start in starts]


def _grouped_attention(q_bhtk: Tensor, k_bguk: Tensor, v_bguk: Tensor, visible: Tensor | None, *, by_products: bool) -> Tensor:
    """Returns softmax(q k') v, [b, h, t, k]; keys and values are read where they are, and not repeated for each query head.

    by_products: computes two matrix products; False takes PyTorch's kernels.
    """
    batch, heads, time, width = q_bhtk.shape
    if time > 1 and not by_products:
        return F.scaled_dot_product_attention(q_bhtk, k_bguk, v_bguk, attn_mask=visible, enable_gqa=True, scale=1.0)
    stacked = q_bhtk.reshape(batch, k_bguk.shape[1], -1, width)  # the heads that share a key-value head are queries of it
    if not by_products:
        mixed = F.scaled_dot_product_attention(stacked, k_bguk, v_bguk, attn_mask=visible, scale=1.0)
    else:
        scores = torch.matmul(stacked, k_bguk.transpose(2, 3)).view(batch, heads, time, -1)
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        mixed = torch.matmul(scores.softmax(-1).view(*stacked.shape[:3], -1), v_bguk)
    return mixed.view(batch, heads, time, width)


def _causal_attention(q_bhtk: Tensor, k_bgtk: Tensor, v_bgtk: Tensor, window: int | None) -> Tensor:
    """Returns causal attention within rows by PyTorch's kernels, [b, h, t, k]; with a window in blocks of queries."""
    time = q_bhtk.shape[2]
    attend = partial(F.scaled_dot_product_attention, enable_gqa=True, scale=1.0)
    if window is None or window >= time:
        return attend(q_bhtk, k_bgtk, v_bgtk, is_causal=True)
    mixed = []
    for first, last, start in _query_blocks(time, 0, window):
        q, k, v = q_bhtk[:, :, first:last], k_bgtk[:, :, start:last], v_bgtk[:, :, start:last]
        mixed.append(attend(q, k, v, attn_mask=_seen(q, k, window)))
    return torch.cat(mixed, dim=2)


def _scaled_dot_product(
    q_hnk: Tensor, k_gnk: Tensor, v_gnk: Tensor, batch: int, packing: Packing | None, *, causal: bool, window: int | None
) -> Tensor:
    """Returns attention by PyTorch's kernels, [b, t, h, k] or [n, h, k] depending on the packing."""
    if packing is not None and packing.offsets is not None and packing.longest is not None:
        return _variable_length_attention(
            q_hnk, k_gnk, v_gnk, packing.offsets, longest=packing.longest, causal=causal, window=window
        )

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if causal and mask is None:
            return _causal_attention(q, k, v, window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True, scale=1.0)

    if packing is not None and packing.lengths is not None:
        pieces = zip(*(torch.split(x, list(packing.lengths), 1) for x in (q_hnk, k_gnk, v_gnk)), strict=True)
        return torch.cat([attend(q[None], k[None], v[None])[0] for q, k, v in pieces], dim=1).transpose(0, 1)
    q, k, v = (_batched(x, batch) for x in (q_hnk, k_gnk, v_gnk))
    mask = None if packing is None else packing.mask_b1tt
    if mask is not None and window is not None:
        mask = mask & _seen(q, k, window)
    return attend(q, k, v, mask).transpose(1, 2)


def _variable_length_attention(
    q_hnk: Tensor, k_gnk: Tensor, v_gnk: Tensor, offsets: Tensor, *, longest: int, causal: bool, window: int | None
) -> Tensor:
    from torch.nn.attention import varlen  # CUDA only

    q, k, v = (x.transpose(0, 1) for x in (q_hnk, k_gnk, v_gnk))  # the kernel takes any strides, and fewer key-value heads
    seen = (-1 if window is None else window - 1, 0 if causal else -1)  # tokens before and behind each token, -1 for all
    mixed = varlen.varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=1.0, window_size=seen)
    assert isinstance(mixed, Tensor)  # it is a tuple only if auxiliary outputs are requested
    return mixed
