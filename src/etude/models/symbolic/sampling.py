"""Autoregressive sampling of token sequences in batches, each continuing a prompt.

Shapes: b batch, t time, v vocabulary, s steps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

PAD = 0  # input of rows that have ended; never part of the result


class Decoder(Protocol):
    """Follows a batch of sequences token by token and says which tokens the tokenizer's grammar allows next."""

    @property
    def finished(self) -> np.ndarray:
        """Which rows have ended, bool [b]."""

    def push(self, ids_b: np.ndarray) -> None:
        """Takes the next token of each row; rows that have ended ignore theirs."""

    def allowed(self) -> np.ndarray:
        """Returns which tokens may come next, bool [b, v]."""

    def features(self) -> dict[str, np.ndarray]:
        """Returns each feature of the latest token, int [b]."""


class ForkingDecoder(Decoder, Protocol):
    """A decoder whose rows can be copied, for searches."""

    def select(self, rows: Sequence[int]) -> None:
        """Continues with copies of these rows, as many as there are, in this order."""


def distribution(
    logits_bv: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Returns the probabilities to sample from: softmax(logits / temperature), truncated by top-k, top-p and min-p.

    They are applied in this order, renormalising after each: top-k keeps the k most probable tokens (and ties with the k-th),
    top-p the fewest tokens whose probabilities add up to top_p, min-p those with at least min_p times the largest probability.
    The most probable token is always kept.

    Args:
        logits_bv: logits [b, v]; -inf for a forbidden token.
        temperature: at least 0; 0 takes the most probable token.
        top_k: at least 1; None for no truncation.
        top_p: in (0, 1]; 1 for no truncation.
        min_p: in [0, 1]; 0 for no truncation.

    Returns:
        float64 [b, v], each row sums to 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p).
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = logits_bv.double()
    if temperature == 0.0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    if temperature != 1.0:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1.0:
        ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ranked)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if min_p > 0.0:
        floor = min_p * probabilities.max(-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def check_sampling(*, temperature: float, top_k: int | None, top_p: float, min_p: float) -> None:
    """Raises a ValueError that names the first sampling argument that is out of its range."""
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be finite and at least 0; 1 samples the model as it is")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1; use null for no cut")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]; use 1 for no cut")
    if not 0.0 <= min_p <= 1.0:
        raise ValueError(f"min_p={min_p} must lie in [0, 1]; use 0 for no cut")


