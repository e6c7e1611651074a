"""Complexity features of a piece in rhythm, harmony, melody and structure.

Every feature is finite, larger for a more complex piece and about 0 for the simplest, so that a curriculum can rank pieces
by it. Two features are therefore complements of usual measures: motif *novelty* is 1 minus repetition, and bar *novelty* is
1 minus self-similarity. Features depend on the score alone. Rhythm uses every track; melody and harmony leave out drums.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from symusic import Score

from etude.music.score import bar_ticks, num_notes
from etude.music.theory import MODES, Key, estimate_key, fifths_distance, key_correlations, scale_pitch_classes

GRID = 24  # steps per quarter: resolves 32nds (every 3rd step) and sextuplets (every 4th)
BEAT_GRID = 12  # steps per beat for syncopation: on a finer grid, the imprecise timing of a player would count as syncopation
KEY_WINDOW_BARS = 4
MAX_INTERVAL = 24  # semitones; larger intervals count as one class
MOTIF_INTERVALS = 3
BAR_SLICES = 16
MAX_SIMILARITY_BARS = 1024  # the self-similarity matrix grows with the square of the bars
CHORD_THRESHOLD = 1e-9


@dataclass(frozen=True)
class _Notes:
    """The notes of a score as columns, sorted by track and onset, and the bars of the piece."""

    track: np.ndarray  # [N]
    onset: np.ndarray  # [N] ticks
    end: np.ndarray  # [N] ticks
    pitch: np.ndarray  # [N]
    is_drum: np.ndarray  # [N] bool
    bars: np.ndarray  # [B] ticks at which bars start
    beat_ticks: np.ndarray  # [B] ticks of a beat in each bar: the denominator's note, three of them in compound metres
    ticks_per_quarter: int

    def bar_of(self, ticks: np.ndarray) -> np.ndarray:
        """Returns the index of the bar that contains each tick."""
        index: np.ndarray = np.searchsorted(self.bars, ticks, side="right") - 1
        return index


def complexity(score: Score) -> dict[str, float]:
    """Returns the complexity features of `score`, named 'rhythmic_*', 'harmonic_*', 'melodic_*' and 'structural_*'.

    Raises:
        ValueError: the score holds no notes.
    """
    if num_notes(score) == 0:
        raise ValueError("score holds no notes, so it has no complexity; leave it out")
    notes = _notes(score)
    key = estimate_key(score)
    features = {
        "rhythmic_syncopation": syncopation(notes),
        "rhythmic_onset_entropy": onset_entropy(notes),
        "rhythmic_tuplet_share": tuplet_share(notes),
        "rhythmic_metre_changes": metre_changes(score, len(notes.bars)),
        "harmonic_key_distance": key_distance(notes, key),
        "harmonic_chord_change_rate": chord_change_rate(notes),
        "harmonic_out_of_scale": out_of_scale(notes, key),
        **_melodic(notes),
        "structural_bar_novelty": bar_novelty(notes),
        "structural_length": float(np.log2(1 + len(notes.bars))),
    }
    return {name: float(value) for name, value in features.items()}


def _notes(score: Score) -> _Notes:
    columns: list[tuple[np.ndarray, ...]] = []
    for number, track in enumerate(score.tracks):
        table = track.notes.numpy()
        onset, pitch = table["time"].astype(np.int64), table["pitch"].astype(np.int64)
        end = onset + np.maximum(1, table["duration"])
        order = np.lexsort((-pitch, onset))
        columns.append((np.full(len(onset), number), onset[order], end[order], pitch[order], np.full(len(onset), track.is_drum)))
    bars = bar_ticks(score)
    quarter = score.ticks_per_quarter
    starts, beats = [0], [quarter]
    for mark in score.time_signatures:
        compound = 3 if mark.numerator > 3 and mark.numerator % 3 == 0 and mark.denominator >= 8 else 1
        starts.append(mark.time)
        beats.append(4 * quarter * compound // mark.denominator)
    beat_ticks = np.array(beats)[np.searchsorted(starts, bars, side="right") - 1]
    track, onset, end, pitch, is_drum = (np.concatenate(column) for column in zip(*columns, strict=True))
    return _Notes(track, onset, end, pitch, is_drum, bars, beat_ticks, quarter)


def syncopation(notes: _Notes) -> float:
    """Syncopation: the mean weighted note-to-beat distance over the onsets of each track; 0 if all are on beats.

    A note at x between the beats b1 and b2 = b1 + 1 has the distance 0 if x is on a beat, 2 / T if it ends after b2 but not
    after b2 + 1, and 1 / T otherwise, where T is the distance in beats to the nearer beat. Times are rounded to 1/12 beat.
    Only the longest note of a chord counts.

    Source: Gómez, Melvin, Rappaport & Toussaint 2005, "Mathematical measures of syncopation".
    """
    bar = notes.bar_of(notes.onset)
    beat, start = notes.beat_ticks[bar], notes.bars[bar]
    onset = np.round((notes.onset - start) * BEAT_GRID / beat).astype(np.int64)
    end = np.round((notes.end - start) * BEAT_GRID / beat).astype(np.int64)
    order = np.lexsort((-end, onset, bar, notes.track))
    kept = order[_first_of_runs(notes.track[order], bar[order], onset[order])]
    phase, length = onset[kept] % BEAT_GRID, (end - onset)[kept]
    to_beat = np.minimum(phase, BEAT_GRID - phase) / BEAT_GRID
    to_next = BEAT_GRID - phase
    crosses = (length > to_next) & (length <= to_next + BEAT_GRID)
    distance = np.divide(1.0 + crosses, to_beat, out=np.zeros(len(kept)), where=to_beat > 0)
    return float(distance.mean())


def onset_entropy(notes: _Notes) -> float:
    """Shannon entropy in bits of the onsets' positions in the bar, rounded to 1/24 quarter; a chord counts once per track.

    Source: Shannon 1948, H = -sum p log2 p, with p the relative frequencies of the positions.
    """
    bar = notes.bar_of(notes.onset)
    position = np.round((notes.onset - notes.bars[bar]) * GRID / notes.ticks_per_quarter).astype(np.int64)
    distinct = np.unique(np.stack([notes.track, notes.onset, position]), axis=1)[2]
    return _entropy(distinct)


def tuplet_share(notes: _Notes) -> float:
    """Share of onsets, 0 to 1, that are on a third or sixth of a quarter (triplets, sextuplets) but on no 32nd.

    Onsets are rounded to 1/24 quarter from the start of their bar; the steps 4, 8, 16 and 20 count as tuplets. Our own
    definition. Unquantised performances tend to 1/6.
    """
    bar = notes.bar_of(notes.onset)
    step = np.round((notes.onset - notes.bars[bar]) * GRID / notes.ticks_per_quarter).astype(np.int64) % GRID
    return float(np.isin(step, (4, 8, 16, 20)).mean())


def metre_changes(score: Score, num_bars: int) -> float:
    """Number of changes of the time signature divided by the number of bars, 0 to 1."""
    metres = [(mark.numerator, mark.denominator) for mark in score.time_signatures]
    changes = sum(before != after for before, after in pairwise(metres))
    return min(1.0, changes / num_bars)


def key_distance(notes: _Notes, key: Key) -> float:
    """Mean distance on the circle of fifths, 0 to 6, between the key of each four bars and the key of the piece.

    Windows without pitched notes are left out. The key of a window is the one whose profile correlates best. If the key of
    the piece correlates at most 0.05 less, it counts as the key of the window, since four bars rarely distinguish closely
    related keys.

    Source: local keys by Krumhansl 1990, chapter 4; the distance is the circle of fifths of key signatures.
    """
    pitched = ~notes.is_drum
    if not pitched.any():
        return 0.0
    window = notes.bar_of(notes.onset[pitched]) // KEY_WINDOW_BARS
    histograms = np.zeros((int(window.max()) + 1, 12))
    np.add.at(histograms, (window, notes.pitch[pitched] % 12), (notes.end - notes.onset)[pitched])
    correlations = key_correlations(histograms[histograms.any(axis=1)]).round(9)
    home = correlations[:, key.tonic + 12 * MODES.index(key.mode)]
    best = np.where(correlations.max(axis=1) - home <= 0.05, -1, correlations.argmax(axis=1))
    distances = [0 if index < 0 else fifths_distance(Key(int(index) % 12, MODES[index // 12]), key) for index in best]
    return float(np.mean(distances))


def chord_change_rate(notes: _Notes) -> float:
    """Number of chord changes per beat, 0 to 1; silent beats are left out.

    The chord of a beat is the one of 24 triads with the largest cosine between the beat's pitch-class durations and the
    triad's three pitch classes. On a tie the previous chord is kept.

    Source: template matching of Fujishima 1999, "Realtime chord recognition of musical sound".
    """
    pitched = ~notes.is_drum
    if not pitched.any():
        return 0.0
    edges = _beat_edges(notes)
    overlap = _pitch_class_durations(notes, edges)
    sounding = overlap.sum(axis=1) > 0
    triads = np.array(
        [[(pc - root) % 12 in shape for pc in range(12)] for shape in ((0, 4, 7), (0, 3, 7)) for root in range(12)], dtype=float
    )
    scores = (overlap[sounding] @ triads.T) / np.linalg.norm(overlap[sounding], axis=1, keepdims=True)
    chord, changes = int(scores[0].argmax()), 0
    for row in scores[1:]:
        if row[chord] < row.max() - CHORD_THRESHOLD:
            chord, changes = int(row.argmax()), changes + 1
    return changes / max(1, len(scores) - 1)


def out_of_scale(notes: _Notes, key: Key) -> float:
    """Share of note durations outside the scale of `key`, 0 to 1; in minor, the raised sixth and seventh count as inside."""
    scale = set(scale_pitch_classes(key))
    if key.mode == "minor":
        scale |= {(key.tonic + 9) % 12, (key.tonic + 11) % 12}
    durations = (notes.end - notes.onset) * ~notes.is_drum
    outside = ~np.isin(notes.pitch % 12, list(scale))
    return float(durations[outside].sum() / max(1, durations.sum()))


def _melodic(notes: _Notes) -> dict[str, float]:
    """Features of the melodies of the tracks: the highest note at each onset of each pitched track.

    melodic_interval_entropy: Shannon entropy in bits of the intervals in semitones; those beyond two octaves are one class.
        Source: the interval distribution of Eerola & North 2000, "Expectancy-based model of melodic complexity".
    melodic_range: the largest range of a melody in semitones.
    melodic_motif_novelty: distinct motifs of three intervals over all motifs, 0 to 1; 1 minus this is repetition. 0
        if no melody has four notes.
        Source: repetition of n-grams as in Conklin & Anagnostopoulou 2001, transposition-invariant.
    """
    pitched = np.flatnonzero(~notes.is_drum)
    line = pitched[_first_of_runs(notes.track[pitched], notes.onset[pitched])]
    track, pitch = notes.track[line], notes.pitch[line]
    same_line = track[1:] == track[:-1]
    steps = np.clip(np.diff(pitch), -MAX_INTERVAL - 1, MAX_INTERVAL + 1)
    ranges = [int(np.ptp(pitch[track == number])) for number in np.unique(track)]
    motifs = np.zeros((0, MOTIF_INTERVALS), dtype=np.int64)
    if len(steps) >= MOTIF_INTERVALS:
        inside = np.lib.stride_tricks.sliding_window_view(same_line, MOTIF_INTERVALS).all(axis=1)
        motifs = np.lib.stride_tricks.sliding_window_view(steps, MOTIF_INTERVALS)[inside]
    codes = (motifs + MAX_INTERVAL + 1) @ (2 * MAX_INTERVAL + 3) ** np.arange(MOTIF_INTERVALS)
    return {
        "melodic_interval_entropy": _entropy(steps[same_line]),
        "melodic_range": float(max(ranges, default=0)),
        "melodic_motif_novelty": len(np.unique(codes)) / max(1, len(codes)),
    }


def bar_novelty(notes: _Notes) -> float:
    """One minus the mean similarity of each bar to the most similar earlier bar, 0 (all bars equal) to 1.

    The similarity of two bars is the cosine of their durations by pitch class (or drum key) and sixteenth of the bar in
    which the note begins. Empty bars are left out; a piece of one bar gives 0. Only the first 1,024 bars are used.

    Source: the self-similarity matrix of Foote 1999, "Visualizing music and audio using self-similarity", by bars.
    """
    bar = notes.bar_of(notes.onset)
    kept = bar < MAX_SIMILARITY_BARS
    bar = bar[kept]
    lengths = np.diff(np.append(notes.bars, notes.bars[-1] + notes.beat_ticks[-1] * 4))
    position = np.minimum(BAR_SLICES - 1, (notes.onset[kept] - notes.bars[bar]) * BAR_SLICES // lengths[bar])
    kind = np.where(notes.is_drum[kept], 12 + notes.pitch[kept], notes.pitch[kept] % 12)
    _, kind = np.unique(kind, return_inverse=True)
    cells = np.zeros((int(bar.max(initial=0)) + 1, BAR_SLICES * (int(kind.max(initial=0)) + 1)))
    np.add.at(cells, (bar, position * (int(kind.max(initial=0)) + 1) + kind), (notes.end - notes.onset)[kept])
    cells = cells[cells.any(axis=1)]
    if len(cells) < 2:
        return 0.0
    cells /= np.linalg.norm(cells, axis=1, keepdims=True)
    similarity = np.tril(cells @ cells.T, k=-1)[1:].max(axis=1)
    return float(1 - np.minimum(1, similarity).mean())


def _beat_edges(notes: _Notes) -> np.ndarray:
    """The ticks at which beats start, and the end of the last note [beats + 1]."""
    end = int(notes.end.max())
    counts = -(-np.diff(np.append(notes.bars, max(end, notes.bars[-1] + 1))) // notes.beat_ticks)
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.append(np.repeat(notes.bars, counts) + index * np.repeat(notes.beat_ticks, counts), end)


def _pitch_class_durations(notes: _Notes, edges: np.ndarray) -> np.ndarray:
    """Returns the ticks for which each pitch class sounds between successive edges: [edges - 1, 12].

    The total duration sounded before a tick t is the sum over notes of min(max(t - onset, 0), duration). Its differences
    between the edges are the result, without a loop over notes and edges.
    """
    table = np.zeros((len(edges) - 1, 12))
    for pitch_class in range(12):
        chosen = ~notes.is_drum & (notes.pitch % 12 == pitch_class)
        if chosen.any():
            before = _ramp(edges, notes.onset[chosen]) - _ramp(edges, notes.end[chosen])
            table[:, pitch_class] = np.diff(before)
    return table


def _ramp(times: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The sum over `starts` of max(t - start, 0), for each t of `times`."""
    starts = np.sort(starts)
    sums = np.concatenate([[0], np.cumsum(starts)])
    count = np.searchsorted(starts, times)
    total: np.ndarray = count * times - sums[count]
    return total


def _first_of_runs(*columns: np.ndarray) -> np.ndarray:
    """Bool [N]: True where a row of sorted columns differs from the previous row, and for the first row."""
    changed = [column[1:] != column[:-1] for column in columns]
    first = np.ones(min(1, len(columns[0])), dtype=bool)
    return np.concatenate([first, np.logical_or.reduce(changed)])


def _entropy(values: np.ndarray) -> float:
    """Shannon entropy in bits of the relative frequencies of `values`; 0 for no values."""
    _, counts = np.unique(values, return_counts=True)
    shares = counts / max(1, counts.sum())
    return float(abs((shares * np.log2(shares)).sum()))
