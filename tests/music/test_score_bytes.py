"""Scores come back exactly as they were, and bytes that are none of a score are refused."""

import random

import pytest
from symusic import ControlChange, KeySignature, Note, Pedal, PitchBend, Score, Tempo, TextMeta, TimeSignature, Track

from etude.music.score_bytes import score_from_bytes, score_to_bytes
from tests.songs import song


def everything() -> Score:
    score = Score(384)
    score.tempos.extend([Tempo(0, 100.0), Tempo(77, 90.5)])
    score.time_signatures.append(TimeSignature(0, 6, 8))
    score.key_signatures.extend([KeySignature(0, -3, 1), KeySignature(96, 7, 0)])
    score.markers.append(TextMeta(5, "Trio \N{MUSIC SHARP SIGN}"))
    for program in (0, 127):
        track = Track(name=f"Flöte {program}", program=program, is_drum=program == 127)
        track.notes.extend([Note(3, 10, 127, 1), Note(0, 5, 0, 127), Note(2**30, 1, 60, 64)])  # not sorted: order stays
        track.controls.append(ControlChange(1, 64, 127))
        track.pitch_bends.append(PitchBend(1, -8192))
        track.pedals.append(Pedal(1, 2))
        track.lyrics.append(TextMeta(9, "la"))
        score.tracks.append(track)
    return score


@pytest.mark.parametrize("score", [everything(), song(1), Score(480)], ids=["everything", "a song", "nothing"])
def test_a_score_comes_back_as_it_was(score: Score) -> None:
    back = score_from_bytes(score_to_bytes(score))
    assert back == score and back.ticks_per_quarter == score.ticks_per_quarter
    assert [track.name for track in back.tracks] == [track.name for track in score.tracks]


def test_other_bytes_are_refused_or_give_a_score() -> None:
    data = score_to_bytes(everything())
    random.seed(0)
    refused = 0
    for number in range(2000):
        changed = bytearray(data)
        changed[random.randrange(len(data))] = random.randrange(256)
        if number % 3 == 0:
            del changed[random.randrange(len(data)) :]
        try:
            assert isinstance(score_from_bytes(bytes(changed)), type(everything()))
        except ValueError:
            refused += 1
    assert refused > 600
