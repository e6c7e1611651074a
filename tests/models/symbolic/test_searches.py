"""Contrastive and beam search against their definitions, computed by brute force on a small vocabulary."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.models.symbolic.beam import beam_search
from etude.models.symbolic.contrastive import contrastive_search
from etude.models.symbolic.sampling import generate
from etude.models.symbolic.transformer import Transformer

EOS, VOCAB = 2, 7


class Few:
    """A grammar: body tokens 3 to 6, no token twice in a row; EOS after at least `least` tokens, and always after `most`."""

    def __init__(self, batch: int, *, least: int = 2, most: int = 4) -> None:
        self.least, self.most = least, most
        self.rows: list[list[int]] = [[] for _ in range(batch)]

    @property
    def finished(self) -> np.ndarray:
        return np.array([EOS in row for row in self.rows])

    def push(self, ids_b: Sequence[int] | np.ndarray) -> None:
        for row, token, mask in zip(self.rows, np.asarray(ids_b).tolist(), self.allowed(), strict=True):
            if token >= EOS:
                assert mask[token], "a forbidden token"
                row.append(token)

    def allowed(self) -> np.ndarray:
        return np.stack([self.after(row) for row in self.rows])

    def after(self, row: list[int]) -> np.ndarray:
        mask = np.zeros(VOCAB, dtype=bool)
        if EOS in row:
            mask[0] = True
            return mask
        mask[3:] = len(row) < self.most
        if row:
            mask[row[-1]] = False
        mask[EOS] = len(row) >= self.least
        return mask

    def features(self) -> dict[str, np.ndarray]:
        return {}

    def select(self, rows: Sequence[int]) -> None:
        self.rows = [list(self.rows[row]) for row in rows]


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(1)
    network = Transformer(vocab_size=VOCAB, dim=32, num_layers=2, num_heads=2).eval()
    with torch.no_grad():
        network.embedding.weight *= 10  # far from uniform
    return network


def log_p(model: Transformer, sequence: Sequence[int], grammar: Few) -> float:
    """Log-probability of a sequence behind BOS, among what the grammar allows."""
    with torch.inference_mode():
        logits = model(torch.tensor([[1, *sequence]]))[0].double()
    total = 0.0
    for place, token in enumerate(sequence):
        masked = logits[place].masked_fill(torch.from_numpy(~grammar.after(list(sequence[:place]))), -torch.inf)
        total += masked.log_softmax(-1)[token].item()
    return total


def every(grammar: Few) -> list[tuple[int, ...]]:
    """All sequences of the grammar."""
    found = []
    for length in range(grammar.least, grammar.most + 1):
        for body in itertools.product(range(3, VOCAB), repeat=length):
            if all(a != b for a, b in itertools.pairwise(body)):
                found.append((*body, EOS))
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_beam_that_holds_everything_finds_the_best_sequences_in_order(model: Transformer, length_penalty: float) -> None:
    beams = 4 * 3**3
    grammar = Few(beams)
    found = beam_search(model, torch.tensor([[1]]), decoder=grammar, max_new_tokens=5, beams=beams, length_penalty=length_penalty)
    scores = {s: log_p(model, s, Few(1)) / len(s) ** length_penalty for s in every(Few(1))}
    expected = sorted(scores, key=lambda s: -scores[s])
    assert [tuple(row[1:]) for row in found[:20]] == expected[:20]


def test_one_beam_is_greedy_and_the_best_beam_is_no_worse(model: Transformer) -> None:
    greedy = generate(
        model, torch.tensor([[1]]), decoder=Few(1), max_new_tokens=5, temperature=0.0, generator=torch.Generator()
    )[0]  # fmt: skip
    one, *_ = beam_search(model, torch.tensor([[1]]), decoder=Few(1), max_new_tokens=5, beams=1)
    four, *_ = beam_search(model, torch.tensor([[1]]), decoder=Few(4), max_new_tokens=5, beams=4, length_penalty=0.0)
    assert one == greedy
    assert log_p(model, four[1:], Few(1)) >= log_p(model, greedy[1:], Few(1))


def test_groups_without_diversity_are_alike_and_with_much_of_it_differ_in_every_step(model: Transformer) -> None:
    def run(diversity: float) -> list[list[int]]:
        return beam_search(
            model, torch.tensor([[1]]), decoder=Few(4, least=4), max_new_tokens=5, beams=4, groups=2, diversity=diversity
        )

    first, second, *_ = run(0.0)
    assert first == second
    first, second, *_ = run(1e6)
    assert all(a != b for a, b in zip(first[1:5], second[1:5], strict=True))
    alone = beam_search(model, torch.tensor([[1]]), decoder=Few(2, least=4), max_new_tokens=5, beams=2)
    assert first == alone[0]  # the first group avoids nothing


def test_sequences_that_reach_the_limit_count_as_they_are(model: Transformer) -> None:
    found = beam_search(model, torch.tensor([[1, 3]]), decoder=Few(3, most=9, least=9), max_new_tokens=3, beams=3)
    assert [len(row) for row in found] == [5, 5, 5] and len({tuple(row) for row in found}) == 3


def contrastive_by_hand(model: Transformer, prompt: list[int], *, top_k: int, alpha: float) -> list[int]:
    row, grammar = list(prompt), Few(1)
    while EOS not in row:
        with torch.inference_mode():
            logits = model(torch.tensor([row]))[0, -1].double()
        mask = grammar.after([token for token in row if token >= EOS])
        p = logits.masked_fill(torch.from_numpy(~mask), -torch.inf).softmax(-1)
        scores = {}
        for token in p.topk(min(top_k, int(mask.sum()))).indices.tolist():
            with torch.inference_mode():
                h = F.normalize(model.hidden(torch.tensor([[*row, token]]))[0], dim=-1)
            scores[token] = (1 - alpha) * p[token].item() - alpha * (h[:-1] @ h[-1]).max().item()
        row.append(max(scores, key=lambda token: scores[token]))
    return row


@pytest.mark.parametrize(("top_k", "alpha"), [(1, 0.6), (3, 0.0), (3, 0.6), (4, 0.9)])
def test_contrastive_search_is_its_formula(model: Transformer, top_k: int, alpha: float) -> None:
    prompts = [[1, 4], [1, 5, 3]]
    rows = torch.tensor([[0, 1, 4], [1, 5, 3]])
    found = contrastive_search(
        model, rows, decoder=Few(2 * top_k), max_new_tokens=6, top_k=top_k, alpha=alpha, padding_b=torch.tensor([1, 0])
    )
    assert found == [contrastive_by_hand(model, prompt, top_k=top_k, alpha=alpha) for prompt in prompts]


def test_alpha_makes_a_difference(model: Transformer) -> None:
    rows = [contrastive_by_hand(model, [1, 4], top_k=4, alpha=alpha) for alpha in (0.0, 0.9)]
    assert rows[0] != rows[1] and not math.isnan(log_p(model, rows[0][1:], Few(1)))
