"""One token for every row with as few operations as possible: generation on CPU is bound by their number.

The general path takes about 25 operations a layer, module calls and autograd functions included; this takes 14. It
reads copies of the weights laid out for it (queries, keys and values in one matrix, gate and up in one), made when a
cache meets its first single token, and is equal to the general path within rounding (tested).

Shape legend: b batch, d model width, h query heads, g key-value heads, k head width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.models.attention import KVCache
from etude.models.blocks import Block


class _Layer(NamedTuple):
    query_key_value: Tensor  # [(h + 2g) k, d]
    attention_output: Tensor  # [d, d], transposed
    gate_up: Tensor  # [2f, d]
    feed_forward_output: Tensor  # [f, d]
    length: Tensor | None  # [b (h + g), 1], what each query and key is normalised to


class SingleStep:
    """The blocks of a Transformer for one new token a row.

    Args:
        blocks: the Transformer's; later changes of their weights are not seen.
        cache: gives the batch, and cos and sin of every position.
    """

    def __init__(self, blocks: Sequence[Block], cache: KVCache) -> None:
        first = blocks[0].attention
        self.num_heads, self.num_kv_heads, self.head_dim = first.num_heads, first.num_kv_heads, first.head_dim
        self.scale = self.head_dim**-0.5 if first.temperature is None else 1.0
        self.layers = [self._layer(block, cache.batch) for block in blocks]
        weight = first.output.weight
        self.length = torch.full((cache.batch, 1), weight.shape[0] ** 0.5, dtype=weight.dtype)
        self.identity = torch.eye(self.head_dim, dtype=weight.dtype)
        # right half of a row gets + first half, left half gets - second half
        sign = torch.ones(self.head_dim, dtype=weight.dtype)
        sign[: self.head_dim // 2] = -1.0
        self.swap = self.identity.roll(self.head_dim // 2, 1) * sign

    def _layer(self, block: Block, batch: int) -> _Layer:
        attention, feed_forward = block.attention, block.feed_forward
        length = None
        if attention.temperature is not None:
            keys = attention.temperature.new_ones(self.num_kv_heads)
            gain = torch.cat((attention.temperature * self.head_dim**-0.5, keys)) * self.head_dim**0.5
            length = gain.repeat(batch)[:, None]
        return _Layer(
            query_key_value=torch.cat((attention.query_key.weight, attention.value.weight)),
            attention_output=attention.output.weight.t(),
            gate_up=torch.cat((feed_forward.gate.weight, feed_forward.up.weight)),
            feed_forward_output=feed_forward.output.weight.t(),
            length=length,
        )

    def __call__(self, x_bd: Tensor, cos: Tensor, sin: Tensor, cache: KVCache) -> Tensor | None:
        """The last block's output [b, d]; keys and values are written at the cache's length, which stays as it is.

        None where something to be normalised is all zero (a pruned head), which only the general path can do.

        Args:
            x_bd: embedded tokens.
            cos, sin: [1, 1, k/2] of their position.
            cache: of the rows.
        """
        batch, heads = x_bd.shape[0], self.num_heads + self.num_kv_heads
        cos, sin = cos.flatten().repeat(2), sin.flatten().repeat(2)
        rotation = torch.addcmul(self.identity * cos, self.swap, sin)  # one product instead of four passes
        position = cache.length
        norms: list[Tensor] = []
        for layer, weights in enumerate(self.layers):
            normed, norm = torch._weight_norm_interface(x_bd, self.length, 0)
            norms.append(norm)
            qkv = F.linear(normed, weights.query_key_value).view(batch, -1, self.head_dim)
            qk = qkv[:, :heads].reshape(-1, self.head_dim)
            if weights.length is not None:
                qk, norm = torch._weight_norm_interface(qk, weights.length, 0)
                norms.append(norm)
            qk = torch.mm(qk, rotation).view(batch, heads, self.head_dim)
            keys, values = cache.keys[layer], cache.values[layer]
            keys[:, :, position] = qk[:, self.num_heads :]
            values[:, :, position] = qkv[:, heads:]
            query = qk[:, : self.num_heads].reshape(batch, self.num_kv_heads, -1, self.head_dim)
            mixed = F.scaled_dot_product_attention(
                query.to(keys.dtype), keys[:, :, : position + 1], values[:, :, : position + 1], scale=self.scale
            )
            x_bd = torch.addmm(x_bd, mixed.reshape(batch, -1).to(x_bd.dtype), weights.attention_output)
            normed, norm = torch._weight_norm_interface(x_bd, self.length, 0)
            norms.append(norm)
            gate, up = F.linear(normed, weights.gate_up).chunk(2, dim=-1)
            x_bd = torch.addmm(x_bd, F.silu(gate).mul_(up), weights.feed_forward_output)
        return x_bd if torch.cat(norms).all() else None
