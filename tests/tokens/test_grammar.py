"""Constrained decoding: whatever it allows decodes, whatever is real it allows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from symusic import Note, Score, TimeSignature, Track

from etude.music.score import read_score
from etude.tokens.grammar import BOS, CONT, EOS, PAD
from etude.tokens.miditok import SCHEMES, MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from etude.tokens.tokenizer import Tokenizer
from tests.music.pieces import notes_of, random_score


def _with_pairs(scheme: str) -> MidiTokTokenizer:
    tokenizer = MidiTokTokenizer(genres=["a"], scheme=scheme)
    tokenizer.train_bpe([tokenizer.encode(random_score(s)) for s in range(30)], vocab_size=tokenizer.base_size + 150)
    return tokenizer


TOKENIZERS: dict[str, MidiTokTokenizer] = {
    **{scheme: MidiTokTokenizer(genres=["a"], scheme=scheme, max_bars=64) for scheme in SCHEMES},
    **{f"{s} explicit": MidiTokTokenizer(genres=["a"], scheme=s, program_changes=False) for s in SCHEMES[:3]},
    **{f"{scheme} merged": _with_pairs(scheme) for scheme in SCHEMES},
}
each = pytest.mark.parametrize("name", TOKENIZERS)
seeds = st.integers(0, 2**31 - 1)


def walk(
    tokenizer: Tokenizer, *, seed: int, num_bars: int | None, max_tokens: int = 120
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """A random walk through allowed(), by kind first so that rare kinds come too; its ids and incremental features."""
    rng = np.random.default_rng(seed)
    decoder = tokenizer.decoder(1, num_bars=num_bars)
    ids = [BOS, *tokenizer.controls({"genre": "a", "num_bars": num_bars})]
    for token in ids:
        decoder.push([token])
    trace: dict[str, list[int]] = {name: [0] * len(ids) for name in tokenizer.feature_sizes}
    kinds = np.array([token.split("_")[0] for token in tokenizer.vocab])
    kinds[EOS] = "EOS"
    while not decoder.finished[0]:
        allowed = np.flatnonzero(decoder.allowed()[0])
        assert len(allowed), "a dead end"
        options = np.unique(kinds[allowed])
        if len(ids) > max_tokens:
            if kinds[ids[-1]] in ("NoteOff", "DrumOff") and num_bars is None:
                break  # a free walk through many programs would meet each open note again only by chance
            for wanted in ("EOS", "NoteOff", "DrumOff"):
                options = np.array([wanted]) if wanted in options else options
        kind = rng.choice(options)
        token = int(rng.choice(allowed[kinds[allowed] == kind]))
        ids.append(token)
        decoder.push([token])
        for name, value in decoder.features().items():
            trace[name].append(int(value[0]))
        assert len(ids) < 50 * max_tokens, "the walk does not end"
    return np.array(ids), trace


@each
@given(seed=seeds, num_bars=st.none() | st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_every_walk_decodes_to_a_piece(name: str, seed: int, num_bars: int | None) -> None:
    tokenizer = TOKENIZERS[name]
    ids, trace = walk(tokenizer, seed=seed, num_bars=num_bars)
    score = tokenizer.decode(ids)
    assert len(notes_of(score)) >= 1
    assert all(n.duration > 0 and n.time >= 0 and n.velocity > 0 for track in score.tracks for n in track.notes)
    base = tokenizer.expand(ids)
    starts = {"NoteOn", "DrumOn"} if tokenizer.scheme == "MIDILike" else {"Duration"}
    assert len(notes_of(score)) == sum(tokenizer.vocab[i].split("_")[0] in starts for i in base)
    for feature, values in tokenizer.features(ids).items():
        assert values.tolist() == trace[feature], feature
        assert 0 <= values.min() <= values.max() < tokenizer.feature_sizes[feature]


def test_a_note_that_rings_beyond_the_last_bar_of_octuple_is_held() -> None:
    score = Score(480)
    score.tracks.append(Track(notes=[Note(0, 480, 60, 80), Note(1920 * 63 + 960, 3840, 62, 80)]))
    tokenizer = TOKENIZERS["Octuple"]  # of 64 bars
    assert notes_of(tokenizer.decode(tokenizer.encode(score))) == notes_of(score)
    score.tracks[0].notes.append(Note(1920 * 64, 480, 64, 80))
    with pytest.raises(ValueError, match="the piece has 65 bars, Octuple holds 64"):
        tokenizer.encode(score)


@pytest.mark.parametrize("seed", [1, 18, 42])
@pytest.mark.parametrize("name", [*TOKENIZERS, "SATB", "SATB with bars"])
def test_a_walk_can_be_encoded_again(name: str, seed: int) -> None:
    grids = {"SATB": SatbGrid(genres=["a"]), "SATB with bars": SatbGrid(genres=["a"], bar_tokens=True)}
    tokenizer: Tokenizer = grids[name] if name in grids else TOKENIZERS[name]
    ids, _ = walk(tokenizer, seed=seed, num_bars=None if seed % 2 == 0 else 3)
    score = tokenizer.decode(ids)
    assert len(tokenizer.encode(score)) > 0
    assert len(notes_of(score)) > 0


def test_octuple_counts_positions_in_the_metre_of_their_own_bar() -> None:
    score = Score(480)
    score.time_signatures.extend([TimeSignature(0, 4, 4), TimeSignature(1920, 6, 16)])
    times = [0, 1920 + 240, 1920 + 720 + 120, 1920 + 1440]  # the second bar of 6/16 begins 720 ticks after the first
    score.tracks.append(Track(notes=[Note(time, 120, 60 + i, 80) for i, time in enumerate(times)]))
    tokenizer = TOKENIZERS["Octuple"]
    again = tokenizer.decode(tokenizer.encode(score))
    assert [note.time for note in again.tracks[0].notes] == times
    assert [(mark.time, mark.numerator, mark.denominator) for mark in again.time_signatures] == [(0, 4, 4), (1920, 6, 16)]


@pytest.mark.parametrize("name", ["REMI", "TSD", "MIDILike", "REMI merged", "TSD merged"])
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_a_walk_is_encoded_again_to_as_many_notes(name: str, seed: int) -> None:
    tokenizer = TOKENIZERS[name]
    ids, _ = walk(tokenizer, seed=seed, num_bars=None)
    score = tokenizer.decode(ids)
    again = tokenizer.decode(tokenizer.encode(score))
    drums_kept = [n for n in notes_of(score) if n[0] >= 0]
    assert [n[::2] for n in notes_of(again) if n[0] >= 0] == [n[::2] for n in drums_kept]


@each
@given(seed=seeds, num_bars=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_num_bars_is_kept(name: str, seed: int, num_bars: int) -> None:
    tokenizer = TOKENIZERS[name]
    ids, _ = walk(tokenizer, seed=seed, num_bars=num_bars)
    base = tokenizer.expand(ids)
    kinds = [tokenizer.vocab[i].split("_")[0] for i in base]
    if tokenizer.scheme == "REMI":
        closing = kinds[-2] == "Bar"
        assert kinds.count("Bar") - closing == num_bars
    elif tokenizer.scheme == "Octuple":
        bars = [int(tokenizer.vocab[i].split("_")[1]) for i in base if tokenizer.vocab[i].startswith("Bar")]
        assert max(bars) in (num_bars - 1, num_bars)
        assert bars.count(num_bars) <= 1
    else:
        onsets = [k for k, kind in enumerate(kinds) if kind in ("NoteOn", "DrumOn", "Pitch", "PitchDrum")]
        from etude.tokens.miditok_timeline import shift_time

        body = base[base >= tokenizer.first_body]
        bars_of = shift_time(body, tokenizer.table)[1]
        offset = len(base) - len(body) - 1  # specials and controls before the body; EOS after
        assert max(bars_of[k - offset] for k in onsets) <= num_bars - 1
        assert bars_of[-1] >= num_bars - 1


@each
@given(seed=seeds)
@example(seed=489)  # the metre changes while the last note rings
@example(seed=886)
@settings(max_examples=15, deadline=None)
def test_encoded_pieces_are_accepted_step_by_step(name: str, seed: int) -> None:
    tokenizer = TOKENIZERS[name]
    _accept(tokenizer, tokenizer.compress(tokenizer.encode(random_score(seed))))


def _accept(tokenizer: Tokenizer, ids: np.ndarray) -> None:
    decoder = tokenizer.decoder(1)
    features = tokenizer.features(ids)
    for k, token in enumerate(ids.tolist()):
        assert decoder.allowed()[0, token], f"{tokenizer.vocab[token]} is refused at {k}"
        decoder.push([token])
        for name, value in decoder.features().items():
            assert value[0] == features[name][k], f"{name} at {k}"
    assert decoder.allowed()[0, EOS]


def test_real_scores_are_accepted(shared_data: Path) -> None:
    paths = sorted((shared_data / "scores").glob("*/*.mid"))[::40] + sorted((shared_data / "scores").glob("*/*.mxl"))[::120]
    for path in paths:
        score = read_score(path)
        for name in ("REMI", "TSD", "MIDILike", "Octuple", "REMI merged"):
            tokenizer = TOKENIZERS[name]
            try:
                ids = tokenizer.encode(score)
            except ValueError as error:
                assert "raise max_bars" in str(error)
                continue
            _accept(tokenizer, tokenizer.compress(ids[:1500]) if "merged" in name else ids)


def test_a_chorale_of_music21_is_accepted() -> None:
    import music21

    from etude.music.notation import from_music21

    score = from_music21(music21.corpus.parse("bach/bwv66.6"))
    for name in ("REMI", "TSD", "MIDILike", "Octuple", "REMI merged"):
        tokenizer = TOKENIZERS[name]
        _accept(tokenizer, tokenizer.compress(tokenizer.encode(score)))


def test_merged_tokens_are_allowed_exactly_where_their_parts_are() -> None:
    merged, plain = TOKENIZERS["TSD merged"], TOKENIZERS["TSD"]
    ids = merged.encode(random_score(3))
    assert plain.vocab == merged.vocab[: merged.base_size]
    decoder = merged.decoder(1)
    for k, token in enumerate(merged.compress(ids).tolist()):
        allowed = decoder.allowed()[0]
        prefix = merged.expand(merged.compress(ids)[:k])
        if k % 7 == 0:
            for candidate in range(merged.base_size, len(merged), 11):
                assert allowed[candidate] == _follows(plain, prefix, merged.expand(np.array([candidate])))
        decoder.push([token])


def _follows(tokenizer: Tokenizer, prefix: np.ndarray, parts: np.ndarray) -> bool:
    decoder = tokenizer.decoder(1)
    for token in prefix.tolist():
        decoder.push([token])
    for token in parts.tolist():
        if not decoder.allowed()[0, token]:
            return False
        decoder.push([token])
    return True


def test_rows_of_a_batch_are_independent_and_finish_alone() -> None:
    tokenizer = TOKENIZERS["REMI"]
    ids = tokenizer.encode(random_score(1))
    batch, single = tokenizer.decoder(2), tokenizer.decoder(1)
    batch.push([PAD, CONT])  # the rows' prompts begin at different times
    for token in ids.tolist():
        batch.push([token, PAD])
        single.push([token])
        np.testing.assert_array_equal(batch.allowed()[0], single.allowed()[0])
    batch.push([EOS, PAD])
    assert batch.finished.tolist() == [True, False]
    assert np.flatnonzero(batch.allowed()[0]).tolist() == [PAD]
    with pytest.raises(ValueError, match="row 0"):
        batch.push([int(ids[0]), PAD])


def test_octuple_refuses_more_bars_than_it_holds() -> None:
    with pytest.raises(ValueError, match=r"num_bars is 65.*up to 64"):
        TOKENIZERS["Octuple"].decoder(1, num_bars=65)
