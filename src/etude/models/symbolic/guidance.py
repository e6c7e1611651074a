"""Guidance: what labels change in a model's predictions is exaggerated, by comparing them with those without labels.

Shapes: b rows, t time, v vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.models.symbolic.kv_cache import KVCache
from etude.models.symbolic.sampling import PAD
from etude.models.symbolic.transformer import Transformer


class GuidedCache:
    """The cache of both rows of each sample. cache: its own rows first, with labels, then those without."""

    def __init__(self, cache: KVCache, batch: int) -> None:
        self.cache, self.padding_b = cache, torch.zeros(batch, dtype=torch.int64)

    def pad(self, padding_b: Tensor) -> None:
        """Hides the first tokens of each row, int64 [b]."""
        self.padding_b = padding_b.cpu()


class Guided(nn.Module):
    """A model whose logits are (1 + w) l(x | labels) - w l(x), with w = `weight`; 0 is the model itself.

    Each sample takes two rows of the model, with and without the control tokens of its labels. It has to have been trained with
    labels left out at random.

    Args:
        model: a Transformer. weight: w, at least 0.
        num_controls: how many control tokens follow the first token of each row.

    Source: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6; Sanchez et al. 2023, "Stay on topic with
    Classifier-Free Guidance", for language models, whose gamma is 1 + w.
    """

    def __init__(self, model: Transformer, *, weight: float, num_controls: int) -> None:
        super().__init__()
        self.model, self.weight, self.num_controls = model, weight, num_controls

    def new_cache(self, batch: int, max_len: int | None = None) -> GuidedCache:
        """Returns an empty cache for `batch` samples of at most max_len tokens."""
        return GuidedCache(self.model.new_cache(2 * batch, max_len), batch)

    def forward(self, tokens_bt: Tensor, *, features: Mapping[str, Tensor], cache: GuidedCache) -> Tensor:
        """Returns the guided logits [b, t, v] of the next tokens; at the start, those of the control tokens mean nothing."""
        without_bt = tokens_bt
        if cache.cache.length == 0:
            without_bt = self._without_controls(tokens_bt, cache)
        doubled = {name: values.repeat(2, 1) for name, values in features.items()}
        with_btv, without_btv = self.model(torch.cat((tokens_bt, without_bt)), features=doubled, cache=cache.cache).chunk(2)
        guided_btv: Tensor = with_btv + self.weight * (with_btv - without_btv)
        return guided_btv

    def _without_controls(self, tokens_bt: Tensor, cache: GuidedCache) -> Tensor:
        """The rows with their first token behind padding in the place of the control tokens; hides the padding."""
        start, count = cache.padding_b.to(tokens_bt.device)[:, None], self.num_controls
        place = torch.arange(tokens_bt.shape[1], device=tokens_bt.device)
        first_b1 = tokens_bt.gather(1, start)
        hidden = (place >= start) & (place < start + count)
        cache.cache.pad(torch.cat((cache.padding_b, cache.padding_b + count)))
        return torch.where(place == start + count, first_b1, tokens_bt.masked_fill(hidden, PAD))
