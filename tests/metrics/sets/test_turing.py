"""The musical Turing test: laws on music and noise, its parts against references."""

import numpy as np
import pytest
from scipy.optimize import minimize

from etude.evaluation.controls import shuffled_control
from etude.metrics.scores.dimensions import measure_features
from etude.metrics.sets.turing import _folds, logistic_regression, turing_test, wilson_interval
from tests.songs import song

PIECES = [song(seed) for seed in range(48)]
REAL = measure_features(PIECES).matrix


def test_real_music_is_not_told_from_real_music() -> None:
    inside, scores = 0, []
    for seed in range(12):
        rows = np.random.default_rng(seed).permutation(len(REAL))
        found = turing_test(REAL[rows[:16]], REAL[rows[16:]], seed=seed)
        inside += found.low <= 0.5 <= found.high
        scores.append(found.score)
    assert inside >= 10 and abs(np.mean(scores) - 0.5) < 0.08


def test_shuffled_music_is_told() -> None:
    shuffled = measure_features(shuffled_control(PIECES[:16])).matrix
    found = turing_test(shuffled, REAL[16:])
    assert found.score > 0.8 and found.low > 0.5


def test_the_score_grows_with_the_difference_and_its_interval_holds_it() -> None:
    draw = np.random.default_rng(0)
    real = draw.normal(size=(60, 5))
    scores = []
    for shift in (0.0, 1.0, 2.0, 6.0):
        found = turing_test(draw.normal(size=(40, 5)) + shift * np.eye(5)[0], real)
        assert 0 <= found.low <= found.score <= found.high <= 1
        scores.append(found.score)
    assert scores == sorted(scores) and scores[0] < 0.65 and scores[-1] > 0.97


def test_unequal_numbers_do_not_move_chance() -> None:
    draw = np.random.default_rng(1)
    scores = [turing_test(draw.normal(size=(10, 4)), draw.normal(size=(90, 4)), seed=s).score for s in range(20)]
    assert abs(np.mean(scores) - 0.5) < 0.07


def test_a_group_stays_in_one_fold_and_groups_are_spread() -> None:
    generated, real = np.arange(10), np.repeat(np.arange(5, 25), 3)
    fold = _folds([generated, real], 5, seed=0)
    both = np.concatenate([generated, real])
    assert all(len(set(fold[both == group])) == 1 for group in np.unique(both))
    assert np.bincount(fold[:10]).tolist() == [2] * 5


def test_copies_across_folds_would_be_known_but_groups_prevent_it() -> None:
    draw = np.random.default_rng(2)
    real, generated = draw.normal(size=(8, 30)), draw.normal(size=(40, 30))
    copies = np.repeat(real, 5, axis=0)
    loose = turing_test(generated, copies).score
    grouped = turing_test(generated, copies, real_groups=np.repeat(np.arange(100, 108), 5)).score
    assert loose > 0.8 and grouped < loose - 0.15


def test_undefined_and_constant_features_say_nothing() -> None:
    draw = np.random.default_rng(3)
    a, b = draw.normal(size=(20, 3)), draw.normal(size=(20, 3))
    a[:, 0] += 3
    plain = turing_test(a, b)
    empty = [np.concatenate([x, np.full((20, 1), np.nan), np.ones((20, 1))], axis=1) for x in (a, b)]
    assert turing_test(*empty) == plain
    a[3, 0] = np.nan
    assert np.isfinite(turing_test(a, b).score)


def test_logistic_regression_is_scipys_minimum() -> None:
    draw = np.random.default_rng(4)
    x, y = draw.normal(size=(30, 4)), (np.arange(30) < 10).astype(float)
    share = np.where(y > 0, 30 / 20, 30 / 40)

    def loss(w: np.ndarray) -> float:
        z = x @ w[1:] + w[0]
        return float((share * np.logaddexp(0, -(2 * y - 1) * z)).sum() + 0.7 * (w[1:] ** 2).sum() / 2)

    expected = minimize(loss, np.zeros(5), tol=1e-12).x
    np.testing.assert_allclose(logistic_regression(x, y, ridge=0.7), expected, atol=1e-4)


def test_separated_labels_give_finite_weights() -> None:
    x = np.concatenate([np.full((5, 1), -8.0), np.full((5, 1), 8.0)])
    weights = logistic_regression(x, np.repeat([0, 1], 5), ridge=1e-3)
    assert np.isfinite(weights).all() and weights[1] > 0


def test_wilson_interval_has_the_published_values() -> None:
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match=r"share is 1\.2"):
        wilson_interval(1.2, 10)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="1 groups, real 5"):
        turing_test(np.zeros((3, 2)), np.zeros((5, 2)), generated_groups=[1, 1, 1])
    with pytest.raises(ValueError, match="shapes"):
        turing_test(np.zeros((3, 2)), np.zeros((5, 3)))
