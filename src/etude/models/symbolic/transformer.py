"""Transformer for sequences of music tokens: a decoder, or with causal=False an encoder.

Shapes: b batch, t time, n = b * t tokens, d model width, f hidden width, k head width, v vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from etude.models.symbolic import kernels
from etude.models.symbolic.attention import Attention, Packing, positions_in
from etude.models.symbolic.blocks import Block, FeedForward, compiled_block, run_block
from etude.models.symbolic.decoding import SingleStep
from etude.models.symbolic.kv_cache import KVCache

INIT_STD = 0.02
ANGLES_AT_ONCE = 1024  # positions whose rotary angles are computed together while generating
NO_CACHE = "a network with causal=false can't generate token by token; set model.causal=true"


class Transformer(nn.Module):
    """Transformer that predicts each next token of a piece, or with causal=False encodes each token in its piece.

    Pre-norm residual blocks with RMSNorm, rotary positions and SwiGLU. RMSNorm has a gain only after the last block; elsewhere
    the next linear layer contains it. Embeddings of features of the input token (metrical position, voice) are added to its
    own. The residual stream has the precision of the autocast region. Weights are initialised from N(0, 0.02); those of layers
    that add to the residual stream are divided by sqrt(2 num_layers).

    Args:
        vocab_size: number of tokens v.
        dim: model width d, a multiple of num_heads; d / num_heads is even.
        num_layers: number of blocks.
        num_heads: query heads.
        num_kv_heads: key-value heads, a divisor of num_heads; None for num_heads.
        hidden_dim: width f of the feed-forward layer; None for 8/3 d rounded up to a multiple of 64.
        max_len: default capacity of `new_cache`, in tokens.
        dropout: probability in [0, 1) of dropping an element of the embedding and of each residual branch.
        qk_norm: whether to normalise queries and keys.
        tie_embeddings: whether the token embedding is also the output projection.
        rope_base: the longest wavelength of the rotary positions is about 2 pi rope_base tokens.
        feature_sizes: number of values of each feature, by name.
        checkpoint_activations: recompute each block in the backward pass (less memory, a third more time).
        fused: use hand-written backward passes on CPU and the variable-length kernel on CUDA; False uses plain PyTorch, which
            supports double backward and `torch.func`.
        compiled: True trains on a GPU through `torch.compile`, which fuses what lies between the matrix products; the first step
            then takes some 15 seconds more and needs a C compiler. A CPU trains by the hand-written passes in any case.
        causal: whether a token attends only to itself and earlier tokens. With False it attends to its whole piece; such a
            network has no cache and can't generate token by token.
        window: each token attends to at most the last `window` tokens of its piece, itself included, in training, evaluation and
            generation, whose cost and memory then stop growing at that length; None for all tokens. Needs causal.
        window_layers: indices of the blocks that have the window, from 0; None for all blocks.

    Source: Radford et al. 2019 (pre-norm decoder, scaled init); Touvron et al. 2023 (RMSNorm, SwiGLU, rotary);
    Beltagy et al. 2020 (windows).
    """

    layer_of_units: ClassVar[type[FeedForward]] = FeedForward

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        hidden_dim: int | None = None,
        max_len: int = 2048,
        dropout: float = 0.0,
        qk_norm: bool = True,
        tie_embeddings: bool = True,
        rope_base: float = 10000.0,
        feature_sizes: Mapping[str, int] | None = None,
        checkpoint_activations: bool = False,
        fused: bool = True,
        compiled: bool | None = None,
        causal: bool = True,
        window: int | None = None,
        window_layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_kv_heads or num_heads
        hidden_dim = hidden_dim or -(-8 * dim // (3 * 64)) * 64
        _check(
            vocab_size=vocab_size, dim=dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_kv_heads, dropout=dropout
        )
        self.vocab_size, self.dim, self.max_len, self.dropout = vocab_size, dim, max_len, dropout
        self.head_dim, self.num_kv_heads = dim // num_heads, num_kv_heads
        self.rope_base, self.fused, self.checkpoint_activations = rope_base, fused, checkpoint_activations
        self.causal, self.compiled = causal, bool(compiled)
        self.windows = _windows(window, window_layers, num_layers=num_layers, causal=causal)
        self.features = frozenset(feature_sizes or ())
        self.embedding = nn.Embedding(vocab_size, dim)
        self.feature_embeddings = nn.ModuleDict(
            {f"feature_{name}": nn.Embedding(size, dim) for name, size in (feature_sizes or {}).items()}
        )  # the prefix keeps names from colliding with methods of nn.Module
        self.blocks = nn.ModuleList(
            Block(
                attention=Attention(
                    dim=dim, num_heads=num_heads, num_kv_heads=num_kv_heads, qk_norm=qk_norm, fused=fused, causal=causal,
                    window=span,
                ),
                feed_forward=self.layer_of_units(dim=dim, hidden_dim=hidden_dim),
                dropout=dropout,
                fused=fused,
            )
            for span in self.windows
        )  # fmt: skip
        self.gain = nn.Parameter(torch.ones(dim))
        self.unembedding = nn.Linear(dim, vocab_size, bias=False)
        if tie_embeddings:
            self.unembedding.weight = self.embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises all weights (also after `to_empty` from the meta device)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INIT_STD)
            elif isinstance(module, Attention) and module.temperature is not None:
                nn.init.ones_(module.temperature)
        for module in self.modules():
            if isinstance(module, (Attention, FeedForward)):
                nn.init.normal_(module.output.weight, std=INIT_STD / (2 * len(self.blocks)) ** 0.5)
        nn.init.ones_(self.gain)

    def forward(
        self,
        tokens_bt: Tensor,
        *,
        documents_bt: Tensor | Packing | None = None,
        positions_bt: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        cache: KVCache | None = None,
        embeddings_btd: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits of the next token at every position.

        Args:
            tokens_bt: tokens, int64 [b, t].
            documents_bt: index of the piece within the row [b, t], each piece contiguous, -1 for padding; tokens attend only to
                their own piece. A `Packing` fixes the form of the computation. None if each row is one piece.
            positions_bt: position within the piece [b, t], or [1, 1] for one token at the same position in all rows; None to
                count from 0 (or from the cache's length).
            features: int [b, t] for each name in feature_sizes.
            cache: keys and values of the earlier tokens of the rows; the new ones are added to it.
            embeddings_btd: embeddings to use instead of those of the tokens (`embed`); features are still added to them.

        Returns:
            [b, t, v].
        """
        h_btd = self.hidden(
            tokens_bt, documents_bt=documents_bt, positions_bt=positions_bt, features=features, cache=cache,
            embeddings_btd=embeddings_btd,
        )  # fmt: skip
        return self.unembed(h_btd)

    def unembed(self, h_btd: Tensor) -> Tensor:
        """Returns the logits [b, t, v] of what `hidden` returns."""
        logits: Tensor = self.unembedding(h_btd)
        return logits

    def hidden(
        self,
        tokens_bt: Tensor,
        *,
        documents_bt: Tensor | Packing | None = None,
        positions_bt: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        cache: KVCache | None = None,
        embeddings_btd: Tensor | None = None,
    ) -> Tensor:
        """Returns the normalised last hidden states [b, t, d]; the logits are a linear map of them. Arguments as of `forward`."""
        if cache is not None:
            if not self.causal:
                raise ValueError(NO_CACHE)
            if documents_bt is not None:
                raise ValueError("documents_bt must be None with a cache: give one piece per row")
            cache.reserve(tokens_bt.shape[1])
        x_btd, rotary, packing = self.begin(
            tokens_bt, documents_bt=documents_bt, positions_bt=positions_bt, features=features, cache=cache,
            embeddings_btd=embeddings_btd,
        )  # fmt: skip
        single = self._single_step(x_btd, rotary, cache)
        if single is not None:
            x_btd = single
        else:
            for layer, block in enumerate(self.blocks):
                if cache is None:
                    x_btd = self.through(block, x_btd, rotary, packing)
                else:
                    x_btd = block(x_btd, rotary, cache=cache, layer=layer)
        if cache is not None:
            cache.length += tokens_bt.shape[1]
        return self.end(x_btd)

    def begin(
        self,
        tokens_bt: Tensor,
        *,
        documents_bt: Tensor | Packing | None = None,
        positions_bt: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        cache: KVCache | None = None,
        embeddings_btd: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Packing | None]:
        """Returns what the first block gets: the embeddings [b, t, d], cos and sin of the angles, and the packing.

        With `through` for each of `blocks`, and `end`, these are the steps of `hidden`, for networks that exchange something
        between blocks.
        """
        x_btd = self._embed(self.embed(tokens_bt) if embeddings_btd is None else embeddings_btd, features or {})
        if positions_bt is None and isinstance(documents_bt, Tensor):
            positions_bt = positions_in(documents_bt)
        rotary = self._rotary(tokens_bt, positions_bt, cache, x_btd.dtype)
        packing = documents_bt
        if isinstance(packing, Tensor):
            packing = Packing.choose(packing, dtype=x_btd.dtype, fused=self.fused, causal=self.causal)
        return x_btd, rotary, packing

    def through(self, block: nn.Module, x_btd: Tensor, rotary: tuple[Tensor, Tensor], packing: Packing | None) -> Tensor:
        """Returns the output of one of `blocks`, [b, t, d]; compiled, or with recomputed activations, where that is asked for."""
        run = compiled_block() if self.compiled and x_btd.is_cuda and self.training else run_block
        if self.checkpoint_activations and torch.is_grad_enabled():
            out: Tensor = checkpoint(run, block, x_btd, rotary, packing, use_reentrant=False)
            return out
        return run(block, x_btd, rotary, packing)

    def end(self, x_btd: Tensor) -> Tensor:
        """Returns the normalised hidden states [b, t, d] of the last block's output."""
        return kernels.rms_norm(x_btd, fused=self.fused) * self.gain.to(x_btd.dtype)

    def _single_step(self, x_btd: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor | None:
        """Returns the output of the blocks by the fast path of `decoding`; None if it does not apply (one token per row, CPU)."""
        plain = torch.is_grad_enabled() or self.training or torch.is_autocast_enabled("cpu") or not self.fused
        if cache is None or plain or x_btd.shape[1] != 1 or len(rotary[0]) != 1 or x_btd.device.type != "cpu":
            return None
        if cache.step is None:
            cache.step = SingleStep([block for block in self.blocks if isinstance(block, Block)], cache)
        x_bd = cache.step(x_btd[:, 0], *rotary, cache)
        return None if x_bd is None else x_bd[:, None]

    def embed(self, tokens_bt: Tensor) -> Tensor:
        """Returns the embeddings of the tokens [b, t, d], which `forward` accepts as `embeddings_btd`."""
        embeddings: Tensor = self.embedding(tokens_bt)
        return embeddings

    def _embed(self, x_btd: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        if set(features) != self.features:
            raise ValueError(
                f"features has {sorted(features)}, the model was built with feature_sizes of "
                f"{sorted(self.features)}; pass exactly those"
            )
        for name, embedding in self.feature_embeddings.items():
            x_btd = x_btd + embedding(features[name.removeprefix("feature_")])
        if torch.is_autocast_enabled(x_btd.device.type):
            x_btd = x_btd.to(torch.get_autocast_dtype(x_btd.device.type))
        return kernels.dropout(x_btd, self.dropout) if self.training and self.dropout else x_btd

    def _rotary(
        self, tokens_bt: Tensor, positions_bt: Tensor | None, cache: KVCache | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Returns cos and sin of the rotary angles of each token, [n, 1, k/2], computed in float32 or better."""
        batch, time = tokens_bt.shape
        if positions_bt is not None or cache is None:
            if positions_bt is None:
                positions_bt = torch.arange(time, device=tokens_bt.device).expand(batch, time)
            return self._angles(positions_bt.reshape(-1), dtype)
        first = cache.length
        if cache.rotary is None or not cache.rotary[0] <= first <= first + time <= cache.rotary[0] + len(cache.rotary[1]):
            positions = torch.arange(first, first + max(time, ANGLES_AT_ONCE), device=tokens_bt.device)
            cache.rotary = first, *self._angles(positions, dtype)
        begin = first - cache.rotary[0]
        cos, sin = (table[begin : begin + time] for table in cache.rotary[1:])
        return (cos, sin) if time == 1 else (cos.repeat(batch, 1, 1), sin.repeat(batch, 1, 1))

    def _angles(self, positions_n: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        half = self.head_dim // 2
        exact = torch.promote_types(dtype, torch.float32)
        rate = self.rope_base ** (torch.arange(half, device=positions_n.device, dtype=exact) / -half)
        angles = (positions_n.to(exact)[:, None] * rate)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def new_cache(self, batch: int, max_len: int | None = None, dtype: torch.dtype | None = None) -> KVCache:
        """Returns an empty cache for `batch` rows of at most max_len tokens (default: the model's), in the dtype of the weights.

        Raises: ValueError if the model is not causal.
        """
        if not self.causal:
            raise ValueError(NO_CACHE)
        weight, windows = self.embedding.weight, self.cached_windows
        return KVCache(
            num_layers=len(windows),
            batch=batch,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_len=max_len or self.max_len,
            dtype=dtype or weight.dtype,
            device=weight.device,
            windows=windows,
        )

    @property
    def cached_windows(self) -> list[int | None]:
        """The window of each block whose keys and values a cache holds."""
        return self.windows

    def num_parameters(self) -> int:
        """Returns the number of parameters; a tied matrix counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, length: int) -> int:
        """Returns the floating-point operations of a forward and backward pass per token, in pieces of `length` tokens.

        6 for each weight of a matrix product (2 forward, 4 backward), and 12 d for each token that a token sees on average in a
        layer: half of the length, all if the model is not causal, fewer in a window. Recomputation is not counted.

        Source: Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B, halved for causality.
        """
        weights = self.vocab_size * self.dim
        weights += sum(p.numel() for p in self.blocks.parameters() if p.dim() == 2)
        seen = 0
        for window in self.windows:
            width = min(window or length, length)
            seen += 2 * width - width * width // max(length, 1) if self.causal else 2 * length
        return 6 * weights + 6 * seen * self.dim


def _check(*, vocab_size: int, dim: int, num_layers: int, num_heads: int, num_kv_heads: int, dropout: float) -> None:
    for name, value in (("vocab_size", vocab_size), ("num_layers", num_layers), ("num_heads", num_heads)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1; set model.{name} to a positive number")
    if dim % (2 * num_heads):
        raise ValueError(
            f"dim={dim} must be a multiple of 2 * num_heads={2 * num_heads} (rotary positions rotate pairs); "
            f"try dim={-(-dim // (2 * num_heads)) * 2 * num_heads}"
        )
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads={num_kv_heads} must divide num_heads={num_heads}; use null for num_heads")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout} must lie in [0, 1); 0.1 is usual, 0 switches it off")


def _windows(window: int | None, layers: Sequence[int] | None, *, num_layers: int, causal: bool) -> list[int | None]:
    """Returns the window of each block. Raises: ValueError if the settings contradict each other."""
    if window is None:
        if layers is not None:
            raise ValueError(f"window_layers={list(layers)} has no effect without model.window; set model.window=512, say")
        return [None] * num_layers
    if window < 1 or not causal:
        raise ValueError(f"window={window} must be at least 1 and needs model.causal=true; use model.window=null for no window")
    wrong = [layer for layer in layers or () if not 0 <= layer < num_layers]
    if wrong or (layers is not None and not len(layers)):
        raise ValueError(
            f"window_layers={list(layers or ())} must name blocks from 0 to {num_layers - 1}; use null for all blocks"
        )
    return [window if layers is None or layer in layers else None for layer in range(num_layers)]
