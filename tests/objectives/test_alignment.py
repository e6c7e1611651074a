"""Alignment as an algorithm of episodes: transposing and padding change nothing; the encoder counts as its weight says."""

import pytest
import torch
from torch import Tensor

from etude.losses.episodes import cosines
from etude.objectives.alignment import Alignment

DIM, NOTES = 4, 12


def melodies(count: int, *, seed: int = 0) -> Tensor:
    """Random melodies, [n, 2, k], of 5 to 10 notes."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.stack([torch.full((count, NOTES), -1.0), torch.zeros(count, NOTES)], 1)
    for piece in found:
        length = int(torch.randint(5, 11, (), generator=generator))
        piece[0, :length] = torch.randint(55, 75, (length,), generator=generator).float()
        piece[1, :length] = torch.randint(-2, 2, (length,), generator=generator).float()
    return found


def rows(vectors: Tensor, found: Tensor) -> Tensor:
    return torch.cat([vectors, found.flatten(1)], 1)


def test_transposed_and_slower_melodies_are_the_same() -> None:
    algorithm, support, query = Alignment(dim=DIM, notes=NOTES), melodies(4), melodies(3, seed=1)
    changed = query.clone()
    changed[:, 0] += 5 * (query[:, 0] >= 0)
    changed[:, 1] += 1.0 * (query[:, 0] >= 0)
    zeros, way = (lambda n: torch.zeros(n, DIM)), torch.arange(4)
    logits = algorithm.logits(rows(zeros(4), support), way, rows(zeros(3), query), ways=4)
    again = algorithm.logits(rows(zeros(4), support), way, rows(zeros(3), changed), ways=4)
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-5)
    itself = support.clone()
    itself[:, 0] -= 7 * (support[:, 0] >= 0)
    assert algorithm.logits(rows(zeros(4), support), way, rows(zeros(4), itself), ways=4).argmax(1).tolist() == [0, 1, 2, 3]


def test_padding_and_other_pieces_change_nothing() -> None:
    algorithm, support, query = Alignment(dim=DIM, notes=NOTES), melodies(4), melodies(2, seed=1)
    both = algorithm.alignment(query, support[:2])
    alone = torch.cat([algorithm.alignment(query[i : i + 1], support[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-5)


def test_the_weight_of_the_encoder() -> None:
    support, query = melodies(4), melodies(3, seed=1)
    vectors = torch.randn(7, DIM, generator=torch.Generator().manual_seed(2))
    given = rows(vectors[:4], support), torch.arange(4), rows(vectors[4:], query)
    plain, with_it = (Alignment(dim=DIM, notes=NOTES, encoder_weight=w).logits(*given, ways=4) for w in (0.0, 3.0))
    expected = (plain + 3 * cosines(vectors[4:], vectors[:4])).log_softmax(1)
    torch.testing.assert_close(with_it.log_softmax(1), expected, rtol=0, atol=1e-5)


def test_training_and_forgetting_it() -> None:
    algorithm = Alignment(dim=DIM, notes=NOTES)
    first = {name: value.clone() for name, value in algorithm.state_dict().items()}
    given = rows(torch.randn(4, DIM), melodies(4)), torch.arange(4), rows(torch.randn(4, DIM), melodies(4, seed=1))
    torch.nn.functional.cross_entropy(algorithm.logits(*given, ways=4), torch.arange(4)).backward()
    for parameter in algorithm.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0
        parameter.data += 1
    algorithm.reset_parameters()
    assert all(torch.equal(first[name], value) for name, value in algorithm.state_dict().items())
    with pytest.raises(ValueError, match=r"algorithm\.notes=1 must be at least 2"):
        Alignment(dim=DIM, notes=1)
