"""Laws of MidiTok's schemes: round trips, augmentation maps, features, byte pairs, state."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.music.augmentation import transpose
from etude.music.score import bar_ticks, read_score
from etude.tokens.grammar import BOS, EOS
from etude.tokens.miditok import SCHEMES, MidiTokTokenizer
from etude.tokens.miditok_preparation import metres, supported_metre
from etude.tokens.tokenizer import Tokenizer
from tests.music.pieces import notes_of, random_score

TOKENIZERS = {scheme: MidiTokTokenizer(genres=["folk", "jazz"], scheme=scheme) for scheme in SCHEMES}
EXPLICIT = {f"{s} explicit": MidiTokTokenizer(scheme=s, program_changes=False) for s in SCHEMES[:3]}
PLANNED = {"REMI with a plan": MidiTokTokenizer(genres=["folk"], parts=2, infill=True, form=True)}
ALL = TOKENIZERS | EXPLICIT | PLANNED
seeds = st.integers(0, 2**31 - 1)
each = pytest.mark.parametrize("name", ALL)


def one_note(*, metre: tuple[int, int] = (4, 4), time: int = 0, tempo: float = 120.0) -> Score:
    score = Score(480)
    score.time_signatures.append(TimeSignature(0, *metre))
    score.tempos.append(Tempo(0, qpm=tempo))
    score.tracks.append(Track(program=40))
    score.tracks[0].notes.append(Note(time, 160, 60, 64))
    return score


@each
@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_decoding_then_encoding_gives_the_same_tokens(name: str, seed: int) -> None:
    tokenizer, score = ALL[name], random_score(seed)
    ids = tokenizer.encode(score)
    again = tokenizer.decode(ids)
    assert len(notes_of(again)) == len(notes_of(score))
    if name != "Octuple":  # which can't place a metre that changes in a bar without an onset
        np.testing.assert_array_equal(tokenizer.encode(again), ids)


@each
@given(seed=seeds, grid=st.sampled_from([120, 160]))
@settings(max_examples=15, deadline=None)
def test_sixteenths_and_triplets_are_exact(name: str, seed: int, grid: int) -> None:
    rng = np.random.default_rng(seed)
    score = one_note()
    for time in rng.integers(0, 60, size=12).tolist():
        score.tracks[0].notes.append(Note(time * grid, 120, int(rng.integers(61, 90)), 64))
    assert notes_of(ALL[name].decode(ALL[name].encode(score))) == notes_of(score)


@each
@given(seed=seeds, semitones=st.integers(-39, 39))
@settings(max_examples=25, deadline=None)
def test_transposition_commutes_with_encoding(name: str, seed: int, semitones: int) -> None:
    tokenizer, score = ALL[name], random_score(seed)
    moved = tokenizer.encode(transpose(score, semitones))
    np.testing.assert_array_equal(tokenizer.transposition(semitones)[tokenizer.encode(score)], moved)


def test_transposition_out_of_range_is_marked() -> None:
    tokenizer = TOKENIZERS["REMI"]
    ids = tokenizer.encode(one_note())
    assert (tokenizer.transposition(67)[ids] >= 0).all()
    assert (tokenizer.transposition(68)[ids] == -1).sum() == 1
    assert tokenizer.pitch_range(ids) == (60, 60)


@each
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_maps_compose_and_leave_structure_alone(name: str, seed: int) -> None:
    tokenizer = ALL[name]
    ids = tokenizer.encode(random_score(seed))
    up, down = tokenizer.transposition(5), tokenizer.transposition(-5)
    np.testing.assert_array_equal(down[up[ids]], ids)
    louder = tokenizer.decode(tokenizer.velocity_scaling(3)[ids])
    assert notes_of(louder) == notes_of(tokenizer.decode(ids))
    assert tokenizer.velocity_scaling(0)[ids].tolist() == tokenizer.tempo_scaling(1.0)[ids].tolist() == ids.tolist()


def test_tempo_scaling_moves_by_the_factor() -> None:
    for tokenizer in TOKENIZERS.values():
        ids = tokenizer.encode(one_note(tempo=60))
        assert tokenizer.decode(tokenizer.tempo_scaling(2.0)[ids]).tempos[0].qpm == pytest.approx(120, rel=1e-3)
        assert tokenizer.decode(tokenizer.tempo_scaling(100.0)[ids]).tempos[0].qpm == pytest.approx(240, rel=1e-3)
    controls = tokenizer.controls({"tempo_bpm": 113, "key": "Bb major"})
    assert [tokenizer.vocab[i] for i in tokenizer.tempo_scaling(0.5)[controls]] == ["key:Bb major", "tempo:57"]
    assert [tokenizer.vocab[i] for i in tokenizer.transposition(3)[controls]] == ["key:C# major", "tempo:113"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bar_starts_follow_the_metre(scheme: str) -> None:
    score = one_note(metre=(3, 4))
    for bar in range(1, 6):
        score.tracks[0].notes.append(Note(bar * 1440, 480, 62, 64))
    tokenizer = TOKENIZERS[scheme]
    ids = tokenizer.encode(score)
    starts = tokenizer.bar_starts(ids)
    assert len(starts) == 6
    assert starts[0] == 0
    position = tokenizer.features(ids)["position"]
    assert (position[starts[1:]] == 1).all()


def test_the_position_is_in_twelfths_of_a_quarter_whatever_the_metre() -> None:
    for metre, expected in (((4, 4), 5), ((6, 8), 5), ((2, 2), 5), ((7, 16), 5)):
        for tokenizer in TOKENIZERS.values():
            ids = tokenizer.encode(one_note(metre=metre, time=160))
            features = tokenizer.features(ids)
            assert features["position"][tokenizer.table.kind[ids] == 13].tolist() == [expected]  # the velocity token
            assert features["voice"].max() == 6  # strings


def test_a_bar_cut_short_keeps_the_bar_lines_after_it() -> None:
    score = one_note()
    score.time_signatures.append(TimeSignature(1920 + 480, 3, 4))
    score.tracks[0].notes.append(Note(1920 + 480 + 1440, 480, 60, 64))
    assert [(m.time, m.numerator, m.denominator) for m in metres(score)] == [(0, 4, 4), (1920, 1, 4), (2400, 3, 4)]
    tokenizer = TOKENIZERS["REMI"]
    ids = tokenizer.encode(score)
    assert len(tokenizer.bar_starts(ids)) == len(bar_ticks(score)) == 4
    assert notes_of(tokenizer.decode(ids)) == notes_of(score)


@pytest.mark.parametrize(("metre", "expected"), [((2, 2), (4, 4)), ((3, 1), (12, 4)), ((18, 8), (9, 4)), ((4, 32), (2, 16))])
def test_metres_are_rewritten_to_equal_bars(metre: tuple[int, int], expected: tuple[int, int]) -> None:
    assert supported_metre(*metre) == expected


def test_what_cannot_be_written_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"metre 17/8.*shorter bars"):
        TOKENIZERS["REMI"].encode(one_note(metre=(17, 8)))
    with pytest.raises(ValueError, match="no notes"):
        TOKENIZERS["REMI"].encode(Score(480))
    with pytest.raises(ValueError, match="raise max_bars"):
        TOKENIZERS["Octuple"].encode(one_note(time=1920 * 600))
    with pytest.raises(ValueError, match="scheme is 'ABC'; valid: REMI"):
        MidiTokTokenizer(scheme="ABC")
    cymbals = one_note()
    cymbals.tracks[0].is_drum, cymbals.tracks[0].notes[0].pitch = True, 100
    for tokenizer in TOKENIZERS.values():
        with pytest.raises(ValueError, match="drum notes outside 27-88"):
            tokenizer.encode(cymbals)


@each
@given(seed=seeds, share=st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_a_sequence_broken_off_anywhere_decodes(name: str, seed: int, share: float) -> None:
    tokenizer, score = ALL[name], random_score(seed)
    ids = tokenizer.encode(score)
    part = tokenizer.decode(np.concatenate([[BOS], tokenizer.controls({"key": "a minor"}), ids[: int(share * len(ids))]]))
    assert len(notes_of(part)) <= len(notes_of(score))
    assert all(note.duration > 0 for track in part.tracks for note in track.notes)


def test_a_tempo_control_sets_the_tempo_where_the_body_has_none() -> None:
    tokenizer = TOKENIZERS["TSD"]
    ids = tokenizer.encode(one_note(tempo=60))
    control = tokenizer.controls({"tempo_bpm": 80})
    assert tokenizer.decode([BOS, *control, *ids]).tempos[0].qpm == pytest.approx(60, rel=1e-3)
    body = ids[[not tokenizer.vocab[i].startswith("Tempo") for i in ids]]
    assert tokenizer.decode([BOS, *control, *body]).tempos[0].qpm == pytest.approx(80, rel=1e-3)


# --- byte pairs ---


@pytest.mark.parametrize("name", ["REMI", "TSD", "MIDILike", "Octuple"])
def test_compression_is_inverted_by_expansion(name: str) -> None:
    tokenizer = MidiTokTokenizer(genres=["a"], scheme=name, bpe_vocab_size=len(TOKENIZERS[name]) + 60)
    pieces = [tokenizer.encode(random_score(seed)) for seed in range(20)]
    before = tokenizer.fingerprint
    tokenizer.train_bpe(pieces)
    assert len(tokenizer) == len(TOKENIZERS[name]) + 60 == len(tokenizer.vocab)
    assert tokenizer.fingerprint != before
    assert sum(len(tokenizer.compress(base)) for base in pieces) < 0.95 * sum(map(len, pieces))
    for base in pieces:
        ids = np.concatenate([[BOS], tokenizer.controls({"genre": "a"}), base, [EOS]]).astype(np.int32)
        merged = tokenizer.compress(ids)
        assert len(merged) <= len(ids)
        np.testing.assert_array_equal(tokenizer.expand(merged), ids)
        assert notes_of(tokenizer.decode(merged)) == notes_of(tokenizer.decode(base))
        ends = np.cumsum([len(tokenizer.expand(merged[i : i + 1])) for i in range(len(merged))]) - 1
        for feature, values in tokenizer.features(merged).items():
            np.testing.assert_array_equal(values, tokenizer.features(ids)[feature][ends])
    assert tokenizer.transposition(1).shape == (tokenizer.base_size,)
    again = Tokenizer.from_state(json.loads(json.dumps(tokenizer.state_dict())))
    assert again.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(again.compress(ids), merged)


def test_no_merge_reaches_over_a_bar_line() -> None:
    tokenizer = MidiTokTokenizer(bpe_vocab_size=1000)
    pieces = [tokenizer.encode(random_score(seed)) for seed in range(20)]
    tokenizer.train_bpe(pieces)
    assert all("Bar_None" not in token.split("+")[1:] for token in tokenizer.vocab)
    for base in pieces:
        assert len(tokenizer.bar_starts(tokenizer.compress(base))) == len(tokenizer.bar_starts(base))
    with pytest.raises(ValueError, match="vocab_size is 10"):
        tokenizer.train_bpe(pieces, vocab_size=10)
    with pytest.raises(ValueError, match="vocab_size is None"):
        TOKENIZERS["REMI"].train_bpe(pieces)


# --- state ---


def test_the_state_rebuilds_the_tokenizer_and_parameters_change_the_fingerprint() -> None:
    tokenizer = TOKENIZERS["REMI"]
    again = Tokenizer.from_state(json.loads(json.dumps(tokenizer.state_dict())))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.vocab == tokenizer.vocab
    others = [MidiTokTokenizer(genres=["folk", "jazz"], **changed) for changed in ({"num_velocities": 8}, {"max_bars": 9})]
    assert len({t.fingerprint for t in (*others, *ALL.values())}) == len(others) + len(ALL)


def test_real_scores_survive(shared_data: Path) -> None:
    for path in sorted((shared_data / "scores").glob("*/*.mid"))[:12:3]:
        score = read_score(path)
        for tokenizer in ALL.values():
            ids = tokenizer.encode(score)
            again = tokenizer.decode(ids)
            assert len(notes_of(again)) == len(notes_of(score))
            np.testing.assert_array_equal(tokenizer.encode(again), ids)
