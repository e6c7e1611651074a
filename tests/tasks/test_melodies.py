"""Melodies: the notes that are read off tokens are those of the score; tokens without durations are refused."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from etude.tasks.melodies import Melodies
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.songs import song


@pytest.mark.parametrize("scheme", ["REMI", "TSD"])
def test_notes_are_those_of_the_scores(scheme: str) -> None:
    tokenizer = MidiTokTokenizer(scheme=scheme, infill=False)
    pieces = [tokenizer.encode(song(number, bars=2, voices=1)) for number in range(3)]
    length = max(len(pieces[0]) + len(pieces[1]), len(pieces[2]))
    tokens, documents = torch.zeros(2, length, dtype=torch.long), torch.full((2, length), -1)
    place = 0
    for row, document, piece in ((0, 0, pieces[0]), (0, 1, pieces[1]), (1, 0, pieces[2])):
        start = place if document else 0
        tokens[row, start : start + len(piece)] = torch.from_numpy(np.asarray(piece).astype(np.int64))
        documents[row, start : start + len(piece)] = document
        place = len(piece)
    found = Melodies(tokenizer, notes=5)({"tokens": tokens, "documents": documents})
    assert found.shape == (3, 2, 5)
    for melody, piece in zip(found, pieces, strict=True):
        score = tokenizer.decode(piece)
        notes = sorted((note for track in score.tracks for note in track.notes), key=lambda note: note.start)[:5]
        assert melody[0, : len(notes)].tolist() == [note.pitch for note in notes]
        expected = np.log2([note.duration / score.ticks_per_quarter for note in notes])
        np.testing.assert_allclose(melody[1, : len(notes)], expected, atol=1e-6)


@pytest.mark.parametrize("tokenizer", [SatbGrid, partial(MidiTokTokenizer, scheme="MIDILike", infill=False)])
def test_tokens_without_durations_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"algorithm=alignment compares notes.*choose tokenizer=remi"):
        Melodies(tokenizer(), notes=5)
