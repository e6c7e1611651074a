"""The residual block of the Transformers.

Shapes: b batch, t time, d model width, f hidden width.
"""

import functools
import os
import shutil
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.models.symbolic import kernels
from etude.models.symbolic.attention import Attention, Packing
from etude.models.symbolic.kv_cache import KVCache


class FeedForward(nn.Module):
    """SwiGLU feed-forward layer: W_down(swish(W_gate x) * W_up x), without bias.

    width: only the first so many hidden units compute, while a technique lets the layer grow; None for all.

    Source: Shazeer 2020, eq. 6.
    """

    unit_name: ClassVar[str] = "units"

    def __init__(self, *, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, dim, bias=False)
        self.width: int | None = None

    @property
    def num_units(self) -> int:
        """Hidden units f."""
        return self.output.in_features

    @property
    def incoming(self) -> tuple[nn.Linear, ...]:
        """The layers of whose weights a row belongs to each hidden unit."""
        return self.gate, self.up

    def forward(self, x_btd: Tensor) -> Tensor:
        if self.width is not None:
            gate, up = (F.linear(x_btd, layer.weight[: self.width]) for layer in self.incoming)
            return F.linear(F.silu(gate) * up, self.output.weight[:, : self.width])
        output: Tensor = self.output(F.silu(self.gate(x_btd)) * self.up(x_btd))
        return output


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)), with dropout on both branches."""

    def __init__(self, *, attention: Attention, feed_forward: FeedForward, dropout: float, fused: bool) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.dropout, self.fused = dropout, fused

    def forward(
        self,
        x_btd: Tensor,
        rotary: tuple[Tensor, Tensor],
        *,
        packing: Packing | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        normed = kernels.rms_norm(x_btd, fused=self.fused)
        x_btd = x_btd + self._drop(self.attention(normed, rotary, packing=packing, cache=cache, layer=layer))
        return x_btd + self._drop(self.feed_forward(kernels.rms_norm(x_btd, fused=self.fused)))

    def _drop(self, x_btd: Tensor) -> Tensor:
        return kernels.dropout(x_btd, self.dropout) if self.training and self.dropout else x_btd


def run_block(block: nn.Module, x_btd: Tensor, rotary: tuple[Tensor, Tensor], packing: Packing | None) -> Tensor:
    """Returns the block's output, [b, t, d]; forward hooks of the block run, too."""
    out: Tensor = block(x_btd, rotary, packing=packing)
    return out


@functools.cache
def compiled_block() -> Callable[[nn.Module, Tensor, tuple[Tensor, Tensor], Packing | None], Tensor]:
    """Returns `run_block` through `torch.compile`; equal blocks share what is compiled.

    Raises: ValueError if there is no C compiler.
    """
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))):
        raise ValueError("model.compiled=true needs a C compiler; install gcc, or set model.compiled=false")
    return torch.compile(run_block)
