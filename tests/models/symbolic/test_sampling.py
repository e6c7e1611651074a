"""Sampling: the cuts on distributions worked by hand, the draws, and the loop under a grammar."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from etude.models.symbolic.sampling import distribution, draw, generate, uniforms
from etude.models.symbolic.transformer import Transformer

HALVES = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),  # the token that crosses 0.6 stays
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.8}, [5 / 9, 5 / 18, 1 / 6, 0]),
        ({"min_p": 0.25}, [5 / 9, 5 / 18, 1 / 6, 0]),  # at least 0.125
        ({"top_k": 3, "top_p": 0.8}, [2 / 3, 1 / 3, 0, 0]),  # 5/9 + 5/18 = 0.83 after the first cut
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),  # 0.4 * 5/9 > 1/6
        ({"temperature": 2.0, "min_p": 0.6}, [0.5**0.5 / (0.5**0.5 + 0.5), 0.5 / (0.5**0.5 + 0.5), 0, 0]),
    ],
)
def test_cuts_compose_in_order(settings, expected):
    torch.testing.assert_close(distribution(HALVES, **settings), torch.tensor([expected], dtype=torch.float64), atol=1e-7, rtol=0)


def test_rows_are_cut_independently_of_the_order_of_tokens():
    rows = torch.cat((HALVES, HALVES.flip(1)))
    probabilities = distribution(rows, top_p=0.8, min_p=0.1)
    torch.testing.assert_close(probabilities[0], probabilities[1].flip(0))


def test_draw_takes_the_token_at_which_the_cumulative_passes():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).expand(4, 4)
    assert draw(probabilities, torch.tensor([0.0, 0.49, 0.5, 0.999999])).tolist() == [1, 1, 3, 3]


def test_draws_have_the_distribution():
    numbers = uniforms(1, 20_000, generator=torch.Generator().manual_seed(0))[0]
    counts = torch.bincount(draw(HALVES.exp().expand(20_000, 4), numbers), minlength=4) / 20_000
    torch.testing.assert_close(counts, HALVES.exp()[0], atol=0.015, rtol=0)


def test_a_rows_numbers_do_not_depend_on_the_batch_or_the_length():
    few, many = (uniforms(b, s, generator=torch.Generator().manual_seed(4)) for b, s in ((2, 5), (40, 300)))
    assert torch.equal(few, many[:2, :5])
    assert not torch.equal(many[0], many[1])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"min_p": 1.5}, "min_p=1.5"),
    ],
)
def test_arguments_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        distribution(HALVES, **settings)


class UpAndDown:
    """A grammar for the tests: ids 3.. alternate with ids below 7 and from 7; EOS=2 after `length` tokens."""

    def __init__(self, batch: int, lengths: list[int]) -> None:
        self.lengths, self.counts = np.array(lengths), np.zeros(batch, dtype=int)
        self.last = np.zeros(batch, dtype=int)
        self.finished = np.zeros(batch, dtype=bool)

    def push(self, ids_b: np.ndarray) -> None:
        self.counts += ~self.finished
        self.last = np.where(self.finished, self.last, ids_b)
        self.finished = self.finished | (ids_b == 2)

    def allowed(self) -> np.ndarray:
        mask = np.zeros((len(self.counts), 11), dtype=bool)
        mask[self.last >= 7, 3:7] = True
        mask[self.last < 7, 7:] = True
        mask[self.counts >= self.lengths] = np.arange(11) == 2
        mask[self.finished] = False
        return mask

    def features(self) -> dict[str, np.ndarray]:
        return {"half": (self.last >= 7).astype(np.int64)}


def _model(**changes) -> Transformer:
    torch.manual_seed(0)
    return Transformer(**({"vocab_size": 11, "dim": 32, "num_layers": 2, "num_heads": 2} | changes)).eval()


def test_sequences_follow_the_grammar_and_end_with_eos():
    lengths = [4, 9, 30]
    steps: list[int] = []
    rows = generate(
        _model(feature_sizes={"half": 2}),
        torch.tensor([[1, 8]] * 3),
        decoder=UpAndDown(3, lengths),
        max_new_tokens=20,
        generator=torch.Generator().manual_seed(0),
        on_step=steps.append,
    )
    assert [len(row) for row in rows] == [5, 10, 22] and steps == list(range(1, 21))
    for row, ended in zip(rows, (True, True, False), strict=True):
        body = row[1:-1] if ended else row[1:]
        assert row[:2] == [1, 8] and (row[-1] == 2) == ended
        assert all((a >= 7) != (b >= 7) for a, b in pairwise(body))


def test_a_seed_gives_the_same_rows_in_a_batch_of_any_size():
    model = _model()

    def run(batch: int, seed: int) -> list[list[int]]:
        return generate(
            model,
            torch.ones(batch, 1, dtype=torch.int64),
            decoder=None,
            max_new_tokens=12,
            generator=torch.Generator().manual_seed(seed),
            temperature=1.3,
        )

    assert run(5, 0) == run(5, 0) and run(5, 0)[:2] == run(2, 0) and run(5, 0) != run(5, 1)


def test_greedy_sampling_is_the_argmax_of_the_full_forward():
    model = _model()
    (row,) = generate(model, torch.tensor([[1]]), decoder=None, max_new_tokens=10, temperature=0.0, generator=torch.Generator())
    for time in range(1, len(row)):
        assert row[time] == model(torch.tensor([row[:time]]))[0, -1].argmax().item()


def test_training_mode_is_restored_and_dropout_is_off_while_sampling():
    model = _model(dropout=0.5).train()

    def run() -> list[list[int]]:
        return generate(model, torch.tensor([[1]]), decoder=None, max_new_tokens=8, generator=torch.Generator().manual_seed(0))

    assert run() == run() and model.training


def test_a_grammar_without_a_way_on_is_an_error():
    decoder = UpAndDown(1, [5])
    decoder.allowed = lambda: np.zeros((1, 11), dtype=bool)
    with pytest.raises(ValueError, match="decoder forbids every token in rows"):
        generate(
            _model(feature_sizes={"half": 2}),
            torch.tensor([[1]]),
            decoder=decoder,
            max_new_tokens=3,
            generator=torch.Generator(),
        )
