"""The memorisation check finds copies in any key and at any speed, and nothing where nothing is."""

import math

import numpy as np
import pytest

from etude.evaluation.copying import NgramIndex, copying_rows, ngram_hashes
from etude.metrics.scores.notes import NoteArray
from tests.metrics.scores.scores import build


def melody(seed, length=60):
    generator = np.random.default_rng(seed)
    onsets = np.cumsum(generator.choice([3, 6, 12], size=length))
    return [(int(t), 3, int(p)) for t, p in zip(onsets, generator.integers(48, 72, size=length), strict=True)]


def hashes(notes, length=8, **options):
    return ngram_hashes(NoteArray.from_score(build([notes], **options)), length=length).tolist()


def test_a_transposed_slower_later_copy_has_the_same_n_grams():
    notes = melody(0)
    copy = [(5 + 2 * t, 7 * d, p + 5) for t, d, p in notes]
    assert hashes(copy) == hashes(notes)
    finer = [(40 * t, 40 * d, p) for t, d, p in notes]
    assert hashes(finer, ticks_per_quarter=480) == hashes(notes)


def test_n_grams_see_pitch_and_time():
    notes = melody(0, length=8)
    assert len(hashes(notes)) == 1
    assert hashes(notes[:7]) == []
    wrong_pitch = [*notes[:4], (notes[4][0], 3, notes[4][2] + 1), *notes[5:]]
    wrong_time = [*notes[:4], (notes[4][0] + 1, 3, notes[4][2]), *notes[5:]]
    assert len({hashes(n)[0] for n in (notes, wrong_pitch, wrong_time)}) == 3
    with pytest.raises(ValueError, match="length=2 is below 3"):
        hashes(notes, length=2)


def test_chords_hash_and_drums_do_not():
    chords = [(12 * i, 12, 60 + i + third) for i in range(4) for third in (0, 4)]
    assert len(hashes(chords)) == 1
    assert hashes(chords, drums={0}) == []


def test_a_stolen_passage_is_found_with_its_source_and_its_length():
    training = [melody(seed) for seed in range(20)]
    index = NgramIndex((build([notes]) for notes in training), names=[f"piece {i}" for i in range(20)])
    stolen = training[7][10:40]
    own = melody(99)
    start = stolen[-1][0]
    sample = [(t, d, p + 3) for t, d, p in stolen] + [(start + t, d, p) for t, d, p in own]
    found = index.compare(build([sample]))
    assert found.nearest == "piece 7"
    assert 30 <= found.longest <= 31  # one more where the next step happens to agree
    grams = len(sample) - 7
    assert found.share[8] == pytest.approx((30 - 7) / grams, abs=1.5 / grams)
    assert found.nearest_share == pytest.approx(found.share[8], abs=1.5 / grams)
    assert found.share[16] < found.share[12] < found.share[8]


def test_every_training_piece_is_found_whole_and_another_piece_is_not():
    training = [melody(seed) for seed in range(5)]
    index = NgramIndex([build([notes]) for notes in training], names=list("abcde"), lengths=[12, 8])
    for name, notes in zip("abcde", training, strict=True):
        found = index.compare(build([notes]))
        assert (found.nearest, found.longest, found.nearest_share) == (name, len(notes), 1.0)
        assert found.share == {8: 1.0, 12: 1.0}
    other = index.compare(build([melody(77)]))
    assert (other.nearest, other.longest, other.share) == (None, 0, {8: 0.0, 12: 0.0})
    assert math.isnan(index.compare(build([melody(0)[:9]])).share[12])


def test_the_longest_match_does_not_jump_between_pieces():
    first, second = melody(1, length=10), melody(2, length=10)
    index = NgramIndex([build([first]), build([second])], names=["a", "b"])
    joined = first + [(first[-1][0] + 3 + t, d, p) for t, d, p in second]
    assert index.compare(build([joined])).longest == 10


def test_rows_and_refusals():
    training = [melody(seed) for seed in range(3)]
    index = NgramIndex([build([notes]) for notes in training], names=["a", "b", "c"], lengths=(8,))
    rows = copying_rows({"samples": [build([training[1]])], "held-out real": [build([melody(50)])]}, index=index)
    assert [row["share_8"] for row in rows] == [1.0, 0.0]
    assert (rows[0]["nearest"], rows[0]["longest_max"], rows[1]["nearest"]) == ("b", 60, None)
    with pytest.raises(ValueError, match="groups\\['x'\\] is empty"):
        copying_rows({"x": []}, index=index)
    with pytest.raises(ValueError, match="names has 1 entries for 0 scores"):
        NgramIndex([], names=["a"])
    with pytest.raises(ValueError, match="lengths is empty"):
        NgramIndex([], names=[], lengths=())
    assert NgramIndex([], names=[]).compare(build([training[0]])).nearest is None
