"""A Transformer that gets a new column for each phase of training and leaves the earlier ones as they are.

Shapes: b batch, t time, d model width, v vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from etude.models.symbolic import kernels
from etude.models.symbolic.blocks import Block
from etude.models.symbolic.growing import UNFIT, Parts
from etude.models.symbolic.kv_cache import KVCache
from etude.models.symbolic.transformer import INIT_STD, Transformer

STARTS = ("random", "copy")


class ProgressiveTransformer(Transformer):
    """A Transformer for the first phase, and for each further phase one more column beside it: a Transformer of the same size.

    When a phase begins, all columns so far are frozen. What comes out of block i of the new column is increased by linear maps
    (laterals) of the normalised states that come out of block i of each earlier column. A column has an embedding and an output
    of its own. Earlier columns compute without dropout. What a phase has learned can't be forgotten: its column and those before
    it never change. Memory and time grow with the number of phases.

    Before the first column is added it is a Transformer in every respect, with the same names of weights.

    Args:
        start: "random": a new column has random weights, laterals included. "copy": it begins as a copy of the column before it,
            which reads that one by laterals of 0, so that the function does not change.
        options: those of `Transformer`, for every column.

    Raises:
        ValueError: options that `Transformer` refuses, or causal=False.

    Source: Rusu et al. 2016 (progressive neural networks), equation 1, with residual streams as what laterals read and linear
    laterals of full width in place of small networks; there columns start from random weights.
    """

    threshold: float | None = None  # every phase gets a column

    def __init__(self, *, start: str = "copy", **options: Any) -> None:
        if start not in STARTS:
            raise ValueError(f"model.start is {start!r}, must be one of {', '.join(STARTS)}")
        super().__init__(**options)
        if not self.causal:
            raise ValueError(UNFIT.format("progressive"))
        self.start, self._options = start, options
        self.parts = Parts()
        self.columns = nn.ModuleList()  # from the second on
        self.laterals = nn.ModuleList()  # for each of these, for the output of each block, a linear layer

    # --- growing ---

    def grow(self) -> None:
        weight = self.embedding.weight
        column = Transformer(**self._options)
        earlier = len(self.columns) + 1
        laterals = nn.ModuleList(nn.Linear(earlier * self.dim, self.dim, bias=False) for _ in self.blocks)
        for layer in laterals:
            nn.init.normal_(cast(nn.Linear, layer).weight, std=INIT_STD)
        if self.start == "copy":
            self._copy(column, laterals)
        self.columns.append(column.to(weight))
        self.laterals.append(laterals.to(weight))
        for frozen in (self, *cast(list[Transformer], list(self.columns[:-1]))):
            frozen.dropout = 0.0
            for block in cast(list[Block], list(frozen.blocks)):
                block.dropout = 0.0

    @torch.no_grad()
    def _copy(self, column: Transformer, laterals: nn.ModuleList) -> None:
        """Gives a new column the weights of the newest one."""
        newest = cast(Transformer, self.columns[-1]) if len(self.columns) else self
        known = dict(newest.named_parameters())
        for name, parameter in column.named_parameters():
            parameter.copy_(known[name])
        for number, layer in enumerate(cast(list[nn.Linear], list(laterals))):
            layer.weight.zero_()
            if len(self.laterals):
                before = cast(nn.Linear, cast(nn.ModuleList, self.laterals[-1])[number]).weight
                layer.weight[:, : before.shape[1]] = before

    def frozen_names(self) -> Sequence[str]:
        newest = len(self.columns) - 1
        new = (f"columns.{newest}.", f"laterals.{newest}.")
        return [name for name, _ in self.named_parameters() if newest >= 0 and not name.startswith(new)]

    # --- computing ---

    @property
    def _reading(self) -> Transformer:
        """The column whose output is the network's."""
        return self if self.parts.active == 0 else cast(Transformer, self.columns[self.parts.active - 1])

    def embed(self, tokens_bt: Tensor) -> Tensor:
        """Returns the embeddings of the tokens [b, t, d] in the active column; earlier columns always read the tokens."""
        return super().embed(tokens_bt) if self.parts.active == 0 else self._reading.embed(tokens_bt)

    def unembed(self, h_btd: Tensor) -> Tensor:
        return super().unembed(h_btd) if self.parts.active == 0 else self._reading.unembed(h_btd)

    def hidden(self, tokens_bt: Tensor, **inputs: Any) -> Tensor:
        """Returns the normalised last hidden states of the active column, [b, t, d]. Arguments as of `Transformer.forward`."""
        if self.parts.active == 0:
            return super().hidden(tokens_bt, **inputs)
        cache: KVCache | None = inputs.get("cache")
        if cache is not None:
            if inputs.get("documents_bt") is not None:
                raise ValueError("documents_bt must be None with a cache: give one piece per row")
            cache.reserve(tokens_bt.shape[1])
        with torch.no_grad():
            earlier: list[list[Tensor]] = []
            for number in range(self.parts.active):
                earlier.append(self._normalised(self._states(number, tokens_bt, inputs, earlier)))
        states = self._states(self.parts.active, tokens_bt, inputs, earlier)
        if cache is not None:
            cache.length += tokens_bt.shape[1]
        return self._reading.end(states[-1])

    def _normalised(self, states: Sequence[Tensor]) -> list[Tensor]:
        return [kernels.rms_norm(x_btd, fused=self.fused) for x_btd in states]

    def _states(self, number: int, tokens_bt: Tensor, inputs: Mapping[str, Any], earlier: list[list[Tensor]]) -> list[Tensor]:
        """Returns the output [b, t, d] of each block of a column. earlier: the normalised ones of each column before it."""
        cache = inputs.get("cache")
        if number < self.parts.active:  # given embeddings are those of the active column
            inputs = {**inputs, "embeddings_btd": None}
        if number == 0:
            own = {**inputs, "embeddings_btd": self.embedding(tokens_bt)}  # `embed` is that of the active column
            return self._run(self, 0, self.begin(tokens_bt, **own), cache, None)
        column, laterals = cast(Transformer, self.columns[number - 1]), cast(nn.ModuleList, self.laterals[number - 1])
        seen = [torch.cat(states, -1) for states in zip(*earlier, strict=True)]
        read = [layer(x) for layer, x in zip(laterals, seen, strict=True)]
        return self._run(column, number, column.begin(tokens_bt, **inputs), cache, read)

    def _run(
        self, column: Transformer, number: int, begun: Any, cache: KVCache | None, read: Sequence[Tensor] | None
    ) -> list[Tensor]:
        x_btd, rotary, packing = begun
        states = []
        for layer, block in enumerate(column.blocks):
            if cache is None:
                x_btd = column.through(block, x_btd, rotary, packing)
            else:
                x_btd = block(x_btd, rotary, cache=cache, layer=number * len(column.blocks) + layer)
            x_btd = x_btd if read is None else x_btd + read[layer]
            states.append(x_btd)
        return states

    @property
    def cached_windows(self) -> list[int | None]:
        return self.windows * (self.parts.active + 1)

    def flops_per_token(self, length: int) -> int:
        """As of `Transformer`, of all columns up to the active one; a frozen column has no backward pass."""
        own, earlier = super().flops_per_token(length), self.parts.active
        laterals = [sum(p.numel() for p in each.parameters()) for each in list(self.laterals)[:earlier]]
        return own + earlier * own // 3 + 2 * sum(laterals) + 4 * sum(laterals[-1:])
