"""Complexity features: hand-computed values, invariances, and the order a musician would expect."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from symusic import Note, Score, TimeSignature, Track

from etude.music.augmentation import transpose
from etude.music.complexity import complexity
from etude.music.score import normalise, read_score

NAMES = [
    "rhythmic_syncopation",
    "rhythmic_onset_entropy",
    "rhythmic_tuplet_share",
    "rhythmic_metre_changes",
    "harmonic_key_distance",
    "harmonic_chord_change_rate",
    "harmonic_out_of_scale",
    "melodic_interval_entropy",
    "melodic_range",
    "melodic_motif_novelty",
    "structural_bar_novelty",
    "structural_length",
]


def make(*tracks: list[tuple[int, int, int]], metre: tuple[int, int] = (4, 4), is_drum: bool = False) -> Score:
    """Tracks of (onset, duration, pitch) in ticks, 480 a quarter."""
    score = Score(480)
    for notes in tracks:
        track = Track(is_drum=is_drum)
        track.notes.extend([Note(onset, duration, pitch, 64) for onset, duration, pitch in notes])
        score.tracks.append(track)
    score.time_signatures.append(TimeSignature(0, *metre))
    return score


def melody(pitches: list[int], step: int = 480) -> Score:
    return make([(step * i, step, pitch) for i, pitch in enumerate(pitches)])


@pytest.mark.parametrize("is_drum", [False, True])
def test_one_note_has_no_complexity_but_a_length(is_drum: bool) -> None:
    features = complexity(make([(0, 480, 60)], is_drum=is_drum))
    assert list(features) == NAMES
    assert features.pop("structural_length") == 1  # log2(1 + 1 bar)
    assert set(features.values()) == {0.0}


def test_no_notes_are_refused() -> None:
    with pytest.raises(ValueError, match="no notes"):
        complexity(Score(480))


@pytest.mark.parametrize(
    ("notes", "metre", "expected"),
    [
        ([(0, 480, 60), (480, 480, 60)], (4, 4), 0),  # on the beat
        ([(0, 240, 60), (240, 240, 60)], (4, 4), (0 + 2) / 2),  # a quaver off the beat that ends on it: 1 / T, T = 1/2
        ([(0, 240, 60), (240, 480, 60)], (4, 4), (0 + 4) / 2),  # tied over the beat: 2 / T
        ([(0, 240, 60), (240, 1440, 60)], (4, 4), (0 + 2) / 2),  # beyond the next beat: 1 / T
        ([(360, 120, 60)], (4, 4), 4),  # a semiquaver before the beat: T = 1/4
        ([(0, 240, 60), (240, 240, 60), (480, 240, 60)], (6, 8), (0 + 3 + 3) / 3),  # dotted beats: T = 1/3
        ([(0, 240, 60), (240, 480, 72), (240, 240, 64)], (4, 4), (0 + 4) / 2),  # a chord counts once, by its longest note
    ],
)
def test_syncopation(notes: list[tuple[int, int, int]], metre: tuple[int, int], expected: float) -> None:
    assert complexity(make(notes, metre=metre))["rhythmic_syncopation"] == pytest.approx(expected)


def test_rhythmic_entropy_tuplets_and_metre_changes() -> None:
    triplets = complexity(make([(160 * i, 160, 60) for i in range(3)] + [(480, 480, 60)]))
    assert triplets["rhythmic_tuplet_share"] == pytest.approx(2 / 4)
    assert triplets["rhythmic_onset_entropy"] == pytest.approx(2)  # four positions, equally often
    straight = complexity(make([(60 * i, 60, 60) for i in range(8)]))
    assert straight["rhythmic_tuplet_share"] == 0 and straight["rhythmic_onset_entropy"] == pytest.approx(3)
    downbeats = complexity(make([(1920 * i, 1920, 60) for i in range(4)]))
    assert downbeats["rhythmic_onset_entropy"] == 0
    score = make([(480 * i, 480, 60) for i in range(14)])
    score.time_signatures = [TimeSignature(0, 4, 4), TimeSignature(1920, 3, 4), TimeSignature(1920 + 1440, 4, 4)]
    assert complexity(score)["rhythmic_metre_changes"] == pytest.approx(2 / 4)  # bars of 4, 3, 4 and 3 of 4 quarters


def test_harmony() -> None:
    chords = {"C": (60, 64, 67), "F": (65, 69, 72), "G": (67, 71, 74), "Am": (57, 60, 64)}

    def progression(*names: str) -> dict[str, float]:
        return complexity(make([(480 * i, 480, p) for i, name in enumerate(names) for p in chords[name]]))

    assert progression("C", "C", "C", "C")["harmonic_chord_change_rate"] == 0
    assert progression("C", "C", "F", "G", "C")["harmonic_chord_change_rate"] == pytest.approx(3 / 4)
    assert progression("C", "F", "G", "Am", "C")["harmonic_out_of_scale"] == 0
    scale = [60, 62, 64, 65, 67, 69, 71, 72]
    assert complexity(melody([*scale, 67, 64, 60, 66]))["harmonic_out_of_scale"] == pytest.approx(1 / 12)
    # a silent beat is no change
    gap = make([(0, 480, p) for p in chords["C"]] + [(1440, 480, p) for p in chords["C"]])
    assert complexity(gap)["harmonic_chord_change_rate"] == 0


def test_key_distance_counts_fifths_between_sections() -> None:
    scale = [0, 4, 7, 12, 11, 7, 5, 4, 2, 0, 4, 7, 5, 2, -1, 0]  # four bars in the major key of 0
    home = [60 + p for p in scale] * 3
    assert complexity(melody(home))["harmonic_key_distance"] == 0
    # a quarter of the piece a whole tone higher: two fifths away
    assert complexity(melody([*home, *(62 + p for p in scale)]))["harmonic_key_distance"] == pytest.approx(2 / 4)


def test_melody() -> None:
    features = complexity(melody([60, 62, 64, 65, 67]))  # steps 2 2 1 2: motifs 2 2 1 and 2 1 2
    assert features["melodic_interval_entropy"] == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert features["melodic_range"] == 7 and features["melodic_motif_novelty"] == 1
    assert complexity(melody([60, 61] * 10))["melodic_motif_novelty"] == pytest.approx(2 / 17)
    # the top line of chords counts, and no interval spans two tracks
    chords = make([(480 * i, 480, p - d) for i, p in enumerate([60, 62, 64, 65, 67]) for d in (0, 12)], [(0, 480, 40)])
    assert complexity(chords)["melodic_interval_entropy"] == pytest.approx(features["melodic_interval_entropy"])


def test_structure() -> None:
    bar, other = [60, 62, 64, 65], [61, 63, 66, 68]
    assert complexity(melody(bar * 8))["structural_bar_novelty"] == pytest.approx(0)
    assert complexity(melody(bar + other))["structural_bar_novelty"] == pytest.approx(1)
    assert complexity(melody(bar + other + bar + other))["structural_bar_novelty"] == pytest.approx(1 / 3)
    half = [60, 62, 66, 68]
    assert complexity(melody(bar + half))["structural_bar_novelty"] == pytest.approx(0.5)
    assert complexity(melody(bar * 7))["structural_length"] == pytest.approx(3)
    long = make([(1920 * i, 480, 60) for i in range(2000)])
    assert complexity(long)["structural_bar_novelty"] == pytest.approx(0)


notes_of_a_track = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 2000), st.integers(30, 90)), max_size=30)


@given(
    st.lists(notes_of_a_track, min_size=1, max_size=3),
    st.sampled_from([(4, 4), (3, 4), (6, 8), (5, 8), (2, 2)]),
    st.integers(-12, 12),
)
def test_finite_and_unchanged_by_transposition_and_resolution(
    tracks: list[list[tuple[int, int, int]]], metre: tuple[int, int], semitones: int
) -> None:
    tracks = [*tracks, [(0, 480, 60)]]
    score = make(*tracks, metre=metre)
    features = complexity(score)
    assert all(np.isfinite(value) and value >= 0 for value in features.values())
    assert features == complexity(score)
    shares = [name for name in NAMES if name.endswith(("share", "changes", "rate", "out_of_scale", "novelty"))]
    assert len(shares) == 6 and all(features[name] <= 1 for name in shares) and features["harmonic_key_distance"] <= 6
    for name, value in complexity(transpose(score, semitones)).items():
        if not name.startswith("harmonic"):  # of equally good keys or chords the lowest is taken
            assert value == pytest.approx(features[name])
    assert complexity(normalise(score.resample(960))) == pytest.approx(features)


def test_real_music_is_ordered_as_a_musician_would() -> None:
    from music21 import common

    corpus = common.getCorpusFilePath() / "bach"
    chorale = complexity(read_score(corpus / "bwv66.6.mxl"))
    scale = complexity(melody([60, 62, 64, 65, 67, 69, 71, 72] * 4))
    for name in NAMES:
        if name not in ("rhythmic_tuplet_share", "rhythmic_metre_changes", "harmonic_chord_change_rate"):
            assert scale[name] <= chorale[name], name


def test_jazz_is_more_syncopated_than_chorales(shared_data: Path) -> None:
    from music21 import common

    def mean_syncopation(files: list[Path]) -> float:
        return float(np.mean([complexity(read_score(file))["rhythmic_syncopation"] for file in files]))

    jazz = sorted((shared_data / "scores" / "jazz").glob("*.mxl"))[:8]
    chorales = sorted((common.getCorpusFilePath() / "bach").glob("bwv2*.mxl"))[:8]
    assert mean_syncopation(jazz) > 1.2 * mean_syncopation(chorales)
