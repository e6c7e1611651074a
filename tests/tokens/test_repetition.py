"""No passage is played twice where that is asked for, and recent pitches are as much less probable as is said."""

import math
from typing import Any

import numpy as np
import pytest
from symusic import Note, Score, Track

from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.similarity import repeated_passages
from etude.tokens.grammar import JoinedDecoder
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.repetition import Repetition, RestrainedDecoder
from etude.tokens.satb import SatbGrid

TOKENIZER = MidiTokTokenizer(parts=2)
MOTIF = (60, 62, 64, 62)


def played(pitches: list[int] | tuple[int, ...], *, program: int = 0, drums: bool = False) -> Track:
    notes = [Note(480 * place, 240, pitch, 80) for place, pitch in enumerate(pitches)]
    return Track(program=program, is_drum=drums, notes=notes)


def ids_of(*tracks: Track) -> list[int]:
    score = Score(480)
    for track in tracks:
        score.tracks.append(track)
    return [int(token) for token in TOKENIZER.encode(score)]


def restrained(rows: int = 1, **options: Any) -> RestrainedDecoder:
    return RestrainedDecoder(JoinedDecoder([TOKENIZER.decoder(rows)]), TOKENIZER, Repetition(**options))


def pitches_allowed(decoder: RestrainedDecoder, row: int = 0) -> set[int]:
    allowed = decoder.allowed()[row]
    return {int(TOKENIZER.table.number[i]) for i in np.flatnonzero(allowed) if TOKENIZER.vocab[i].startswith("Pitch_")}


def push_up_to_last_pitch(decoder: RestrainedDecoder, ids: list[int]) -> None:
    last = max(i for i, token in enumerate(ids) if TOKENIZER.vocab[token].startswith("Pitch"))
    for token in ids[:last]:
        decoder.push([token])


@pytest.mark.parametrize(("ngram", "banned"), [(2, {64}), (3, {64}), (4, set()), (6, set())])
def test_the_pitch_that_completes_a_passage_again_is_forbidden(ngram: int, banned: set[int]) -> None:
    decoder = restrained(no_repeat_ngram=ngram)
    push_up_to_last_pitch(decoder, ids_of(played((*MOTIF, 70, 60, 62, 64))))
    assert set(MOTIF) - pitches_allowed(decoder) == banned and decoder.unavoidable == 0


def test_another_rhythm_or_another_track_is_no_repetition_and_drums_may_repeat() -> None:
    decoder = restrained(no_repeat_ngram=2)
    push_up_to_last_pitch(decoder, ids_of(played(MOTIF[:3]), played((*MOTIF[:2], 64), program=40)))
    assert 64 in pitches_allowed(decoder)
    late = played((*MOTIF[:3], 70, 60, 62))
    late.notes[-1].time += 240
    decoder = restrained(no_repeat_ngram=2)
    push_up_to_last_pitch(decoder, ids_of(late))
    assert 62 in pitches_allowed(decoder)
    decoder = restrained(no_repeat_ngram=2)
    push_up_to_last_pitch(decoder, ids_of(played((36, 38, 36, 38), drums=True)))
    assert any(TOKENIZER.vocab[i] == "PitchDrum_38" for i in np.flatnonzero(decoder.allowed()[0]))


def test_chords_are_written_from_low_to_high() -> None:
    chord = Track(notes=[Note(0, 480, pitch, 80) for pitch in (60, 64, 67)])
    decoder = restrained(no_repeat_ngram=6)
    push_up_to_last_pitch(decoder, ids_of(chord))
    assert min(pitches_allowed(decoder)) == 65


def test_where_nothing_else_may_follow_the_pitch_stays_and_is_counted() -> None:
    decoder = restrained(no_repeat_ngram=2)
    push_up_to_last_pitch(decoder, ids_of(played((60, 62, 60, 62))))
    only = np.zeros((1, len(TOKENIZER)), dtype=bool)
    only[0, TOKENIZER.vocab.index("Pitch_62")] = True
    decoder._decoder.allowed = lambda: only.copy()  # type: ignore[method-assign]
    assert pitches_allowed(decoder) == {62} and decoder.unavoidable == 1


def test_recent_pitches_are_divided_by_the_penalty_within_the_window() -> None:
    decoder = restrained(pitch_penalty=1.5, pitch_window=2)
    push_up_to_last_pitch(decoder, ids_of(played((60, 62, 64, 65, 65))))
    found = {TOKENIZER.vocab[i]: value for i, value in enumerate(decoder.penalties()[0]) if value}
    assert found == pytest.approx({"Pitch_64": math.log(1.5), "Pitch_65": math.log(1.5)})


def test_selected_rows_remember_what_they_played_and_go_their_own_way() -> None:
    decoder = restrained(2, no_repeat_ngram=2)
    a, b = ids_of(played((60, 62, 60, 64))), ids_of(played((60, 65, 60, 64)))
    last = max(i for i, token in enumerate(a) if TOKENIZER.vocab[token].startswith("Pitch"))
    for pair in zip(a[:last], b[:last], strict=True):
        decoder.push(pair)
    assert 62 not in pitches_allowed(decoder, 0) and 65 not in pitches_allowed(decoder, 1)
    decoder.select([1, 1])
    assert 65 not in pitches_allowed(decoder, 0) and 65 not in pitches_allowed(decoder, 1)
    decoder.push([TOKENIZER.vocab.index("Pitch_62"), TOKENIZER.vocab.index("Pitch_64")])
    for kind in ("Velocity", "Duration"):
        token = next(i for i in np.flatnonzero(decoder.allowed()[0]) if TOKENIZER.vocab[i].startswith(kind))
        decoder.push([token, token])
    assert decoder._rows[0].tracks[0, 0].notes[-1][1] == 62 and decoder._rows[1].tracks[0, 0].notes[-1][1] == 64


def test_what_can_not_be_limited_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no_repeat_ngram=1 must be at least 2 notes"):
        Repetition(no_repeat_ngram=1)
    with pytest.raises(ValueError, match=r"pitch_penalty=0\.5 must be finite and at least 1"):
        Repetition(pitch_penalty=0.5)
    with pytest.raises(ValueError, match=r"pitch_window=0 must be at least 1"):
        Repetition(pitch_penalty=2.0, pitch_window=0)
    with pytest.raises(ValueError, match=r"take a model with tokenizer=remi"):
        RestrainedDecoder(JoinedDecoder([SatbGrid().decoder(1)]), SatbGrid(), Repetition(no_repeat_ngram=4))


def test_passages_are_counted_by_track_whatever_their_place() -> None:
    score = Score(480)
    score.tracks.append(played((*MOTIF, *MOTIF)))
    score.tracks.append(played(MOTIF, program=40))
    score.tracks.append(played((36, 36, 36, 36), drums=True))
    notes = NoteArray.from_score(score)
    assert repeated_passages(notes, length=4) == (1, 6) and repeated_passages(notes, length=5) == (0, 4)
    assert repeated_passages(notes, length=1) == (4 + 1 + 1, 12)
