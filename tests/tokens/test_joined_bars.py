"""Bars of documents: rejoined in their order they are the document, elsewhere they keep their notes and programs, and what is
written is what the tokenizer would have written."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Tempo

from etude.music.theory import Key, estimate_key
from etude.tokens.grammar import BOS, CONT, EOS, Decoder
from etude.tokens.joined_bars import (
    BarredDocument,
    barred,
    can_join,
    joined,
    programs_of,
    shift_to,
    transposed,
    with_length,
    without_controls,
)
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.row_documents import RowDocument, documents_of_rows, mapped, places, repacked
from etude.tokens.rows import packed_rows
from etude.tokens.satb import SatbGrid
from tests.music.pieces import random_score
from tests.songs import song
from tests.tokens.test_infilling import EXPLICIT, TOKENIZER, each, notes, quartet

seeds = st.integers(0, 2**31 - 1)


def document(tokenizer: Any, body: np.ndarray, head: tuple[int, ...] = (BOS,), tail: tuple[int, ...] = (EOS,)) -> RowDocument:
    ids = np.concatenate([head, body, tail]).astype(np.int64)
    return RowDocument(0, 0, len(ids) - 1, ids, tokenizer.features(ids[:-1]), True)


def music(tokenizer: Any, body: np.ndarray, **ends: Any) -> BarredDocument:
    found = barred(document(tokenizer, body, **ends), tokenizer)
    assert found is not None
    return found


def rejoined(one: BarredDocument, bars: list[int]) -> np.ndarray:
    return joined(one, [(one, 0, one.first), *((one, bar, bar + 1) for bar in bars)])


@each
@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_bars_in_their_order_are_the_document(tokenizer: MidiTokTokenizer, seed: int) -> None:
    body = tokenizer.encode(random_score(seed))
    found = barred(document(tokenizer, body), tokenizer)
    if found is not None:
        assert np.array_equal(rejoined(found, list(range(found.first, len(found))))[1:-1], body)


@each
def test_moved_bars_keep_their_notes_and_programs(tokenizer: MidiTokTokenizer) -> None:
    one = music(tokenizer, tokenizer.encode(quartet()))
    order = [1, 3, 2, 4, 5]
    made = rejoined(one, order)[1:-1]
    each_bar = [notes(tokenizer, one.body[one.starts[bar] : one.starts[bar + 1]]) for bar in range(6)]
    written = notes(tokenizer, made)
    whole = notes(tokenizer, one.body)
    sizes = [len(bar) for bar in each_bar]
    starts = np.cumsum([0, *sizes])
    expected = [note for bar in (0, *order) for note in whole[starts[bar] : starts[bar + 1]]]
    assert written == expected  # with the programs that the whole piece tells, not the bar alone
    decoder = Decoder(tokenizer.grammar(), batch=1, first_body=tokenizer.first_body)
    decoder.push(np.array([BOS]))
    for token in (*made.tolist(), EOS):
        assert decoder.allowed()[0][token]
        decoder.push(np.array([token]))
    assert np.array_equal(tokenizer.encode(tokenizer.decode(made)), made)


def test_bars_of_another_document_come_without_its_tempo_and_in_one_key() -> None:
    own, other = song(0, bars=6), song(3, bars=6)
    other.tempos[0].qpm = 180.0
    one, two = (music(TOKENIZER, TOKENIZER.encode(score)) for score in (own, other))
    assert one.key == estimate_key(own) and two.key == estimate_key(other)
    moved = transposed(two, one.key)
    assert moved is not None and shift_to(one.key, moved.key) == 0
    made = joined(one, [(one, 0, 2), (moved, 0, 3), (one, 5, 6)])
    tempos = [TOKENIZER.vocab[i] for i in made.tolist() if TOKENIZER.vocab[i].startswith("Tempo")]
    assert tempos == [TOKENIZER.vocab[i] for i in one.body.tolist() if TOKENIZER.vocab[i].startswith("Tempo")]
    whole = music(TOKENIZER, made[1:-1])
    assert len(whole) == 6 and np.array_equal(TOKENIZER.encode(TOKENIZER.decode(made)), made[1:-1])


@pytest.mark.parametrize("order", [[1, 3, 4, 5], [2, 1, 3, 4, 5], [1, 2, 5], [3, 2, 1, 4, 5]])
def test_moved_bars_keep_their_tempos(order: list[int]) -> None:
    score = song(2, bars=6)
    beat = score.ticks_per_quarter
    for time, qpm in ((8 * beat, 60.0), (13 * beat, 160.0), (16 * beat, 80.0)):  # bar 2, within bar 3, bar 4
        score.tempos.append(Tempo(time, qpm))
    one = music(TOKENIZER, TOKENIZER.encode(score))
    made = rejoined(one, order)[1:-1]

    def tempos(body: np.ndarray) -> list[list[tuple[int, str]]]:
        """Pitch and tempo in force of each note, by bar."""
        found, now = list[list[tuple[int, str]]](), ""
        for token in (TOKENIZER.vocab[i] for i in body.tolist()):
            name, _, value = token.partition("_")
            if name == "Bar":
                found.append([])
            now = value if name == "Tempo" else now
            if name == "Pitch":
                found[-1].append((int(value), now))
        return found

    whole = tempos(one.body)
    assert len({tempo for bar in whole for _, tempo in bar}) == 4
    assert tempos(made) == [whole[bar] for bar in (0, *order)]
    assert np.array_equal(TOKENIZER.encode(TOKENIZER.decode(made)), made)


def test_shifts_are_to_the_same_key_signature() -> None:
    assert shift_to(Key.parse("C major"), Key.parse("A minor")) == 0
    assert shift_to(Key.parse("C major"), Key.parse("D major")) == -2
    assert shift_to(Key.parse("E minor"), Key.parse("C major")) == -5
    assert {shift_to(Key.parse("C major"), Key(tonic, "major")) for tonic in range(12)} == set(range(-5, 7))


def test_a_window_inside_its_piece_keeps_the_bars_whose_programs_it_does_not_tell() -> None:
    tokenizer = MidiTokTokenizer(parts=8)
    piece = song(1, bars=6, voices=1)  # one program, which is named once
    body = tokenizer.encode(piece)
    whole = music(tokenizer, body)
    assert whole.first == 1
    assert barred(document(tokenizer, body[whole.starts[2] :], head=(CONT,)), tokenizer) is None
    assert programs_of(whole, [0]) == programs_of(whole, [4]) == {52}


def test_controls_follow() -> None:
    head = (BOS, *TOKENIZER.controls({"metre": "4/4", "num_bars": 20, "programs": [52], "key": "C major"}))
    body = TOKENIZER.encode(song(0))
    ids = document(TOKENIZER, body, head=head).ids

    def controls(of: np.ndarray) -> list[str]:
        return [TOKENIZER.vocab[i] for i in of.tolist() if i < TOKENIZER.first_body and i not in (BOS, EOS)]

    assert controls(ids) == ["key:C major", "metre:4/4", "bars:20", "instrument:ensemble"]
    assert "bars:16" in controls(with_length(ids, TOKENIZER, change=-4))
    assert "bars:5" in controls(with_length(ids, TOKENIZER, change=-4, whole=5))
    left = without_controls(ids, TOKENIZER, ("metre", "instrument"))
    assert controls(left) == ["key:C major", "bars:20"] and left[0] == BOS and left[-1] == EOS
    assert np.array_equal(left[3:-1], body)


def test_which_tokenizers_join_bars() -> None:
    assert can_join(TOKENIZER) and can_join(EXPLICIT) and can_join(SatbGrid())
    for other in (MidiTokTokenizer(scheme="TSD"), MidiTokTokenizer(form=True)):
        assert not can_join(other)
        with pytest.raises(ValueError, match="can't be joined; set tokenizer=remi"):
            barred(document(other, other.encode(song(0))), other)


def test_bars_of_the_grid() -> None:
    grid = SatbGrid(bar_tokens=True)
    one = music(grid, grid.encode(song(2, bars=5)))
    made = rejoined(one, [2, 1, 3, 4])[1:-1]
    assert sorted(made.tolist()) == sorted(one.body.tolist()) and len(grid.bar_starts(made)) == 5
    assert one.key == estimate_key(grid.decode(one.body))


def rows(tokenizer: Any, count: int = 5) -> dict[str, torch.Tensor]:
    bodies = [torch.from_numpy(tokenizer.encode(song(i, bars=3 + i % 3)).astype(np.int64)) for i in range(count)]
    return packed_rows(tokenizer, bodies, rows=2, length=800)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, SatbGrid()], ids=["remi", "grid"])
def test_rows_are_packed_again_as_they_were(tokenizer: Any) -> None:
    batch = rows(tokenizer)
    found = documents_of_rows(batch, tokenizer)
    assert len(found) > 3 and [place[0] for place in places(found)] == [document.row for document in found]
    assert found[0].begins and found[0].ends and not found[-1].ends
    again = repacked(batch, tokenizer, found, [each.ids if each.plain else None for each in found])
    assert all(torch.equal(again[name], value) for name, value in batch.items())
    assert repacked(batch, tokenizer, found, [None] * len(found)) is batch


def test_a_longer_document_moves_those_behind_it_and_the_end_is_cut() -> None:
    batch = rows(TOKENIZER)
    found = documents_of_rows(batch, TOKENIZER)
    longer = np.concatenate([found[0].ids[:-1], found[1].ids[1:]])
    made = repacked(batch, TOKENIZER, found, [longer, *[None] * (len(found) - 1)])
    assert made["tokens"].shape == batch["tokens"].shape
    after = documents_of_rows(made, TOKENIZER)
    assert np.array_equal(after[0].ids, longer)
    kept = after[1]
    assert kept.row == 0 and np.array_equal(kept.ids, found[1].ids[: len(kept.ids)])
    shorter = repacked(batch, TOKENIZER, found, [found[1].ids, *[None] * (len(found) - 1)])
    assert (shorter["documents"] < 0).sum() >= len(found[0].ids) - len(found[1].ids)
    assert (shorter["targets"][shorter["documents"] < 0] == -100).all()


def test_maps_change_inputs_and_targets_alike() -> None:
    batch = rows(TOKENIZER)
    found = documents_of_rows(batch, TOKENIZER)
    table = TOKENIZER.transposition(3)
    made = mapped(batch, found, [None, *[table] * (len(found) - 1)])
    for old, new in zip(found, documents_of_rows(made, TOKENIZER), strict=True):
        assert np.array_equal(new.ids, old.ids if old is found[0] else table[old.ids])
    assert torch.equal((made["targets"] == -100), (batch["targets"] == -100))
