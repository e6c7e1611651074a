"""Laws of stateless randomness."""

import numpy as np
import pytest

from etude.data.randomness import permute, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 4097])
def test_permute_is_a_permutation(size: int) -> None:
    where = permute(np.arange(size), size=size, seed=3, number=5)
    assert sorted(where.tolist()) == list(range(size))


def test_permute_in_parts_is_permute_of_the_whole() -> None:
    whole = permute(np.arange(1000), size=1000, seed=1, number=0)
    parts = [permute(np.arange(at, at + 100), size=1000, seed=1, number=0) for at in range(0, 1000, 100)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_passes_and_seeds_differ_and_neighbours_are_parted() -> None:
    one, two = (permute(np.arange(5000), size=5000, seed=0, number=number) for number in (0, 1))
    assert (one == two).mean() < 0.01
    assert (np.abs(np.diff(one)) == 1).mean() < 0.01
    assert abs(np.corrcoef(np.arange(5000), one)[0, 1]) < 0.05


def test_uniform_is_uniform_and_a_function_of_its_key() -> None:
    passes, pieces = np.zeros(20_000, int), np.arange(20_000)
    values = uniform(7, passes, pieces, 3)
    assert ((values >= 0) & (values < 1)).all()
    assert np.abs(values.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.03
    assert np.array_equal(values[40:50], uniform(7, passes[40:50], pieces[40:50], 3))
    assert not np.array_equal(values[:1], uniform(8, passes[:1], pieces[:1], 3))
