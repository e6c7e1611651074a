"""A fast path for generating one token per row on CPU, where the number of operations limits the speed.

The general path takes about 25 operations per layer, counting module calls and autograd functions; this one takes 16. It uses
copies of the weights (queries, keys and values in one matrix, gate and up in one), made at the first single token of a cache.
The result equals that of the general path within rounding (tested).

Shapes: b batch, d model width, h query heads, g key-value heads, k head width, s slots of a layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.models.symbolic.blocks import Block
from etude.models.symbolic.kv_cache import KVCache


class _Linear:
    """Computes x W' and residual + x W'; bfloat16 weights are stored in the layout of oneDNN's kernels.

    The layout saves a third of the time of a product at batch 1 and 16; `torch.compile` uses it, too, for frozen weights.
    In float32, matrices with more outputs than inputs are stored by inputs: at batch 1 a product of 256 to 1,408 takes a third of
    the time, at batch 16 a sixth less.
    """

    def __init__(self, weight: Tensor, batch: int) -> None:
        self.packed = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, batch)
        else:
            wide = weight.dtype != torch.bfloat16 and weight.shape[0] > weight.shape[1]
            self.weight = weight.t().contiguous() if wide else weight.t()

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
            return output
        return torch.mm(x, self.weight)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        if self.packed:
            return self(x).add_(residual)
        return torch.addmm(residual, x, self.weight)


class _Layer(NamedTuple):
    query_key_value: _Linear  # d to (h + 2g) k
    attention_output: _Linear
    gate_up: _Linear  # d to 2f
    feed_forward_output: _Linear
    length: Tensor | None  # [b (h + g), 1], the norm that each query and key is scaled to


class SingleStep:
    """Applies the blocks of a Transformer to one new token per row.

    Args:
        blocks: the blocks of the Transformer; later changes of their weights have no effect.
        cache: key-value cache that is read and extended.
    """

    def __init__(self, blocks: Sequence[Block], cache: KVCache) -> None:
        first = blocks[0].attention
        self.num_heads, self.num_kv_heads, self.head_dim = first.num_heads, first.num_kv_heads, first.head_dim
        self.scale = self.head_dim**-0.5 if first.temperature is None else 1.0
        self.layers = [self._layer(block, cache.batch) for block in blocks]
        self.by_channel = [  # of each layer the keys [b g, k, s] and the values [b g, s, k], where they are read by products
            (keys.transpose(2, 3).flatten(0, 1), values.transpose(2, 3).flatten(0, 1).transpose(1, 2)) if products else None
            for keys, values, products in zip(cache.keys, cache.values, cache.by_products, strict=True)
        ]
        self.nothing = torch.zeros(1, 1, 1, dtype=cache.dtype)
        weight = first.output.weight
        self.length = torch.full((cache.batch, 1), weight.shape[0] ** 0.5, dtype=weight.dtype)
        exact = torch.promote_types(weight.dtype, torch.float32)  # so small a product is slower in bfloat16
        self.identity = torch.eye(self.head_dim, dtype=exact)
        # right half of a row gets + first half, left half gets - second half
        sign = torch.ones(self.head_dim, dtype=exact)
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
            query_key_value=_Linear(torch.cat((attention.query_key.weight, attention.value.weight)), batch),
            attention_output=_Linear(attention.output.weight, batch),
            gate_up=_Linear(torch.cat((feed_forward.gate.weight, feed_forward.up.weight)), batch),
            feed_forward_output=_Linear(feed_forward.output.weight, batch),
            length=length,
        )

    def __call__(self, x_bd: Tensor, cos: Tensor, sin: Tensor, cache: KVCache) -> Tensor | None:
        """Returns the last block's output [b, d]; writes keys and values at the cache's length, which does not change.

        Returns None if a vector to be normalised is all zeros (a pruned head), which only the general path supports.

        Args:
            x_bd: embedded tokens.
            cos, sin: cosine and sine of the rotary angles of their position, [1, 1, k/2].
            cache: key-value cache of the rows.
        """
        batch, heads = x_bd.shape[0], self.num_heads + self.num_kv_heads
        cos, sin = (torch.cat((angle, angle), -1).view(-1) for angle in (cos, sin))
        rotation = torch.addcmul(self.identity * cos, self.swap, sin)  # one matrix product instead of four elementwise operations
        norms: list[Tensor] = []
        for layer, weights in enumerate(self.layers):
            normed, norm = torch._weight_norm_interface(x_bd, self.length, 0)
            norms.append(norm)
            qkv = weights.query_key_value(normed).view(batch, -1, self.head_dim)
            qk = qkv.narrow(1, 0, heads).reshape(-1, self.head_dim)
            if weights.length is not None:
                qk, norm = torch._weight_norm_interface(qk, weights.length, 0)
                norms.append(norm)
            qk = torch.mm(_as(qk, rotation.dtype), rotation).view(batch, heads, self.head_dim)
            keys, values = cache.keys[layer], cache.values[layer]
            place = cache.length % keys.shape[2]
            keys.select(2, place).copy_(qk.narrow(1, self.num_heads, self.num_kv_heads))
            values.select(2, place).copy_(qkv.narrow(1, heads, self.num_kv_heads))
            mixed = self._attend(qk.narrow(1, 0, self.num_heads), cache, layer)
            x_bd = weights.attention_output.add(x_bd, _as(mixed.reshape(batch, -1), x_bd.dtype))
            normed, norm = torch._weight_norm_interface(x_bd, self.length, 0)
            norms.append(norm)
            gate, up = weights.gate_up(normed).chunk(2, dim=-1)
            x_bd = weights.feed_forward_output.add(x_bd, F.silu(gate).mul_(up))
        return x_bd if torch.cat(norms).all() else None

    def _attend(self, q_bhk: Tensor, cache: KVCache, layer: int) -> Tensor:
        """Returns the attention of one token per row; the query heads that share a key-value head are queries of it."""
        keys, values = cache.keys[layer], cache.values[layer]
        batch, groups, slots, width = keys.shape
        count = min(cache.length + 1, slots)
        visible = None if cache.padding_b is None else cache.visible(layer, 1)
        query = _as(q_bhk, keys.dtype)
        by_channel = self.by_channel[layer]
        if by_channel is None:
            query = query.reshape(batch, groups, -1, width)
            seen, mixable = keys.narrow(2, 0, count), values.narrow(2, 0, count)
            return F.scaled_dot_product_attention(query, seen, mixable, attn_mask=visible, scale=self.scale)
        seen, mixable = by_channel
        query = query.reshape(batch * groups, -1, width)
        scores = torch.baddbmm(self.nothing, query, seen.narrow(2, 0, count), beta=0, alpha=self.scale)
        if visible is not None:
            scores = scores.view(batch, -1, 1, count).masked_fill(~visible, -torch.inf).view_as(scores)
        return torch.bmm(torch.softmax(scores, -1), mixable.narrow(1, 0, count))


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns x in a dtype; `Tensor.to` takes 3 microseconds where it has nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)
