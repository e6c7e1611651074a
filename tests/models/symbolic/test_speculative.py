"""Speculative decoding has exactly the distribution of the large model: all its choices are played through."""

import copy
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.models.symbolic.sampling import distribution, generate
from etude.models.symbolic.speculative import Speculation, random_choice, residual, speculative_sample
from etude.models.symbolic.transformer import Transformer
from tests.models.symbolic.test_searches import EOS, VOCAB, Few, every

CASES: list[tuple[int, dict[str, Any]]] = [  # drafted tokens, and cuts of the distributions
    (1, {}), (2, {"temperature": 0.7, "top_k": 3}), (2, {"top_p": 0.8, "min_p": 0.1}),
]  # fmt: skip


SHORT = Few(1, least=1, most=2)


class Forking(Few):
    """The grammar with copies."""

    def fork(self) -> "Forking":
        return copy.deepcopy(self)


def network(seed: int, *, layers: int, tied: bool = True) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(vocab_size=VOCAB, dim=16, num_layers=layers, num_heads=2, tie_embeddings=tied).eval()
    with torch.no_grad():
        model.unembedding.weight *= 12  # far from uniform
    return model


@pytest.fixture(scope="module")
def models() -> tuple[Transformer, Transformer]:
    return network(1, layers=2), network(5, layers=1)


def probability(model: Transformer, sequence: tuple[int, ...], **cuts: Any) -> float:
    """Of a sequence behind BOS under the model, restricted by the grammar and the cuts."""
    with torch.inference_mode():
        logits = model(torch.tensor([[1, *sequence]]))[0]
    total = 1.0
    for place, token in enumerate(sequence):
        masked = logits[place].masked_fill(torch.from_numpy(~SHORT.after(list(sequence[:place]))), -torch.inf)
        total *= distribution(masked[None], **cuts)[0, token].item()
    return total


class Played:
    """Makes choices as it is told, then the first possible one, and remembers which others there were."""

    def __init__(self, told: list[int]) -> None:
        self.told, self.made, self.chance = told, list[int](), 1.0
        self.others: list[list[int]] = []

    def __call__(self, probabilities: Tensor) -> int:
        possible = [i for i, p in enumerate(probabilities.tolist()) if p > 0]
        choice = self.told[len(self.made)] if len(self.made) < len(self.told) else possible[0]
        self.others.append([i for i in possible if i > choice])
        self.made.append(choice)
        self.chance *= probabilities[choice].item() / probabilities.sum().item()
        return choice


def outcomes(model: Transformer, draft: Transformer, *, length: int, **cuts: Any) -> dict[tuple[int, ...], float]:
    """The exact probability of each sequence, by playing all choices through."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    waiting: list[list[int]] = [[]]
    while waiting:
        told = waiting.pop()
        played = Played(told)
        row = speculative_sample(
            model,
            draft,
            torch.tensor([[1]]),
            decoder=Forking(1, least=1, most=2),
            max_new_tokens=3,
            draft_length=length,
            choose=played,
            **cuts,
        )
        found[tuple(row[1:])] += played.chance
        for place in range(len(told), len(played.made)):
            waiting += [[*played.made[:place], other] for other in played.others[place]]
    return dict(found)


@pytest.mark.parametrize(("length", "cuts"), CASES, ids=["plain", "temperature and top-k", "top-p and min-p"])
def test_every_sequence_has_the_probability_of_the_large_model(
    models: tuple[Transformer, Transformer], length: int, cuts: dict[str, Any]
) -> None:
    found = outcomes(*models, length=length, **cuts)
    assert math.isclose(sum(found.values()), 1, rel_tol=1e-9)
    expected = {s: probability(models[0], s, **cuts) for s in every(SHORT)}
    for sequence, chance in expected.items():
        assert found.get(sequence, 0.0) == pytest.approx(chance, abs=1e-6), sequence


def test_one_token_has_exactly_the_distribution_whatever_is_drafted() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        p, q = (torch.rand(9, dtype=torch.float64, generator=generator).pow(3) for _ in range(2))
        p[:3], q[2:5] = 0.0, 0.0
        p, q = p / p.sum(), q / q.sum()
        accepted = torch.minimum(p, q)
        torch.testing.assert_close(accepted + (1 - accepted.sum()) * residual(p, q), p, atol=1e-15, rtol=0)


def test_a_draft_that_is_the_model_itself_is_always_accepted(models: tuple[Transformer, Transformer]) -> None:
    told, steps, tokens = Speculation(), list[int](), list[int]()
    row = speculative_sample(
        models[0], models[0], torch.tensor([[1]]), decoder=Forking(1, least=40, most=40), max_new_tokens=30, draft_length=4,
        choose=random_choice(torch.Generator().manual_seed(0)), told=told, on_step=steps.append,
        on_tokens=lambda ids: tokens.append(int(ids[0])), temperature=0.8,
    )  # fmt: skip
    assert told.accepted == told.drafted == 24 and len(row) == 31
    assert steps == list(range(1, 31)) and tokens == row[1:]


def test_greedy_decoding_is_that_of_the_large_model(models: tuple[Transformer, Transformer]) -> None:
    expected = generate(
        models[0], torch.tensor([[1, 4]]), decoder=Few(1, least=20, most=20), max_new_tokens=30, temperature=0.0,
        generator=torch.Generator(),
    )[0]  # fmt: skip
    told = Speculation()
    found = speculative_sample(
        models[0], network(8, layers=1, tied=False), torch.tensor([[1, 4]]), decoder=Forking(1, least=20, most=20),
        max_new_tokens=30, draft_length=3, told=told, choose=random_choice(torch.Generator().manual_seed(0)), temperature=0.0,
    )  # fmt: skip
    assert found == expected and found[-1] == EOS and 0 < told.accepted < told.drafted
