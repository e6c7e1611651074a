"""Aligning melodies: the limit is the best alignment, gradients are right, transpositions are found."""

import numpy as np
import torch

from etude.losses.alignment import likely_shifts, soft_alignment


def best(score: np.ndarray, gap: float) -> float:
    """Needleman and Wunsch's table, cell by cell."""
    n, m = score.shape
    table = np.zeros((n + 1, m + 1))
    table[:, 0], table[0] = -gap * np.arange(n + 1), -gap * np.arange(m + 1)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            matched = table[i - 1, j - 1] + score[i - 1, j - 1]
            table[i, j] = max(matched, table[i - 1, j] - gap, table[i, j - 1] - gap)
    return float(table[n, m])


def test_at_a_low_temperature_it_is_the_best_alignment_of_the_real_notes() -> None:
    score = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(0)).double()
    lengths, others = torch.tensor([7, 7, 3, 1, 5, 2]), torch.tensor([5, 2, 5, 1, 4, 5])
    found = soft_alignment(score, lengths, others, gap=0.4, temperature=1e-3)
    best_of_each = [best(s[:n, :m].numpy(), 0.4) for s, n, m in zip(score, lengths, others, strict=True)]
    expected = torch.tensor(best_of_each, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # at most T log(number of alignments)
    assert (found >= expected - 1e-9).all()


def test_a_single_pair_of_notes_is_the_sum_over_its_three_alignments() -> None:
    score = torch.tensor([[[0.7]]], dtype=torch.float64)
    found = soft_alignment(score, torch.tensor([1]), torch.tensor([1]), gap=0.2, temperature=0.5)
    expected = 0.5 * np.log(np.exp(0.7 / 0.5) + 2 * np.exp(-0.4 / 0.5))  # matched, or either one first
    assert abs(found.item() - expected) < 1e-12


def test_its_gradients_are_those_of_differences() -> None:
    score = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    gap, temperature = torch.tensor(0.3).double().requires_grad_(), torch.tensor(0.6).double().requires_grad_()
    lengths, others = torch.tensor([4, 2]), torch.tensor([3, 3])
    assert torch.autograd.gradcheck(
        lambda s, g, t: soft_alignment(s, lengths, others, gap=g, temperature=t), (score, gap, temperature)
    )


def test_a_transposition_is_found_by_the_histograms() -> None:
    one = torch.zeros(2, 40)
    one[0, 10:15], one[1, [8, 12, 13]] = torch.tensor([4.0, 1, 3, 1, 2]), torch.tensor([1.0, 5, 2])
    other = torch.stack([one[0].roll(3), one[1].roll(-4)])
    assert likely_shifts(one, other, most=5, count=1)[:, 0].tolist() == [3, -4]
    assert likely_shifts(one, one, most=5, count=2)[:, 0].tolist() == [0, 0]