def draw(probabilities_bv: Tensor, uniform_b: Tensor) -> Tensor:
    """Samples a token of each row, int64 [b]: the one at which the cumulative probability passes the number in [0, 1)."""
    cumulative = probabilities_bv.double().cumsum(-1)
    threshold = uniform_b.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def uniforms(batch: int, steps: int, *, generator: torch.Generator) -> Tensor:
    """Returns random numbers in [0, 1) for each row and step, float32 [b, s] on the CPU.

    Each row has its own random generator, seeded from `generator`: the numbers of row i depend on the generator's state and on i,
    not on the number of rows or steps.
    """
    seeds = [int(torch.randint(2**62, (), generator=generator)) for _ in range(batch)]
    return torch.stack([torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompt_bt: Tensor,
    *,
    decoder: Decoder | None,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    generator: torch.Generator,
    num_prompts: int = 1,
    padding_b: Tensor | None = None,
    positions_t: Tensor | None = None,
    penalties: Callable[[], np.ndarray] | None = None,
    on_step: Callable[[int], Any] | None = None,
    on_tokens: Callable[[np.ndarray], Any] | None = None,
) -> list[list[int]]:
    """Continues every prompt until the decoder says that the piece has ended, or for max_new_tokens.

    The random numbers of row i of a prompt depend only on the generator's state and on i (see `uniforms`). So its tokens are the
    same in a batch of any size and beside any other prompts, up to rounding in the model's matrix products.

    Args:
        model: has `new_cache` and takes `features` and `cache`, as Transformer does; in any precision.
        prompt_bt: [b, t] int64, t >= 1, each row begins with BOS behind its padding.
        decoder: a new decoder for b rows, which allows only decodable sequences and supplies the features. None for no
            restriction, for a model without features.
        max_new_tokens: at least 1.
        temperature, top_k, top_p, min_p: see `distribution`; forbidden tokens are removed first.
        generator: random generator on the CPU.
        num_prompts: how many prompts there are; the rows of each follow one another, and there are equally many of each.
        padding_b: how many PAD tokens are in front of each row, int64 [b]; the model must be a Transformer. None for none.
        positions_t: the position of each token of the prompt, int64 [t], and of the first one behind it, [t + 1]; sampled tokens
            count on from there. None to count from 0.
        penalties: returns what is subtracted from the logits before each draw, [b, v].
        on_step: called after each step with the number of tokens sampled so far.
        on_tokens: called after each step with the sampled tokens, int64 [b]; PAD for rows that have ended.

    Returns:
        The prompt and continuation of each row, with EOS if it was reached.

    Raises:
        ValueError: an argument is out of its range, or the decoder forbids every token of an unfinished row.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    batch, prompt_len = prompt_bt.shape
    if max_new_tokens < 1 or prompt_len < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and the prompt's length {prompt_len} must be at least 1; begin the prompt with BOS"
        )
    device = next(model.parameters()).device
    noise_sb = uniforms(batch // num_prompts, max_new_tokens, generator=generator).repeat(num_prompts, 1).T
    was_training = model.training
    model.eval()
    try:
        cache = cast(Any, model).new_cache(batch, prompt_len + max_new_tokens)
        if padding_b is not None:
            cache.pad(padding_b)
        tokens, features = prompt_bt, prompt_features(decoder, prompt_bt)
        made: list[Tensor] = []
        finished = np.zeros(batch, dtype=bool) if decoder is None else np.asarray(decoder.finished)
        while len(made) < max_new_tokens and not finished.all():
            where = {} if positions_t is None else {"positions_bt": _positions(positions_t, tokens, len(made)).to(device)}
            logits_btv = model(tokens.to(device), features=to_device(features, device), cache=cache, **where)
            logits_bv = logits_btv[:, -1].float().cpu()
            if decoder is not None:
                logits_bv = forbid(logits_bv, decoder.allowed(), finished)
            if penalties is not None:
                logits_bv = logits_bv - torch.from_numpy(penalties())
            probabilities = distribution(logits_bv, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
            next_b = draw(probabilities, noise_sb[len(made)])
            if finished.any():
                next_b[torch.from_numpy(finished)] = PAD
            made.append(next_b)
            tokens = next_b[:, None]
            if decoder is not None:
                decoder.push(next_b.numpy())
                features = {name: values[:, None] for name, values in decoder.features().items()}
                finished = np.array(decoder.finished)
            if on_step is not None:
                on_step(len(made))
            if on_tokens is not None:
                on_tokens(next_b.numpy())
    finally:
        model.train(was_training)
    return unpadded(prompt_bt, made, decoder, [0] * batch if padding_b is None else padding_b.tolist())


def _positions(positions_t: Tensor, tokens_bt: Tensor, made: int) -> Tensor:
    """The positions of the prompt [b, t], or once `made` tokens are sampled, of the last of them, the same in all rows [1, 1]."""
    return positions_t[:-1].expand(tokens_bt.shape) if made == 0 else positions_t[-1:, None] + made - 1


def prompt_features(decoder: Decoder | None, prompt_bt: Tensor) -> dict[str, np.ndarray]:
    """Gives a decoder the prompt; returns its features, int [b, t] each."""
    if decoder is None:
        return {}
    steps = []
    for ids_b in prompt_bt.cpu().numpy().T:
        decoder.push(ids_b)
        steps.append(decoder.features())
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


def to_device(features: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Returns features as tensors."""
    return {name: torch.as_tensor(values, dtype=torch.int64, device=device) for name, values in features.items()}


def forbid(logits_bv: Tensor, allowed_bv: np.ndarray, finished_b: np.ndarray) -> Tensor:
    """Returns logits with -inf for forbidden tokens. Raises: ValueError if all are, in a row that has not ended."""
    stuck = ~allowed_bv.any(axis=1) & ~finished_b
    if stuck.any():
        raise ValueError(
            f"decoder forbids every token in rows {np.flatnonzero(stuck).tolist()}, which have not ended; "
            "give prompts that the tokenizer can complete"
        )
    return logits_bv.masked_fill(torch.from_numpy(~allowed_bv & ~finished_b[:, None]), -torch.inf)


def unpadded(prompt_bt: Tensor, made: list[Tensor], decoder: Decoder | None, padding: list[int]) -> list[list[int]]:
    """Returns the tokens of each row without padding in front and after its end."""
    rows = torch.cat((prompt_bt.cpu(), *(next_b[:, None] for next_b in made)), dim=1).tolist()
    for row in rows if decoder is not None else ():  # remove the padding after an early end
        while len(row) > prompt_bt.shape[1] and row[-1] == PAD:
            row.pop()
    return [row[first:] for row, first in zip(rows, padding, strict=True)]
