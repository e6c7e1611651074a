"""A variational autoencoder of bars: an encoder sees a piece and gives each bar a latent vector, a decoder writes it from them.

What the decoder sees of a bar is its code: the latent, and attributes that are told and not learnt, such as the number of notes.

Shapes: b rows, t tokens, d model width, n bars of all pieces of a batch, z latent size, a attributes, v vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from etude.models.symbolic.attention import starts_of_pieces
from etude.models.symbolic.kv_cache import KVCache
from etude.models.symbolic.transformer import Transformer


class Posterior(NamedTuple):
    """What the encoder says of each bar.

    mean, log_variance: of its latent, [n, z]. bar: which of them each token belongs to, [b, t]; BOS and control tokens belong to
    the first bar. real: whether a bar is music and not padding, bool [n].
    """

    mean: Tensor
    log_variance: Tensor
    bar: Tensor
    real: Tensor


class VaeCache:
    """State of generation: the decoder's keys and values, the codes of all bars [b, bars, z + a], and the bar of each row [b]."""

    def __init__(self, keys: KVCache, codes: Tensor) -> None:
        self.keys, self.codes = keys, codes
        self.bar = torch.zeros(len(codes), dtype=torch.long, device=codes.device)  # Bar tokens so far


class TransformerVae(nn.Module):
    """Two Transformers: an encoder, whose states are averaged over each bar, and a decoder that sees its latent at each token.

    Args:
        vocab_size, feature_sizes, num_heads, hidden_dim, dropout, max_len, fused: see `Transformer`.
        dim: width of both.
        num_layers, encoder_layers: blocks of the decoder and of the encoder.
        latent_dim: size z of a bar's latent. num_attributes: a.
        token_dropout: probability with which the decoder does not see a token in training, so that it needs the latents.
        spread: standard deviation of each mean latent between bars, in (0, 1], which batch normalisation holds it at. So the
            divergence can't fall below spread**2 / 2 nats for each dimension of a bar, and no latent collapses.

    Source: Wu and Yang 2021 (MuseMorphose: a latent for each bar, shown to the decoder); Bowman et al. 2016 (token dropout);
    Zhu et al. 2020 (BN-VAE: normalised means).
    """

    bar_ids: Tensor

    def __init__(
        self, *, vocab_size: int, dim: int = 128, num_layers: int = 4, encoder_layers: int = 2, num_heads: int = 4,
        hidden_dim: int | None = 384, latent_dim: int = 32, num_attributes: int = 2, max_len: int = 2048,
        dropout: float = 0.0, token_dropout: float = 0.2, spread: float = 0.8, feature_sizes: Mapping[str, int] | None = None,
        fused: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if latent_dim < 1 or not 0.0 <= token_dropout < 1.0:
            raise ValueError(
                f"latent_dim={latent_dim} must be at least 1 and token_dropout={token_dropout} in [0, 1); 32 and 0.2 are usual"
            )
        if not 0.0 < spread <= 1.0:
            raise ValueError(f"spread={spread} must lie in (0, 1]; 0.8 is usual")
        self.latent_dim, self.token_dropout, self.spread, self.max_len = latent_dim, token_dropout, spread, max_len

        def transformer(layers: int, *, causal: bool) -> Transformer:
            return Transformer(
                vocab_size=vocab_size, dim=dim, num_layers=layers, num_heads=num_heads, hidden_dim=hidden_dim, max_len=max_len,
                dropout=dropout, feature_sizes=feature_sizes, fused=fused, causal=causal,
            )  # fmt: skip

        self.encoder, self.decoder = transformer(encoder_layers, causal=False), transformer(num_layers, causal=True)
        self.posterior = nn.Linear(dim, 2 * latent_dim)
        self.normal = nn.BatchNorm1d(latent_dim, affine=False)
        self.condition = nn.Linear(latent_dim + num_attributes, dim, bias=False)
        nn.init.normal_(self.posterior.weight, std=dim**-0.5)
        nn.init.zeros_(self.posterior.bias)
        nn.init.constant_(self.posterior.bias[latent_dim:], -2.0)  # a posterior that is narrower than the spread of the means
        nn.init.normal_(self.condition.weight, std=0.1 * latent_dim**-0.5)
        self.register_buffer("bar_ids", torch.zeros(0, dtype=torch.long), persistent=False)
        self._codes: Tensor | None = None

    def set_bar_ids(self, ids: Sequence[int]) -> None:
        """Says which tokens begin a bar."""
        self.bar_ids = torch.tensor(sorted(ids), device=self.condition.weight.device)

    # --- encoding ---

    def encode(
        self, tokens_bt: Tensor, *, documents_bt: Tensor, positions_bt: Tensor | None = None, features: Mapping[str, Tensor]
    ) -> Posterior:
        """Returns the posterior of every bar; arguments as of `Transformer.forward`."""
        hidden = self.encoder.hidden(tokens_bt, documents_bt=documents_bt, positions_bt=positions_bt, features=features)
        bar, real = self.bars(tokens_bt, documents_bt)
        owner, count = bar.flatten(), len(real)
        sums = hidden.new_zeros(count, hidden.shape[-1]).index_add(0, owner, hidden.flatten(0, 1))
        lengths = torch.bincount(owner, minlength=count).clamp(min=1)
        mean, log_variance = self.posterior(sums / lengths[:, None].to(sums.dtype)).float().chunk(2, dim=-1)
        return Posterior(self._normalised(mean, real), log_variance.clamp(-8, 8), bar, real)

    def _normalised(self, mean_nz: Tensor, real_n: Tensor) -> Tensor:
        """Returns means with the running statistics of music, in training those of this batch; one bar alone has none."""
        few = not self.training or int(real_n.sum()) < 2
        if not few:
            self.normal(mean_nz[real_n])  # updates the running statistics
        centre = self.normal.running_mean if few else mean_nz[real_n].mean(0)
        variance = self.normal.running_var if few else mean_nz[real_n].var(0, unbiased=False)
        assert centre is not None and variance is not None
        return self.spread * (mean_nz - centre) / (variance + self.normal.eps).sqrt()

    def bars(self, tokens_bt: Tensor, documents_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the bar of each token, counted over the batch, [b, t], and whether each bar is music, [n]."""
        is_bar = torch.isin(tokens_bt, self.bar_ids).flatten()
        opens = torch.zeros_like(is_bar).index_fill(0, starts_of_pieces(documents_bt), True)
        count = is_bar.long().cumsum(0)
        piece = opens.long().cumsum(0) - 1
        before = (count - is_bar.long())[opens][piece]  # Bar tokens before the piece
        number = (count - before).clamp(min=1)
        change = opens.clone()
        change[1:] |= number[1:] != number[:-1]
        bar = change.long().cumsum(0) - 1
        real = (documents_bt.flatten() >= 0)[change]
        return bar.view_as(tokens_bt), real

    # --- decoding ---

    def decode(
        self, tokens_bt: Tensor, codes_nc: Tensor, bar_bt: Tensor, *, documents_bt: Tensor | None = None,
        positions_bt: Tensor | None = None, features: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """Returns the logits of the next token [b, t, v], given the codes of all bars [n, z + a] and each token's bar."""
        embedded = self.decoder.embed(tokens_bt)
        if self.training and self.token_dropout:
            embedded = embedded * (torch.rand(tokens_bt.shape, device=embedded.device) >= self.token_dropout)[..., None]
        embedded = embedded + self.condition(codes_nc.to(self.condition.weight.dtype))[bar_bt]
        logits: Tensor = self.decoder(
            tokens_bt, documents_bt=documents_bt, positions_bt=positions_bt, features=features, embeddings_btd=embedded
        )
        return logits

    def forward(
        self, tokens_bt: Tensor, *, positions_bt: Tensor | None = None, features: Mapping[str, Tensor] | None = None,
        cache: VaeCache,
    ) -> Tensor:  # fmt: skip
        """Returns the logits of the next token [b, t, v] from the codes of the cache; arguments as of `Transformer.forward`."""
        bars = cache.bar[:, None] + torch.isin(tokens_bt, self.bar_ids).long().cumsum(1)
        cache.bar = bars[:, -1]
        number = (bars - 1).clamp(min=0) % cache.codes.shape[1]
        codes = cache.codes.gather(1, number[..., None].expand(-1, -1, cache.codes.shape[2]))
        embedded = self.decoder.embed(tokens_bt) + self.condition(codes)
        logits: Tensor = self.decoder(
            tokens_bt, positions_bt=positions_bt, features=features, cache=cache.keys, embeddings_btd=embedded
        )
        return logits

    @contextmanager
    def generating_from(self, codes_bnc: Tensor) -> Iterator[None]:
        """Within this context, generation writes row i from codes [b, bars, z + a]; bars beyond the last begin again."""
        self._codes = codes_bnc
        try:
            yield
        finally:
            self._codes = None

    def new_cache(self, batch: int, max_len: int | None = None, dtype: torch.dtype | None = None) -> VaeCache:
        """Returns an empty cache for `batch` rows of at most max_len tokens, with the codes of `generating_from`."""
        if self._codes is None or len(self._codes) < batch:
            raise ValueError("model=transformer_vae generates from latents; use it with task=vae, which draws them")
        return VaeCache(self.decoder.new_cache(batch, max_len, dtype), self._codes[:batch].to(self.condition.weight))

    def num_parameters(self) -> int:
        """Returns the number of parameters; a tied matrix counts once."""
        return sum(p.numel() for p in self.parameters())
