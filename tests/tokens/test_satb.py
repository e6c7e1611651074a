"""Laws of the four-voice grid: frames and scores survive the round trip, transposition commutes, walks decode."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Note, Score, TimeSignature, Track

from etude.tokens.grammar import BOS, CONT, EOS, PAD
from etude.tokens.satb import SatbGrid
from etude.tokens.satb_voices import metre, reduce_to_frames, runs
from etude.tokens.tokenizer import Tokenizer

PLAIN = SatbGrid(genres=["a"])
BARS = SatbGrid(genres=["a"], bar_tokens=True)
frames = st.lists(st.tuples(*[st.integers(59, 61).map(lambda p: -1 if p == 59 else p)] * 4), min_size=1, max_size=70)


def as_score(columns: list[list[tuple[int, int, int]]], *, step: int = 120) -> Score:
    """One track per list of (start, end, pitch) in steps."""
    score = Score(480)
    for column in columns:
        track = Track(program=52)
        track.notes.extend([Note((s) * step, (e - s) * step, p, 80) for s, e, p in column])
        score.tracks.append(track)
    score.time_signatures.append(TimeSignature(0, 4, 4))
    return score


@given(frames=frames)
def test_frames_survive_the_round_trip(frames: list[tuple[int, ...]]) -> None:
    for tokenizer in (PLAIN, BARS):
        ids = tokenizer.encode_frames(np.array(frames))
        np.testing.assert_array_equal(tokenizer.decode_frames(ids), frames)


def test_the_plain_grid_has_one_token_per_voice_and_step() -> None:
    ids = PLAIN.encode_frames(np.array([[72, 67, 60, 48], [72, -1, 60, 48]]))
    assert [PLAIN.vocab[i] for i in ids] == [
        *("Pitch_72", "Pitch_67", "Pitch_60", "Pitch_48", "Pitch_72", "Rest", "Pitch_60", "Pitch_48")
    ]


@given(seed=st.integers(0, 2**31 - 1), num_frames=st.integers(1, 60))
@settings(max_examples=30)
def test_scores_survive_the_round_trip(seed: int, num_frames: int) -> None:
    rng = np.random.default_rng(seed)
    grid = np.sort(rng.integers([70, 60, 50, 40], [80, 70, 60, 50], size=(num_frames, 4)))[:, ::-1]
    score = as_score([runs(grid[:, voice]) for voice in range(4)])
    ids = PLAIN.encode(score)
    np.testing.assert_array_equal(PLAIN.decode_frames(ids), grid)
    again = PLAIN.encode(PLAIN.decode(ids))
    np.testing.assert_array_equal(again, ids)


def test_voices_are_ordered_by_pitch_and_quantised() -> None:
    score = as_score([[(0, 4, 40)], [(0, 4, 70)], [(0, 4, 60)], [(0, 4, 50)]], step=117)
    assert PLAIN.decode_frames(PLAIN.encode(score)).tolist() == [[70, 60, 50, 40]] * 4


def test_a_brief_divisi_keeps_the_outer_note() -> None:
    outer = [[(0, 40, 70)], [(0, 40, 60)], [(0, 40, 50)], [(0, 39, 40), (39, 40, 40), (39, 40, 28 + 8)]]
    grid = PLAIN.decode_frames(PLAIN.encode(as_score(outer)))
    assert grid[-1].tolist() == [70, 60, 50, 36]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ([[(0, 4, 60)]], "found 1 tracks"),
        ([[(0, 4, 60)]] * 5, "found 5 tracks"),
        ([[(0, 4, 60), (0, 4, 64)], [(0, 4, 55)], [(0, 4, 50)], [(0, 4, 40)]], "found 5 voices"),
    ],
)
def test_other_textures_are_refused_with_the_remedy(columns: list[list[tuple[int, int, int]]], found: str) -> None:
    with pytest.raises(ValueError, match=f"{found}.*tokenizer=remi"):
        PLAIN.encode(as_score(columns))


def test_pitches_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pitches span 20-70.*31-88"):
        PLAIN.encode_frames(np.array([[70, 60, 50, 20]]))


def test_a_prompt_of_any_texture_is_reduced() -> None:
    chord = [(0, 4, 100), (0, 4, 64), (0, 4, 62), (0, 4, 60), (0, 4, 20)]
    score = as_score([chord])
    assert PLAIN.decode_frames(PLAIN.encode_prompt(score)).tolist() == [[88, 64, 60, 32]] * 4
    assert reduce_to_frames(as_score([[(0, 1, 60)]]), steps_per_beat=4, low=31, high=88).tolist() == [[60, -1, -1, -1]]


def test_decoding_merges_repeats_into_held_notes() -> None:
    score = PLAIN.decode(PLAIN.encode_frames(np.array([[60, -1, -1, -1]] * 20)))
    (track,) = score.tracks
    assert [(n.time, n.duration, n.pitch) for n in track.notes] == [(0, 20 * 120, 60)]


@given(frames=frames, shift=st.integers(-40, 40))
def test_transposition_commutes_with_encoding(frames: list[tuple[int, ...]], shift: int) -> None:
    grid = np.array(frames)
    ids = BARS.encode_frames(grid)
    moved = BARS.transposition(shift)[ids]
    pitches = grid[grid >= 0] + shift
    if pitches.size and (pitches.min() < BARS.low or pitches.max() > BARS.high):
        assert (moved == -1).any()
    else:
        np.testing.assert_array_equal(BARS.encode_frames(np.where(grid < 0, -1, grid + shift)), moved)


def test_features_are_step_and_voice() -> None:
    ids = np.concatenate([[BOS], PLAIN.encode_frames(np.full((18, 4), 60)), [EOS, PAD]])
    features = PLAIN.features(ids)
    assert features["voice"].tolist() == [0, *([1, 2, 3, 4] * 18), 0, 0]
    assert features["position"].tolist() == [0, *np.repeat([*range(1, 17), 1, 2], 4).tolist(), 0, 0]
    starts = BARS.encode_frames(np.full((6, 4), 60), bar_starts=[0, 2, 5])
    assert BARS.bar_starts(starts).tolist() == [0, 9, 22]
    assert BARS.features(starts)["position"][:10].tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2, 1]
    assert PLAIN.bar_starts(ids).tolist() == [1, 65]


def num_sounding(track: Track) -> int:
    """Ticks in which a voice sounds."""
    return int(track.notes.numpy()["duration"].sum())


@given(seed=st.integers(0, 2**31 - 1), num_bars=st.none() | st.integers(1, 3), bars=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_walk_decodes(seed: int, num_bars: int | None, bars: bool) -> None:
    tokenizer = BARS if bars else PLAIN
    rng = np.random.default_rng(seed)
    rests = rng.random() < 0.5  # a walk that rests wherever it may
    decoder = tokenizer.decoder(1, num_bars=num_bars)
    ids = [BOS, *tokenizer.controls({"genre": "a", "key": "G major", "num_bars": num_bars})]
    for token in ids:
        decoder.push([token])
    trace = {name: [0] * len(ids) for name in tokenizer.feature_sizes}
    while not decoder.finished[0]:
        allowed = decoder.allowed()[0]
        token = int(rng.choice(np.flatnonzero(allowed)))
        if rests and allowed[tokenizer.rest_id]:
            token = tokenizer.rest_id
        if len(ids) > 1000 and allowed[EOS]:
            token = EOS
        rests = rests and len(ids) < 800
        ids.append(token)
        decoder.push([token])
        for name, value in decoder.features().items():
            trace[name].append(int(value[0]))
    score = tokenizer.decode(ids)
    again = tokenizer.decode(tokenizer.encode(score))  # what is drawn can be encoded again
    assert sorted(map(num_sounding, again.tracks)) == sorted(map(num_sounding, score.tracks)) and len(score.tracks) == 4
    for name, values in tokenizer.features(np.array(ids)).items():
        assert values.tolist() == trace[name], name
        assert values.max() < tokenizer.feature_sizes[name]
    if num_bars is not None:
        assert len(tokenizer.bar_starts(np.array(ids))) == num_bars


def test_a_token_that_cannot_follow_is_refused() -> None:
    decoder = PLAIN.decoder(2)
    decoder.push([CONT, BOS])
    with pytest.raises(ValueError, match="row 1"):
        BARS.decoder(2).push([BARS.bar_id, BARS.rest_id])
    with pytest.raises(ValueError, match="num_bars is 0"):
        PLAIN.decoder(1, num_bars=0)


def test_the_state_rebuilds_the_tokenizer() -> None:
    again = Tokenizer.from_state(json.loads(json.dumps(BARS.state_dict())))
    assert again.fingerprint == BARS.fingerprint
    assert len({t.fingerprint for t in (PLAIN, BARS, SatbGrid(genres=["b"]), SatbGrid(genres=["a"], low=30))}) == 4


@pytest.mark.parametrize(("length", "expected"), [(16, (4, 4)), (12, (3, 4)), (6, (3, 8)), (3, (3, 16)), (4, (1, 4))])
def test_metre_of_a_bar(length: int, expected: tuple[int, int]) -> None:
    assert metre(length, steps_per_beat=4) == expected


def test_the_benchmark_is_encoded_whole(shared_data: Path) -> None:
    splits = json.loads((shared_data / "jsb" / "Jsb16thSeparated.json").read_text())
    for piece in splits["valid"]:
        ids = PLAIN.encode_frames(np.array(piece))
        assert len(ids) == 4 * len(piece)
        np.testing.assert_array_equal(PLAIN.decode_frames(ids), piece)
    decoder = PLAIN.decoder(1)
    for token in [BOS, *ids.tolist(), EOS]:
        decoder.push([token])


@pytest.mark.parametrize(
    ("asked", "steps", "written"),
    [
        ("6/8", 12, (6, 8)),
        ("3/4", 12, (3, 4)),
        ("12/8", 24, (12, 8)),
        ("2/2", 16, (2, 2)),
        ("4/2", 32, (4, 2)),
        ("6/8", 16, (4, 4)),
    ],
)
def test_a_metre_that_was_asked_for_is_written_where_its_bars_are_as_long(
    asked: str, steps: int, written: tuple[int, int]
) -> None:
    BARS.check_request({"metre": asked})
    body = BARS.encode_frames(np.full((3 * steps, 4), 60), bar_starts=np.arange(3) * steps)
    for tokenizer, ids in ((BARS, body), (SatbGrid(genres=["a"], bar_steps=steps), body[body != BARS.bar_id])):
        marks = tokenizer.decode(np.concatenate([tokenizer.controls({"metre": asked}), ids])).time_signatures
        assert [(mark.time, mark.numerator, mark.denominator) for mark in marks] == [(0, *written)]


@pytest.mark.parametrize(("asked", "written"), [("8/8", "4/4"), ("6/16", "3/8"), ("12/16", "3/4")])
def test_a_metre_without_a_token_that_is_written_as_another_is_refused(asked: str, written: str) -> None:
    with pytest.raises(ValueError, match=f"metre={asked}: .* as {written}; ask for metre={written}.*tokenizer=remi"):
        BARS.check_request({"metre": asked})
    BARS.check_request({"metre": "7/8"})  # a rare one that the grid writes
