"""Tables put the figures beside each other, and the plots can be drawn from them."""

import math

import numpy as np
import pytest

from etude.evaluation.controls import shuffled_control
from etude.metrics.scores import tables
from etude.report import plots
from tests.metrics.scores.scores import build


def tune(seed):
    """Sixteen bars of a stepwise melody over a bass, in C major."""
    generator = np.random.default_rng(seed)
    scale = [60, 62, 64, 65, 67, 69, 71, 72]
    steps = np.clip(np.cumsum(generator.integers(-1, 2, size=64)) + 4, 0, 7)
    melody = [(12 * i, 12, scale[step]) for i, step in enumerate(steps)]
    return build([melody, [(48 * bar, 48, 48) for bar in range(16)]])


REAL = [tune(seed) for seed in range(8)]
GROUPS = {"samples": [tune(seed) for seed in range(20, 26)], "real": REAL, "shuffled": shuffled_control(REAL, seed=1)}


def test_mean_and_deviation_are_over_the_pieces_that_define_a_metric():
    rows = {row["metric"]: row for row in tables.evaluate_scores(REAL)}
    assert list(rows) == list(tables.PIECE_METRICS)
    values = [tables.piece_metrics(score)["polyphony"] for score in REAL]
    assert rows["polyphony"]["mean"] == pytest.approx(np.mean(values))
    assert rows["polyphony"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert rows["polyphony"]["pieces"] == 8
    assert rows["drum pattern"]["pieces"] == 0
    assert math.isnan(rows["drum pattern"]["mean"])
    assert rows["out of key"]["mean"] == 0.0
    assert math.isnan(tables.evaluate_scores(REAL[:1])[0]["std"])


def test_a_piece_without_notes_is_measured_too():
    metrics = tables.piece_metrics(build([[]]))
    assert set(metrics) == set(tables.PIECE_METRICS)
    assert metrics["pitches used"] == 0


def test_samples_like_the_real_music_stand_nearer_than_shuffled():
    rows = {row["metric"]: row for row in tables.compare_scores(GROUPS)}
    groove, range_ = rows["groove consistency"], rows["pitch range"]
    assert groove["real mean"] > 0.9 > groove["shuffled mean"]
    assert groove["samples OA"] > groove["shuffled OA"]
    assert range_["real mean"] == range_["shuffled mean"]  # shuffling moves no pitch
    assert "real OA" not in groove
    assert math.isnan(rows["drum pattern"]["samples OA"])


def test_histograms_beside_the_real_ones():
    rows, pooled = tables.compare_histograms(GROUPS)
    by_name = {row["histogram"]: row for row in rows}
    assert by_name["onset in the beat"]["samples KL"] < 0.01 < by_name["onset in the beat"]["shuffled KL"]
    assert by_name["duration"]["shuffled overlap"] == pytest.approx(1.0)
    for name, (_, labels) in tables.HISTOGRAMS.items():
        assert all(len(counts) == len(labels) for counts in pooled[name].values()), name


def test_samples_without_intervals_or_without_notes_have_no_overlap():
    for silent in (build([[]]), build([[(0, 12, 60)]])):  # nothing, and one note
        rows, _ = tables.compare_histograms({"samples": [silent, silent], "real": REAL})
        found = {row["histogram"]: row for row in rows}["melodic interval"]
        assert math.isnan(found["samples OA"])
        tables.compare_scores({"samples": [silent, silent], "real": REAL})


def test_refusals():
    with pytest.raises(ValueError, match="choose one of \\['a'\\]"):
        tables.compare_scores({"a": REAL})
    with pytest.raises(ValueError, match="choose one of \\['a'\\]"):
        tables.compare_histograms({"a": REAL})
    with pytest.raises(ValueError, match="real holds no scores"):
        tables.compare_scores({"real": []})
    with pytest.raises(ValueError, match="scores holds no scores"):
        tables.evaluate_scores([])


def test_plots_are_pictures():
    rows = tables.compare_scores(GROUPS)
    _, pooled = tables.compare_histograms(GROUPS)
    labels = {name: labels for name, (_, labels) in tables.HISTOGRAMS.items()}
    for picture in (
        plots.metric_bars(rows, groups=list(GROUPS), title="Metrics"),
        plots.histogram_panels(pooled, labels=labels, title="Histograms"),
    ):
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000
    assert plots.metric_bars(rows[:2], groups=["real"]) == plots.metric_bars(rows[:2], groups=["real"])
    with pytest.raises(ValueError, match="no metric with a finite mean"):
        plots.metric_bars([{"metric": "x", "unit": "", "real mean": math.nan, "real std": math.nan}], groups=["real"])
