"""Passages: which notes they hold, what is refused, and that all else stays."""

import pytest
from symusic import Note, Score, TimeSignature, Track

from etude.music.passages import Passage, added, passage_of, replaced, same_outside, without


def piece() -> Score:
    score = Score(96)
    score.time_signatures.append(TimeSignature(0, 2, 4))
    for name, program, drum in (("Solo", 40, False), ("", 33, False), ("Kit", 0, True), ("silent", 0, False)):
        track = Track(name=name, program=program, is_drum=drum)
        for bar in range(0 if name == "silent" else 4):
            track.notes.append(Note(192 * bar, 96, 60, 64))
        score.tracks.append(track)
    return score


@pytest.mark.parametrize(
    ("bars", "tracks", "expected"),
    [
        ([2, 3], None, Passage(1, 3)), (4, None, Passage(3, 4)), (None, ["bass"], Passage(0, 4, (1,))),
        ([1, 1], ["drums", "solo"], Passage(0, 1, (0, 2))), (None, "violin", Passage(0, 4, (0,))),
        (None, [2], Passage(0, 4, (1,))),
    ],
)  # fmt: skip
def test_names_of_passages(bars: object, tracks: object, expected: Passage) -> None:
    assert passage_of(piece(), bars=bars, tracks=tracks) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bars", "tracks", "told"),
    [
        (None, None, "neither bars nor tracks"), ([0, 2], None, "bars 1 to 4"), ([2, 9], None, r"infill.bars=\[2,9\]"),
        ([3, 2], None, "bars 1 to 4"), ([1, 2, 3], None, "must be"), (None, ["oboe"], "1 Solo, 2 Fingered Bass, 3 Kit"),
        (None, [4], "its tracks are"), (None, [9], "its tracks are"),
    ],
)  # fmt: skip
def test_what_the_piece_lacks_is_refused(bars: object, tracks: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        passage_of(piece(), bars=bars, tracks=tracks)  # type: ignore[arg-type]


def test_notes_outside_of_a_passage_stay() -> None:
    score, passage = piece(), Passage(1, 3, (0, 1))
    assert [len(track.notes) for track in without(score, passage).tracks] == [2, 2, 4, 0]
    new, other = Track(), Track(name="Oboe", program=68)
    new.notes.append(Note(96, 48, 72, 90))
    other.notes.append(Note(0, 48, 80, 90))
    result = replaced(score, passage, {0: new}, [other])
    assert [(n.time, n.pitch) for n in result.tracks[0].notes] == [(0, 60), (288, 72), (576, 60)]
    assert result.tracks[-1].name == "Oboe" and result.tracks[-1].notes[0].time == 192
    assert same_outside(score, result, passage) and not same_outside(score, result, Passage(1, 2, (0, 1)))
    assert [len(track.notes) for track in score.tracks] == [4, 4, 4, 0]


def test_added_notes_are_told_from_equal_ones() -> None:
    before, after = Track(), Track()
    before.notes.append(Note(0, 10, 60, 64))
    for _ in range(2):
        after.notes.append(Note(0, 10, 60, 64))
    assert len(added(before, after)) == 1
