"""Tables of all musical metrics: of one set of pieces, or of several sets (samples, real, shuffled) compared."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from symusic import Score

from etude.metrics.scores import harmony, pitch, rhythm, similarity, tonality
from etude.metrics.scores.notes import NoteArray
from etude.metrics.sets import distributions
from etude.music.theory import Key, estimate_key

GRID = 12  # ticks per beat for the metrics of positions in the bar or beat, see `rhythm`
Histogram = NDArray[np.int64]

PIECE_METRICS: dict[str, tuple[Callable[[NoteArray, NoteArray, Key], float], str]] = {
    # name: (function of the notes, the notes at 12 ticks per beat and the estimated key; unit or meaning)
    "pitches used": (lambda notes, grid, key: pitch.n_pitches_used(notes), "different pitches"),
    "pitch classes used": (lambda notes, grid, key: pitch.n_pitch_classes_used(notes), "of 12"),
    "pitch range": (lambda notes, grid, key: pitch.pitch_range(notes), "semitones"),
    "pitch entropy": (lambda notes, grid, key: pitch.pitch_entropy(notes), "bits"),
    "pitch-class entropy": (lambda notes, grid, key: pitch.pitch_class_entropy(notes), "bits, at most 3.58"),
    "scale consistency": (lambda notes, grid, key: pitch.scale_consistency(notes), "share of notes in the best scale"),
    "out of key": (lambda notes, grid, key: tonality.out_of_key_share(notes, key=key), "share of notes"),
    "key clarity": (lambda notes, grid, key: tonality.key_clarity(notes), "correlation with the best key profile"),
    "tonic ending": (
        lambda notes, grid, key: float(tonality.ends_on_tonic_triad(notes, key=key)),
        "share of pieces that end on a tonic triad",
    ),
    "stepwise motion": (lambda notes, grid, key: pitch.step_share(notes), "share of intervals of 0-2 semitones"),
    "polyphony": (lambda notes, grid, key: harmony.polyphony(notes), "pitches at a time"),
    "polyphony rate": (lambda notes, grid, key: harmony.polyphony_rate(notes), "share of time with 3 or more pitches"),
    "dissonance": (lambda notes, grid, key: harmony.dissonance_share(notes), "share of simultaneous pairs, by time"),
    "parallel fifths": (lambda notes, grid, key: harmony.parallel_share(notes, interval=7), "share of joint moves"),
    "parallel octaves": (lambda notes, grid, key: harmony.parallel_share(notes, interval=0), "share of joint moves"),
    "notes per beat": (lambda notes, grid, key: rhythm.notes_per_beat(notes), "onsets in a quarter note"),
    "on the beat": (lambda notes, grid, key: rhythm.on_beat_share(grid), "share of onsets"),
    "empty beats": (lambda notes, grid, key: rhythm.empty_beat_rate(grid), "share of beats"),
    "empty bars": (lambda notes, grid, key: rhythm.empty_bar_rate(grid), "share of bars"),
    "groove consistency": (lambda notes, grid, key: rhythm.groove_consistency(grid), "bar to bar, 12 positions a beat"),
    "drum pattern": (lambda notes, grid, key: rhythm.drum_pattern_consistency(grid), "share of drum onsets in pattern"),
    "repeated bars": (lambda notes, grid, key: similarity.repeated_bar_share(grid), "share of bars heard before"),
    "self-similarity": (lambda notes, grid, key: similarity.self_similarity(grid), "cosine to the most similar bar"),
}

HISTOGRAMS: dict[str, tuple[Callable[[NoteArray, NoteArray, Key], Histogram], tuple[str, ...]]] = {
    # name: (function as above, a label for every bin)
    "pitch class above the tonic": (
        lambda notes, grid, key: np.roll(pitch.pitch_class_histogram(notes), -key.tonic),
        ("1", "b2", "2", "b3", "3", "4", "#4", "5", "b6", "6", "b7", "7"),
    ),
    "melodic interval": (
        lambda notes, grid, key: pitch.interval_histogram(notes, largest=12),
        tuple(str(step) for step in range(-12, 13)),
    ),
    "onset in the beat": (lambda notes, grid, key: rhythm.onset_histogram(grid), tuple(str(i) for i in range(12))),
    "duration": (lambda notes, grid, key: rhythm.duration_histogram(notes), rhythm.DURATION_LABELS),
}


def piece_metrics(score: Score) -> dict[str, float]:
    """Every metric of `PIECE_METRICS` for one piece; NaN where it is not defined, as the drum pattern without drums."""
    notes, grid, key = _read(score)
    return {name: float(function(notes, grid, key)) for name, (function, _) in PIECE_METRICS.items()}


def piece_histograms(score: Score) -> dict[str, Histogram]:
    """Every histogram of `HISTOGRAMS` for one piece."""
    notes, grid, key = _read(score)
    return {name: function(notes, grid, key) for name, (function, _) in HISTOGRAMS.items()}


def _read(score: Score) -> tuple[NoteArray, NoteArray, Key]:
    notes = NoteArray.from_score(score)
    return notes, notes.resample(GRID), estimate_key(score)


def evaluate_scores(scores: Sequence[Score]) -> list[dict[str, object]]:
    """Mean and standard deviation over pieces of every metric.

    Returns:
        Rows of {"metric", "mean", "std" (n - 1), "pieces" (those for which the metric is defined), "unit"}. The
        mean is NaN if the metric is defined for no piece, the deviation if it is for fewer than two.

    Raises:
        ValueError: no scores.
    """
    values = _columns({"scores": scores})["scores"]
    return [{"metric": name, **_moments(values[name]), "unit": unit} for name, (_, unit) in PIECE_METRICS.items()]


def compare_scores(groups: Mapping[str, Sequence[Score]], *, reference: str = "real") -> list[dict[str, object]]:
    """Compares several sets of pieces, such as samples, real and shuffled music, in every metric.

    Args:
        groups: name -> scores, none empty.
        reference: the group of real music, with which the others are compared by overlapping area.

    Returns:
        Rows of {"metric", "unit"} and for every group "<group> mean", "<group> std"; for every group but the reference
        "<group> OA", the overlapping area of Yang & Lerch (2020): near 1 if the group is like the reference. It is
        NaN if the metric is defined for fewer than three pieces of the reference or for none of the group.

    Raises:
        ValueError: an unknown reference or an empty group.
    """
    if reference not in groups:
        raise ValueError(f"reference={reference!r} is not a group; choose one of {sorted(groups)}")
    values = _columns(groups)
    rows: list[dict[str, object]] = []
    for name, (_, unit) in PIECE_METRICS.items():
        row: dict[str, object] = {"metric": name, "unit": unit}
        real = values[reference][name]
        for group in groups:
            moments = _moments(values[group][name])
            row |= {f"{group} mean": moments["mean"], f"{group} std": moments["std"]}
            if group != reference:
                row[f"{group} OA"] = _overlap(values[group][name], real)
        rows.append(row)
    return rows


def compare_histograms(
    groups: Mapping[str, Sequence[Score]], *, reference: str = "real"
) -> tuple[list[dict[str, object]], dict[str, dict[str, Histogram]]]:
    """Compares several sets of pieces in every histogram with the reference set.

    Returns:
        Rows of {"histogram"} and for every group but the reference "<group> KL" (nats, pooled histograms, group to
        reference), "<group> overlap" (shared mass, 0..1) and "<group> OA" (Yang & Lerch, distances between the pieces'
        normalised histograms); and the pooled counts, histogram -> group -> int64 [bins], for plots.

    Raises:
        ValueError: an unknown reference or an empty group.
    """
    if reference not in groups:
        raise ValueError(f"reference={reference!r} is not a group; choose one of {sorted(groups)}")
    pieces = {
        group: _stacked([piece_histograms(score) for score in _not_empty(group, scores)]) for group, scores in groups.items()
    }
    pooled = {name: {group: pieces[group][name].sum(axis=0) for group in groups} for name in HISTOGRAMS}
    rows: list[dict[str, object]] = []
    for name in HISTOGRAMS:
        row: dict[str, object] = {"histogram": name}
        real = _normalised(pieces[reference][name])
        for group in groups:
            if group != reference:
                row |= {
                    f"{group} KL": distributions.histogram_kl(pooled[name][group], pooled[name][reference]),
                    f"{group} overlap": distributions.histogram_overlap(pooled[name][group], pooled[name][reference]),
                    f"{group} OA": _overlap(_normalised(pieces[group][name]), real),
                }
        rows.append(row)
    return rows, pooled


def _not_empty(group: str, scores: Sequence[Score]) -> Sequence[Score]:
    if len(scores) == 0:
        raise ValueError(f"{group} holds no scores; give at least one")
    return scores


def _columns(groups: Mapping[str, Sequence[Score]]) -> dict[str, dict[str, NDArray[np.float64]]]:
    found = {group: [piece_metrics(score) for score in _not_empty(group, scores)] for group, scores in groups.items()}
    return {
        group: {name: np.array([piece[name] for piece in pieces]) for name in PIECE_METRICS} for group, pieces in found.items()
    }


def _stacked(pieces: list[dict[str, Histogram]]) -> dict[str, Histogram]:
    return {name: np.stack([piece[name] for piece in pieces]) for name in pieces[0]}


def _normalised(counts: Histogram) -> NDArray[np.float64]:
    """Histograms [pieces, bins] that sum to 1; pieces without any count are left out."""
    counts = counts[counts.sum(axis=1) > 0]
    shares: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return shares


def _moments(values: NDArray[np.float64]) -> dict[str, float | int]:
    values = values[np.isfinite(values)]
    return {
        "mean": float(values.mean()) if len(values) else float("nan"),
        "std": float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
        "pieces": len(values),
    }


def _overlap(samples: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    samples, real = (x[np.isfinite(x).all(axis=tuple(range(1, x.ndim)))] for x in (samples, real))
    if len(real) < 3 or len(samples) == 0:
        return float("nan")
    return distributions.set_overlap(samples, real)["oa"]
