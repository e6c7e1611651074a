"""A Transformer that gets new hidden units for a phase of training that needs them, and leaves the earlier ones as they are."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from etude.models.symbolic import kernels
from etude.models.symbolic.blocks import FeedForward
from etude.models.symbolic.growing import UNFIT, Parts
from etude.models.symbolic.kv_cache import KVCache
from etude.models.symbolic.transformer import INIT_STD, Transformer


class WideningFeedForward(FeedForward):
    """A feed-forward layer to which groups of hidden units are added; each group has weights of its own.

    groups: the groups of units behind the first. active: how many of them compute.
    """

    def __init__(self, *, dim: int, hidden_dim: int) -> None:
        super().__init__(dim=dim, hidden_dim=hidden_dim)
        self.groups = nn.ModuleList()
        self.active = 0

    def forward(self, x_btd: Tensor) -> Tensor:
        out_btd = super().forward(x_btd)
        for group in list(self.groups)[: self.active]:
            out_btd = out_btd + group(x_btd)
        return out_btd

    def widen(self, units: int) -> None:
        """Adds hidden units whose outgoing weights are 0, so that the output does not change."""
        weight = self.gate.weight
        group = FeedForward(dim=weight.shape[1], hidden_dim=units)
        for layer in (group.gate, group.up):
            nn.init.normal_(layer.weight, std=INIT_STD)
        nn.init.zeros_(group.output.weight)
        self.groups.append(group.to(weight))


class Ends(nn.Module):
    """What a part has of its own at both ends of the network: embedding, gain and output, copied from the part before."""

    def __init__(self, embedding: Tensor, gain: Tensor, unembedding: Tensor, *, tied: bool) -> None:
        super().__init__()
        tokens, dim = embedding.shape
        self.embedding = nn.Embedding(tokens, dim)
        self.embedding.weight = nn.Parameter(embedding.detach().clone())
        self.gain = nn.Parameter(gain.detach().clone())
        self.unembedding = nn.Linear(dim, tokens, bias=False)
        self.unembedding.weight = self.embedding.weight if tied else nn.Parameter(unembedding.detach().clone())


class ExpandableTransformer(Transformer):
    """A Transformer that grows before a phase on whose pieces its loss is above `threshold`, and not before other phases.

    When it grows, each feed-forward layer gets `units` more hidden units, whose outgoing weights start at 0, and the network gets
    a copy of its embedding, gain and output: the function does not change. From then on only these new weights are trained, the
    others are frozen. A phase that is fitted well enough when it begins trains the newest weights on. Pieces of an earlier phase
    are read by the units and the ends that were there then, so growth forgets nothing; phases that share units may.

    Before it grows it is a Transformer in every respect, with the same names of weights.

    Args:
        threshold: nats per token, at least 0; 0 grows before every phase. A run says what it measured.
        units: hidden units that growing adds to each block, at least 1.
        options: those of `Transformer`.

    Raises:
        ValueError: an option out of its range, options that `Transformer` refuses, or causal=False.

    Source: Yoon et al. 2018 (dynamically expandable networks), of which it keeps that a network grows only where the loss stays
    high, and that units are used only from the phase on that brought them (section 3.3). There is no sparse selection of what an
    old network retrains, and no splitting: old weights are frozen as a whole. New units start as in Chen et al. 2016 (Net2Net).
    """

    layer_of_units: ClassVar[type[FeedForward]] = WideningFeedForward

    def __init__(self, *, threshold: float = 1.5, units: int = 128, **options: Any) -> None:
        if not threshold >= 0:
            raise ValueError(f"model.threshold is {threshold}, must be at least 0 nats per token; 0 grows before every phase")
        if units < 1:
            raise ValueError(f"model.units is {units}, must be at least 1 hidden unit")
        super().__init__(**options)
        if not self.causal:
            raise ValueError(UNFIT.format("expandable"))
        self.threshold: float | None = threshold
        self.units = units
        self.parts = Parts()
        self.ends = nn.ModuleList()  # of the parts from the second on

    # --- growing ---

    def _layers(self) -> list[WideningFeedForward]:
        return [cast(WideningFeedForward, block.feed_forward) for block in self.blocks]

    def grow(self) -> None:
        last: Any = self.ends[-1] if len(self.ends) else self
        tied = self.unembedding.weight is self.embedding.weight
        self.ends.append(Ends(last.embedding.weight, last.gain, last.unembedding.weight, tied=tied))
        for layer in self._layers():
            layer.widen(self.units)

    def frozen_names(self) -> Sequence[str]:
        newest = len(self.ends) - 1
        new = (f"ends.{newest}.", *(f"blocks.{number}.feed_forward.groups.{newest}." for number in range(len(self.blocks))))
        return [name for name, _ in self.named_parameters() if newest >= 0 and not name.startswith(new)]

    # --- computing ---

    @property
    def _own_ends(self) -> Any:
        return self if self.parts.active == 0 else self.ends[self.parts.active - 1]

    def hidden(self, tokens_bt: Tensor, **inputs: Any) -> Tensor:
        """Returns the normalised last hidden states of the active part, [b, t, d]. Arguments as of `Transformer.forward`."""
        for layer in self._layers():
            layer.active = self.parts.active
        return super().hidden(tokens_bt, **inputs)

    def embed(self, tokens_bt: Tensor) -> Tensor:
        embeddings: Tensor = self._own_ends.embedding(tokens_bt)
        return embeddings

    def unembed(self, h_btd: Tensor) -> Tensor:
        logits: Tensor = self._own_ends.unembedding(h_btd)
        return logits

    def end(self, x_btd: Tensor) -> Tensor:
        gain: Tensor = self._own_ends.gain
        return kernels.rms_norm(x_btd, fused=self.fused) * gain.to(x_btd.dtype)

    def _single_step(self, x_btd: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor | None:
        return super()._single_step(x_btd, rotary, cache) if self.parts.active == 0 else None  # it knows no added units
