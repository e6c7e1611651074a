"""Speculative decoding: a small model drafts tokens, the large one checks several of them at once.

Shapes: t time, g drafted tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from etude.models.symbolic.kv_cache import KVCache
from etude.models.symbolic.sampling import Decoder, distribution, draw, forbid, prompt_features, to_device
from etude.models.symbolic.transformer import Transformer

Choose = Callable[[Tensor], int]


class ReplayedDecoder(Decoder, Protocol):
    """A decoder of which a copy can go its own way."""

    def fork(self) -> Self:
        """Returns an independent copy."""


def random_choice(generator: torch.Generator) -> Choose:
    """Returns a function that draws an index with given probabilities [v]."""

    def choose(probabilities_v: Tensor) -> int:
        return int(draw(probabilities_v[None], torch.rand(1, generator=generator))[0])

    return choose


def residual(p_v: Tensor, q_v: Tensor) -> Tensor:
    """Returns max(p - q, 0), normalised: from it a token is drawn where one of the draft's is rejected."""
    rest_v = (p_v - q_v).clamp(min=0)
    return rest_v / rest_v.sum()


@dataclass
class Speculation:
    """How often the large model took what the small one drafted."""

    drafted: int = 0
    accepted: int = 0


@dataclass
class _Reader:
    """A model that has read a sequence up to its cache's length."""

    model: Transformer
    cache: KVCache
    device: torch.device

    def read(self, tokens: list[int], features: dict[str, list[int]]) -> Tensor:
        """Reads what is new of a sequence; returns the logits behind each new token, float32 [t, v] on the CPU."""
        start = self.cache.length
        rows = {name: np.array(values[start:], dtype=np.int64)[None] for name, values in features.items()}
        ids_1t = torch.tensor([tokens[start:]], device=self.device)
        logits_1tv: Tensor = self.model(ids_1t, features=to_device(rows, self.device), cache=self.cache)
        return logits_1tv[0].float().cpu()


@dataclass
class _Sequence:
    """The tokens so far, their features, and the decoder that has followed them."""

    decoder: Any
    tokens: list[int]
    features: dict[str, list[int]] = field(default_factory=dict)

    def extended(self, token: int) -> _Sequence:
        """Returns a copy with one more token."""
        decoder = self.decoder.fork()
        decoder.push(np.array([token]))
        found = decoder.features()
        return _Sequence(
            decoder, [*self.tokens, token], {name: [*values, int(found[name][0])] for name, values in self.features.items()}
        )

    def probabilities(self, logits_v: Tensor, cuts: dict[str, Any]) -> Tensor:
        """The probabilities of the next token [v], of those that are allowed."""
        allowed = self.decoder.allowed()
        return distribution(forbid(logits_v[None], allowed, np.zeros(1, dtype=bool)), **cuts)[0]

    @property
    def has_ended(self) -> bool:
        return bool(self.decoder.finished[0])


@torch.inference_mode()
def speculative_sample(
    model: Transformer,
    draft: Transformer,
    prompt_1t: Tensor,
    *,
    decoder: ReplayedDecoder,
    max_new_tokens: int,
    draft_length: int = 4,
    choose: Choose,
    on_step: Callable[[int], Any] | None = None,
    on_tokens: Callable[[np.ndarray], Any] | None = None,
    told: Speculation | None = None,
    **cuts: Any,
) -> list[int]:
    """Continues a prompt as `sampling.generate` does, from the same distribution, with fewer passes of the large model.

    In each round `draft` draws up to `draft_length` tokens from its own distribution q, and `model` computes its p of all of them
    in one pass. A token x is accepted with probability min(1, p(x) / q(x)); the first one that is not is replaced by a draw from
    max(p - q, 0), normalised. If all are accepted, the model's pass gives one more. So each token has distribution p.

    Args:
        model, draft: of the same vocabulary and features.
        decoder: a new decoder for one row; what it forbids is removed from p and q.
        draft_length: at least 1.
        choose: draws an index with given probabilities.
        told: counts what is drafted and accepted.
        cuts: temperature, top_k, top_p, min_p; of p and of q.
        prompt_1t, max_new_tokens, on_step, on_tokens: as of `generate`, for one row.

    Returns:
        The prompt and continuation, with EOS if it was reached.

    Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1.
    """
    device, first = prompt_1t.device, prompt_1t.shape[1]
    most = first + max_new_tokens + draft_length + 1
    large, small = (_Reader(each, each.new_cache(1, most), device) for each in (model, draft))
    if large.cache.rolls or small.cache.rolls:
        raise ValueError(
            f"speculative decoding takes tokens back, which a model with model.window can't do beyond its window: {most} tokens "
            "are needed; leave out draft=, or generate fewer"
        )
    features = {name: values[0].tolist() for name, values in prompt_features(decoder, prompt_1t).items()}
    sequence, told = _Sequence(decoder, prompt_1t[0].tolist(), features), told or Speculation()
    modes = [(each, each.training) for each in (model, draft)]
    model.eval(), draft.eval()
    try:
        while len(sequence.tokens) - first < max_new_tokens and not sequence.has_ended:
            before = len(sequence.tokens)
            sequence = _round(sequence, large, small, draft_length, choose, told, cuts)
            sequence = _cut(sequence, first + max_new_tokens)
            for number in range(before, len(sequence.tokens)):
                if on_step is not None:
                    on_step(number + 1 - first)
                if on_tokens is not None:
                    on_tokens(np.array([sequence.tokens[number]]))
    finally:
        for each, mode in modes:
            each.train(mode)
    return sequence.tokens


def _round(
    sequence: _Sequence, large: _Reader, small: _Reader, length: int, choose: Choose, told: Speculation, cuts: dict[str, Any]
) -> _Sequence:
    """Drafts, checks, and returns the sequence with what was accepted, and one token of the large model behind it."""
    drafted: list[_Sequence] = [sequence]
    q_gv: list[Tensor] = []
    while len(q_gv) < length and not drafted[-1].has_ended:
        q_v = drafted[-1].probabilities(small.read(drafted[-1].tokens, drafted[-1].features)[-1], cuts)
        q_gv.append(q_v)
        drafted.append(drafted[-1].extended(choose(q_v)))
    logits_tv = large.read(drafted[-1].tokens, drafted[-1].features)[-len(q_gv) - 1 :]
    told.drafted += len(q_gv)
    for place, q_v in enumerate(q_gv):
        before, token = drafted[place], drafted[place + 1].tokens[-1]
        p_v = before.probabilities(logits_tv[place], cuts)
        chance = min(1.0, float(p_v[token] / q_v[token]))
        if chance < 1.0 and choose(torch.tensor([chance, 1 - chance], dtype=torch.float64)) == 1:
            for reader in (large, small):
                reader.cache.rewind(min(reader.cache.length, len(before.tokens)))
            return before.extended(choose(residual(p_v, q_v)))
        told.accepted += 1
    last = drafted[-1]
    return last if last.has_ended else last.extended(choose(last.probabilities(logits_tv[-1], cuts)))


def _cut(sequence: _Sequence, most: int) -> _Sequence:
    """The first `most` tokens; the decoder is then ahead, which matters no more."""
    return sequence if len(sequence.tokens) <= most else _Sequence(sequence.decoder, sequence.tokens[:most])
