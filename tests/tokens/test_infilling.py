"""Laws of holes: nothing is lost, the model sees what the decoder says, and what is written fits the hole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Note, Score, TimeSignature, Track

from etude.music.passages import Passage
from etude.music.score import bar_ticks
from etude.tokens.grammar import EOS, Decoder
from etude.tokens.infilling import Bars, Hole, reordered, uncounted
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_vocabulary import AHEAD, BACK, BAR, PITCH, PITCH_DRUM
from etude.tokens.open_holes import hole_decoder, open_hole, track_owners, tracks_of
from etude.tokens.remi_grammar import RemiGrammar
from etude.tokens.restricted_grammar import RestrictedGrammar
from etude.tokens.restrictions import Restrictions, owners_of_programs
from etude.tokens.tokenizer import Tokenizer
from tests.music.pieces import notes_of, random_score

TOKENIZER = MidiTokTokenizer(parts=8, infill=True)
EXPLICIT = MidiTokTokenizer(parts=8, infill=True, program_changes=False)
each = pytest.mark.parametrize("tokenizer", [TOKENIZER, EXPLICIT], ids=["changes", "explicit"])
seeds = st.integers(0, 2**31 - 1)


def quartet(bars: int = 6) -> Score:
    score = Score(480)
    score.time_signatures.append(TimeSignature(0, 3, 4))
    for name, program, pitch in (("First", 40, 76), ("Second", 40, 67), ("Viola", 41, 60), ("Cello", 42, 48)):
        track = Track(name=name, program=program)
        for beat in range(3 * bars):
            track.notes.append(Note(480 * beat, 480, pitch + beat % 5, 71))
        score.tracks.append(track)
    return score


def notes(tokenizer: MidiTokTokenizer, ids: np.ndarray) -> list[tuple[int, ...]]:
    """Owner, pitch, velocity and duration of each note, in the order of the ids."""
    bars = Bars(ids, tokenizer.table)
    found = np.flatnonzero(np.isin(bars.kind, (PITCH, PITCH_DRUM)))
    return [(*bars.owner[i], *ids[i : i + 3].tolist()) for i in found.tolist()]


@each
@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_holes_lose_no_note_and_no_bar(tokenizer: MidiTokTokenizer, seed: int) -> None:
    ids = tokenizer.encode(random_score(seed))
    made, again = (tokenizer.infilled(ids, seed=seed, most_tokens=400) for _ in range(2))
    assert all(np.array_equal(getattr(made, name), getattr(again, name)) for name in ("ids", "cuts", "positions"))
    changed, cuts = made.ids, made.cuts
    assert sorted(notes(tokenizer, changed)) == sorted(notes(tokenizer, ids))
    assert set(cuts.tolist()) <= set(np.flatnonzero(np.isin(tokenizer.table.kind[changed], (BAR, AHEAD))).tolist())
    moved = tokenizer.transposition(2)
    if (moved[ids] >= 0).all():
        assert np.array_equal(tokenizer.infilled(moved[ids], seed=seed, most_tokens=400).ids, moved[changed])


@each
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_no_holes_change_nothing(tokenizer: MidiTokTokenizer, seed: int) -> None:
    ids = tokenizer.encode(random_score(seed))
    same = reordered(Bars(ids, tokenizer.table), [], program_changes=tokenizer.program_changes)
    assert np.array_equal(same.ids, ids) and np.array_equal(same.positions, np.arange(len(ids)))
    assert np.array_equal(same.cuts, tokenizer.bar_starts(ids))


@each
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_features_in_training_are_those_in_sampling(tokenizer: MidiTokTokenizer, seed: int) -> None:
    ids = tokenizer.infilled(tokenizer.encode(random_score(seed)), seed=seed, most_tokens=400).ids
    base = RemiGrammar(tokenizer.table, program_changes=tokenizer.program_changes)
    grammar = RestrictedGrammar(base, tokenizer.table, Restrictions(free=len(ids)))
    decoder = Decoder(grammar, batch=1, first_body=tokenizer.first_body)
    expected = tokenizer.features(ids)
    for i, token in enumerate(ids.tolist()):
        decoder.push([token])
        assert {name: int(values[0]) for name, values in decoder.features().items()} == {
            n: int(v[i]) for n, v in expected.items()
        }


def test_a_hole_of_one_track_by_hand() -> None:
    ids = TOKENIZER.encode(quartet(bars=3))
    bars = Bars(ids, TOKENIZER.table)
    hole = Hole(1, 2, 3, frozenset({(40, 1)}))
    made = reordered(bars, [hole], program_changes=True)
    changed, cuts = made.ids, made.cuts
    words = [TOKENIZER.vocab[i] for i in changed.tolist()]
    at, back = words.index("Ahead_None"), words.index("Back_None")
    assert words[:at] == [TOKENIZER.vocab[i] for i in ids[: bars.starts[1]].tolist()]
    assert words[back + 1 : back + 5] == ["Program_40", "Part_1", "Bar_None", "TimeSig_3/4"]
    assert words[at:back].count("Bar_None") == 2 and words[back:].count("Bar_None") == 1
    assert [owner for *owner, _, _, _ in notes(TOKENIZER, changed[back:])] == [[40, 1]] * 3
    assert cuts.tolist() == [0, at]
    assert made.positions[: at + 1].tolist() == list(range(at + 1))
    assert made.positions[back] == at + 1 and made.positions[at + 1] == at + 1 + bars.size(1, 2)  # all bars are equally long
    skipped = uncounted(changed, TOKENIZER.table)
    assert np.flatnonzero(skipped).tolist() == [at, back, back + 1, back + 2]


def fill(tokenizer: MidiTokTokenizer, decoder: Decoder, opening: np.ndarray, seed: int) -> list[int]:
    """Writes what is missing at random, among what the decoder allows."""
    random, ids = np.random.default_rng(seed), []
    for token in opening.tolist():
        decoder.push([token])
    while not decoder.finished[0] and len(ids) < 2000:
        allowed = np.flatnonzero(decoder.allowed()[0])
        ends = [token for token in allowed.tolist() if token == EOS or tokenizer.table.kind[token] == BAR]
        ids.append(ends[0] if ends and random.random() < 0.5 else int(random.choice(allowed)))
        decoder.push([ids[-1]])
    return ids


@each
@given(seed=seeds, start=st.integers(0, 4), length=st.integers(1, 3), track=st.sampled_from([None, 0, 1, 3]))
@settings(max_examples=25, deadline=None)
def test_whatever_is_written_fits_the_hole(
    tokenizer: MidiTokTokenizer, seed: int, start: int, length: int, track: int | None
) -> None:
    score = quartet()
    passage = Passage(start, min(start + length, 6), None if track is None else (track,))
    hole = open_hole(tokenizer, score, passage, ahead=2, most_tokens=10_000)
    ids = fill(tokenizer, hole_decoder(tokenizer, hole, batch=1), hole.ids, seed)
    body = np.array([i for i in ids if i >= tokenizer.first_body])
    kinds = tokenizer.table.kind[body]
    assert ids[-1] == EOS and passage.end - passage.start <= (kinds == BAR).sum() <= passage.end - passage.start + 1
    written = {owner for owner in Bars(body, tokenizer.table).owners for owner in owner}
    assert track is None or written <= {track_owners(score, parts=8)[track]}
    assert {tokenizer.vocab[i] for i in body if tokenizer.vocab[i].startswith("TimeSig")} <= {"TimeSig_3/4"}


def test_the_opening_leaves_out_what_is_too_far_before_it() -> None:
    whole = open_hole(TOKENIZER, quartet(), Passage(4, 5), ahead=1, most_tokens=10_000)
    short = open_hole(TOKENIZER, quartet(), Passage(4, 5), ahead=1, most_tokens=150)
    assert not whole.inside and short.inside
    assert len(short.ids) <= 150 and np.array_equal(short.ids[-20:], whole.ids[-20:])


def test_tracks_of_one_program_stay_apart() -> None:
    score = quartet()
    decoded = TOKENIZER.decode(TOKENIZER.encode(score))
    assert [(track.program, track.name) for track in decoded.tracks] == [
        (40, "Violin 1"), (40, "Violin 2"), (41, "Viola"), (42, "Cello"),
    ]  # fmt: skip
    for before, after in zip(score.tracks, decoded.tracks, strict=True):
        assert [(n.time, n.pitch) for n in before.notes] == [(n.time, n.pitch) for n in after.notes]
    assert np.array_equal(TOKENIZER.encode(decoded), TOKENIZER.encode(score))
    assert set(tracks_of(TOKENIZER, TOKENIZER.encode(score).tolist())) == {(40, 0), (40, 1), (41, 0), (42, 0)}


def test_tracks_beyond_the_parts_share_the_last_one() -> None:
    score = quartet()
    for track in score.tracks:
        track.program = 40
    two = MidiTokTokenizer(parts=2)
    assert [len(track.notes) for track in two.decode(two.encode(score)).tracks] == [18, 54]
    assert len(notes_of(two.decode(two.encode(score)))) == len(notes_of(score))


def test_a_tokenizer_of_before_has_the_same_vocabulary() -> None:
    state = MidiTokTokenizer(genres=["folk"]).state_dict()
    assert "parts" not in state["params"] and "infill" not in state["params"]
    again = Tokenizer.from_state(TOKENIZER.state_dict())
    assert isinstance(again, MidiTokTokenizer) and again.can_infill and again.fingerprint == TOKENIZER.fingerprint


def test_programs_and_metre_that_are_asked_for_are_all_that_is_written() -> None:
    labels = {"programs": [40, 40, -1], "metre": "6/8", "tempo_bpm": 90}
    decoder = TOKENIZER.decoder(1, num_bars=4, labels=labels)
    body = [i for i in fill(TOKENIZER, decoder, np.array([], int), seed=3) if i >= TOKENIZER.first_body]
    words = {TOKENIZER.vocab[i] for i in body}
    assert {w for w in words if w.startswith("TimeSig")} == {"TimeSig_6/8"}
    assert {w for w in words if w.startswith("Program")} <= {"Program_40", "Program_-1"}
    assert {w for w in words if w.startswith("Part")} <= {"Part_1"}
    assert len({w for w in words if w.startswith("Tempo")}) <= 1
    assert owners_of_programs([40, 40, 128], parts=8) == {(40, 0), (40, 1), (-1, 0)}
    with pytest.raises(ValueError, match="more than 1 times"):
        owners_of_programs([40, 40], parts=1)


def test_a_prompt_goes_on_with_its_own_tracks() -> None:
    prompt = TOKENIZER.encode(quartet(2))
    decoder = TOKENIZER.decoder(1, num_bars=4, prompt=prompt)
    written = fill(TOKENIZER, decoder, prompt, seed=1)
    bars = Bars(np.array([i for i in [*prompt.tolist(), *written] if i >= TOKENIZER.first_body]), TOKENIZER.table)
    assert frozenset().union(*bars.owners) <= {(40, 0), (40, 1), (41, 0), (42, 0)}
    assert len(bar_ticks(quartet(2))) == 2 and len(bars) >= 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"parts": 0}, "parts is 0"), ({"scheme": "TSD", "parts": 2}, "and 1 with TSD"),
        ({"scheme": "TSD", "infill": True}, "infill=true"),
        ({"infill": True, "bpe_vocab_size": 900}, "without byte pairs"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MidiTokTokenizer(**options)  # type: ignore[arg-type]


def test_back_is_a_token_of_its_own() -> None:
    table = TOKENIZER.table
    assert len(table.of_kind[AHEAD]) == len(table.of_kind[BACK]) == 1
    with pytest.raises(ValueError, match="no tokens for infilling"):
        MidiTokTokenizer(scheme="TSD").infilled(np.array([1]), seed=1, most_tokens=10)
