"""Notes one by one are the notes of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.music.score import seconds_at
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.note_stream import NoteStream, StreamedNote
from etude.tokens.satb import SatbGrid
from tests.music.pieces import random_score

TOKENIZERS = [MidiTokTokenizer(parts=4, infill=True), MidiTokTokenizer(program_changes=False)]


def streamed(tokenizer: MidiTokTokenizer, ids: list[int]) -> list[StreamedNote]:
    stream = NoteStream(tokenizer)
    return [note for token in ids if (note := stream.push(token)) is not None]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["parts", "explicit"])
@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=25, deadline=None)
def test_the_notes_are_those_of_decoding(tokenizer: MidiTokTokenizer, seed: int) -> None:
    ids = tokenizer.encode(random_score(seed))
    whole = tokenizer.decode(ids)
    expected = sorted(
        (n.time, n.duration, n.pitch, n.velocity, -1 if t.is_drum else t.program) for t in whole.tracks for n in t.notes
    )
    found = streamed(tokenizer, [1, *ids.tolist()])
    assert sorted((n.onset, n.duration, n.pitch, n.velocity, n.program) for n in found) == expected
    assert len({(n.program, n.part) for n in found}) == len(whole.tracks)


def test_seconds_follow_the_tempos_and_metres() -> None:
    score = Score(480)
    score.time_signatures.append(TimeSignature(0, 6, 8))
    score.time_signatures.append(TimeSignature(1440, 3, 4))
    score.tempos.append(Tempo(0, qpm=60))
    score.tempos.append(Tempo(1440, qpm=120))
    score.tracks.append(Track(notes=[Note(time, 240, 60, 64) for time in (0, 720, 1440, 1920, 2880)]))
    tokenizer = TOKENIZERS[0]
    ids = tokenizer.encode(score)
    found = streamed(tokenizer, ids.tolist())
    whole = tokenizer.decode(ids)
    onsets = np.array([note.onset for note in found])
    assert onsets.tolist() == [0, 720, 1440, 1920, 2880]
    np.testing.assert_allclose([note.start for note in found], seconds_at(whole, onsets), rtol=1e-6)
    np.testing.assert_allclose([note.seconds for note in found], [0.5, 0.5, 0.25, 0.25, 0.25], rtol=1e-6)


def test_other_tokens_are_refused_and_the_end_is_seen() -> None:
    for tokenizer in (SatbGrid(), MidiTokTokenizer(scheme="TSD"), MidiTokTokenizer(bpe_vocab_size=2000)):
        with pytest.raises(ValueError, match=r"only with REMI tokens; take a model with tokenizer=remi"):
            NoteStream(tokenizer)
    stream = NoteStream(TOKENIZERS[0])
    assert stream.push(1) is None and not stream.ended and stream.push(2) is None and stream.ended
