"""Distances between sets against scipy and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from etude.metrics.sets import distributions as d


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_the_density_is_scipy_s(generator):
    values = generator.gamma(2.0, size=300)
    grid = np.linspace(-3, 15, 1000)
    assert d.density(values, grid=grid) == pytest.approx(stats.gaussian_kde(values)(grid), abs=2e-3)


def test_overlap_of_equal_and_of_distant_sets(generator):
    values = generator.normal(size=500)
    assert d.overlapping_area(values, values) == pytest.approx(1.0, abs=1e-3)
    assert d.kl_divergence(values, values) == pytest.approx(0.0, abs=1e-9)
    assert d.overlapping_area(values, values + 100) == pytest.approx(0.0, abs=1e-6)


def test_overlap_of_two_normals_has_its_closed_form(generator):
    first, second = generator.normal(size=40_000), generator.normal(1.0, 1.0, size=40_000)
    assert d.overlapping_area(first, second) == pytest.approx(2 * stats.norm.cdf(-0.5), abs=0.02)
    assert d.kl_divergence(first, second) == pytest.approx(0.5, abs=0.06)


def test_overlap_is_symmetric_and_of_no_unit(generator):
    first, second = generator.normal(size=60), generator.gamma(3.0, size=80)
    assert d.overlapping_area(first, second) == pytest.approx(d.overlapping_area(second, first))
    assert d.overlapping_area(1000 * first, 1000 * second) == pytest.approx(d.overlapping_area(first, second), abs=1e-6)


def test_constant_values_overlap_themselves():
    assert d.overlapping_area(np.zeros(5), np.zeros(7)) == pytest.approx(1.0, abs=1e-3)
    assert d.overlapping_area(np.full(5, 3.0), np.full(7, 4.0)) == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ValueError, match="second has 1 finite values"):
        d.overlapping_area(np.zeros(5), np.array([1.0, math.nan]))


def test_distances():
    points = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    assert d.intra_distances(points).tolist() == [5.0, 4.0, 3.0]
    assert d.inter_distances(points[:1], points).tolist() == [0.0, 5.0, 4.0]
    assert d.intra_distances(np.array([1.0, 4.0, 2.0])).tolist() == [3.0, 1.0, 2.0]


def test_samples_like_the_real_set_score_higher_than_others(generator):
    real, like, unlike = (generator.normal(mean, 1, size=(80, 3)) for mean in (0, 0, 2))
    near, far = d.set_overlap(like, real), d.set_overlap(unlike, real)
    assert near["oa"] > 0.9 > far["oa"]
    assert near["kld"] < 0.1 < far["kld"]


def test_histograms():
    assert d.histogram_kl(np.array([1, 0]), np.array([0, 1]), pseudocount=0.5) == pytest.approx(
        0.75 * math.log(3) - 0.25 * math.log(3)
    )
    assert d.histogram_kl(np.array([5, 3, 2]), np.array([5, 3, 2])) == 0.0
    assert d.histogram_overlap(np.array([1, 1, 0]), np.array([0, 5, 5])) == 0.5
    assert math.isnan(d.histogram_overlap(np.zeros(2), np.ones(2)))
    with pytest.raises(ValueError, match="over the same bins"):
        d.histogram_kl(np.ones(2), np.ones(3))
