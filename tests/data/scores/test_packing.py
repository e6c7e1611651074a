"""Laws of packing and batches: every token once a pass, whatever the workers, ranks and interruptions."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from etude.data.scores.batches import PackedRows, RowSampler, evaluation_batches
from etude.data.scores.documents import Augmentation, Documents
from etude.data.scores.packing import COUNTED, EMPTY_PLAN, FINAL, NUMBER, PIECE, START, STOP, VARIATION, Packer, slots
from etude.tokens.satb import SatbGrid
from tests.data.scores.pieces import bodies_of, view_of

TOKENIZER = SatbGrid(genres=["folk"], bar_steps=4)
LENGTHS = [int(n) for n in np.random.default_rng(1).integers(6, 90, 150)]
VARIED = Augmentation(transpose=(-5, 6), control_dropout=0.5)


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    view = view_of(tmp_path / "store", list(bodies_of(LENGTHS, TOKENIZER)), tokenizer=TOKENIZER)
    return Documents(view, TOKENIZER, augmentation=VARIED, seed=3)


def plain(documents: Documents) -> Documents:
    return Documents(documents.view, TOKENIZER, augmentation=Augmentation(), seed=3)


def covered(plans: list[np.ndarray], number: int) -> Counter[tuple[int, int]]:
    """How often each (piece, body token) is counted in pass `number`."""
    tokens: Counter[tuple[int, int]] = Counter()
    for document in np.concatenate(plans):
        if document[NUMBER] == number:
            tokens.update((int(document[PIECE]), at) for at in range(document[COUNTED], document[STOP]))
    return tokens


@pytest.mark.parametrize("max_len", [64, 200, 500])
def test_each_token_exactly_once_per_pass(documents: Documents, max_len: int) -> None:
    packer = Packer(documents, max_len)
    rows, plans = iter(packer), []
    while packer.number < 2 or packer.waiting[:, NUMBER].min() < 2:
        plans.append(next(rows))
    everything = Counter({(piece, at): 1 for piece, frames in enumerate(LENGTHS) for at in range(4 * frames)})
    assert all(covered(plans, number) == everything for number in (0, 1))
    ends = Counter(int(d[PIECE]) for d in np.concatenate(plans) if d[FINAL] and d[NUMBER] == 0)
    assert ends == Counter(range(len(LENGTHS)))


@pytest.mark.parametrize(("max_len", "allowed"), [(200, 0.05), (500, 0.02), (1000, 0.01)])
def test_rows_fit_and_hold_little_padding(documents: Documents, max_len: int, allowed: float) -> None:
    rows = iter(Packer(documents, max_len))
    used = [int(slots(next(rows)).sum()) for _ in range(200)]
    assert max(used) <= max_len
    assert 1 - np.mean(used) / max_len <= allowed


def test_training_windows_begin_at_bars(documents: Documents) -> None:
    rows = iter(Packer(documents, 100))
    for document in np.concatenate([next(rows) for _ in range(300)]):
        bars = documents.bars(int(document[PIECE]), document[VARIATION:])
        assert document[START] in (0, *bars)


def test_order_differs_between_passes_and_seeds(documents: Documents) -> None:
    def first(seed: int, rows: int) -> list[int]:
        other = Documents(documents.view, TOKENIZER, augmentation=VARIED, seed=seed)
        stream = iter(Packer(other, 300))
        return np.concatenate([next(stream) for _ in range(rows)])[:, PIECE].tolist()

    assert first(1, 20) == first(1, 20)
    assert first(1, 20) != first(2, 20)


def test_state_continues_the_stream(documents: Documents) -> None:
    straight, stopped = Packer(documents, 300), Packer(documents, 300)
    whole = iter(straight)
    rows = [next(whole) for _ in range(120)]
    part = iter(stopped)
    for _ in range(47):
        next(part)
    resumed = Packer(documents, 300)
    resumed.load_state_dict(stopped.state_dict())
    rest = iter(resumed)
    for row in rows[47:]:
        assert np.array_equal(row, next(rest))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_cover_all_rows(documents: Documents, world: int) -> None:
    def sampler(rank: int, size: int, ranks: int) -> list[list[np.ndarray]]:
        return list(RowSampler(Packer(documents, 200), batch_size=size, num_batches=5, rank=rank, world=ranks))

    everything = sampler(0, 4 * world, 1)
    for batch, parts in zip(everything, zip(*(sampler(r, 4, world) for r in range(world)), strict=True), strict=True):
        for rank, part in enumerate(parts):
            for mine, row in zip(part, batch[rank::world], strict=True):
                assert np.array_equal(mine, row)


def test_epochs_are_equally_long_and_go_on(documents: Documents) -> None:
    sampler = RowSampler(Packer(documents, 200), batch_size=2, num_batches=7)
    epochs = [[row for batch in sampler for row in batch] for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [14, 14, 14]
    stream = iter(Packer(documents, 200))
    for row in (row for epoch in epochs for row in epoch):
        assert np.array_equal(row, next(stream))


def test_a_batch_says_what_its_plan_says(documents: Documents) -> None:
    stream = iter(Packer(documents, 300))
    plans = [next(stream) for _ in range(6)]
    batch = PackedRows(documents, max_len=300, evaluation=False).__getitems__(plans)
    for b, plan in enumerate(plans):
        at = 0
        for number, document in enumerate(plan):
            piece, variation = int(document[PIECE]), document[VARIATION:]
            prefix = documents.prefix(piece, variation)
            body = documents.body(piece, variation)[document[START] : document[STOP]]
            ids = [1 if document[START] == 0 else 3, *prefix, *body, *([2] if document[FINAL] else [])]
            span = slice(at, at + len(ids) - 1)
            at = span.stop
            assert batch["tokens"][b, span].tolist() == ids[:-1]
            assert batch["targets"][b, span].tolist() == [-100] * len(prefix) + ids[1 + len(prefix) :]
            assert (batch["documents"][b, span] == number).all()
            assert batch["positions"][b, span].tolist() == list(range(len(ids) - 1))
            expected = TOKENIZER.features(np.array(ids))
            for name in ("voice", "position"):
                assert batch[f"feature_{name}"][b, span].tolist() == expected[name][:-1].tolist()
        assert (batch["tokens"][b, at:] == 0).all()
        assert (batch["targets"][b, at:] == -100).all()
        assert (batch["documents"][b, at:] == -1).all()


@pytest.mark.parametrize(("max_len", "overlap"), [(400, 0.5), (120, 0.5), (120, 0.0), (64, 0.8)])
def test_evaluation_counts_every_body_token_once(documents: Documents, max_len: int, overlap: float) -> None:
    bare = plain(documents)
    packer = Packer(bare, max_len, shuffle=False, overlap=overlap)
    batches = evaluation_batches(packer, batch_size=3, rank=0, world=1)
    rows = PackedRows(bare, max_len=max_len, evaluation=True)
    counted: Counter[int] = Counter()
    tokens: dict[int, list[int]] = {}
    for plans in batches:
        batch = rows.__getitems__(plans)
        mask = batch["targets"] >= 0
        counted.update(batch["piece"][mask].tolist())
        assert (batch["targets"][mask] >= TOKENIZER.first_body).all()
        for piece, target in zip(batch["piece"][mask].tolist(), batch["targets"][mask].tolist(), strict=True):
            tokens.setdefault(piece, []).append(target)
    assert counted == Counter({piece: 4 * frames for piece, frames in enumerate(LENGTHS)})
    for piece, frames in enumerate(LENGTHS):
        if 4 * frames + 4 <= max_len:
            assert tokens[piece] == bare.view.body(piece).tolist()


def test_overlap_is_context_that_was_counted_before(documents: Documents) -> None:
    plans = list(Packer(plain(documents), 120, shuffle=False, overlap=0.5))
    inner = [d for d in np.concatenate(plans) if d[COUNTED] > 0]
    assert inner
    assert all(d[START] < d[COUNTED] for d in inner)


def test_every_rank_gets_as_many_evaluation_batches(documents: Documents) -> None:
    bare = plain(documents)
    sizes = []
    for rank in range(3):
        batches = evaluation_batches(Packer(bare, 400, shuffle=False), batch_size=2, rank=rank, world=3)
        sizes.append(len(batches))
        PackedRows(bare, max_len=400, evaluation=True).__getitems__([EMPTY_PLAN])
    assert len(set(sizes)) == 1


def varied(documents: Documents, number: int, pieces: list[int]) -> np.ndarray:
    return documents.variations(np.full(len(pieces), number), np.array(pieces))


def test_augmentation_moves_all_of_a_piece_within_its_range(documents: Documents) -> None:
    seen = set()
    for number in range(12):
        for piece, variation in enumerate(varied(documents, number, list(range(10)))):
            ids, original = documents.body(piece, variation), documents.view.body(piece)
            shifts = {int(a) - int(b) for a, b in zip(ids, original, strict=True)}
            assert len(shifts) == 1
            seen |= shifts
    assert seen == {-2, -1, 0, 1, 2}  # the view's range is narrower than the wish


def test_controls_move_with_the_music(tmp_path: Path) -> None:
    view = view_of(tmp_path / "s", list(bodies_of([8], TOKENIZER)), controls=1, tokenizer=TOKENIZER)
    view.table["controls"] = TOKENIZER.controls({"key": "C major"})
    documents = Documents(view, TOKENIZER, augmentation=Augmentation(transpose=(2, 2)), seed=0)
    variation = varied(documents, 0, [0])[0]
    assert documents.prefix(0, variation).tolist() == TOKENIZER.controls({"key": "D major"})
    assert np.array_equal(documents.body(0, variation), view.body(0) + 2)


def test_augmentation_is_keyed_by_seed_pass_and_piece(documents: Documents) -> None:
    pieces = list(range(41))
    assert np.array_equal(varied(documents, 1, pieces), varied(documents, 1, pieces[::-1])[::-1])
    assert not np.array_equal(varied(documents, 1, pieces), varied(documents, 2, pieces))
    other = Documents(documents.view, TOKENIZER, augmentation=VARIED, seed=4)
    assert not np.array_equal(varied(documents, 1, pieces), varied(other, 1, pieces))


def test_control_dropout_hides_its_share_of_each_control(documents: Documents) -> None:
    kept = np.concatenate([varied(documents, number, list(range(100)))[:, 3] for number in range(20)])
    for control in range(3):
        assert abs(((kept >> control) & 1).mean() - 0.5) < 0.04
    bare = plain(documents)
    assert all(len(bare.prefix(piece, how)) == 3 for piece, how in enumerate(varied(bare, 0, list(range(20)))))


def test_no_room_for_music_is_named(documents: Documents) -> None:
    with pytest.raises(ValueError, match=r"data\.max_len"):
        next(iter(Packer(plain(documents), 4)))


def admitting(packer: Packer, batches: int) -> list[tuple[int, np.ndarray]]:
    """(batch number, pieces) of so many batches of two rows."""
    sampler = RowSampler(packer, batch_size=2, num_batches=batches)
    return [(number, np.concatenate(batch)[:, PIECE]) for number, batch in enumerate(sampler)]


def test_only_admitted_pieces_are_drawn_and_what_waits_leaves_when_it_is_admitted_no_more(documents: Documents) -> None:
    even_until_20 = {"even": lambda rows, draw: (rows % 2 == 0) | (draw >= 20)}
    drawn = admitting(Packer(documents, 200, rules=even_until_20), 240)
    assert all((pieces % 2 == 0).all() for number, pieces in drawn if number < 20)
    late = np.concatenate([pieces for number, pieces in drawn if number >= 40])
    assert 0.35 < (late % 2).mean() < 0.65
    even_then_odd = {"turn": lambda rows, draw: rows % 2 == int(draw >= 20)}
    assert all((pieces % 2 == int(n >= 20)).all() for n, pieces in admitting(Packer(documents, 200, rules=even_then_odd), 60))
    half = {"half": lambda rows, draw: np.full(len(rows), 0.5)}  # one draw of luck a pass, whenever it is looked at
    packer = Packer(documents, 200, rules=half)
    for _ in zip(range(50), admitting(packer, 50), strict=True):
        waiting = packer.waiting
        assert packer._admitted(waiting[:, PIECE], waiting[:, NUMBER]).all()


def test_rules_multiply_and_their_order_is_of_no_account(documents: Documents) -> None:
    half, third = (lambda rows, draw: np.full(len(rows), 0.5)), (lambda rows, draw: 1.0 * (rows % 3 == 0))
    one, other = ({"a": half, "b": third}, {"b": third, "a": half})
    drawn, again = (admitting(Packer(documents, 200, rules=rules), 40) for rules in (one, other))
    assert all((x[1] == y[1]).all() for x, y in zip(drawn, again, strict=True))
    assert all((pieces % 3 == 0).all() for _, pieces in drawn)


def test_a_rule_that_admits_nothing_is_told(documents: Documents) -> None:
    with pytest.raises(ValueError, match="nobody admit no training piece to batch 0"):
        next(iter(Packer(documents, 200, rules={"nobody": lambda rows, draw: np.zeros(len(rows))})))


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_admission_resumes_in_the_middle(documents: Documents, stop: int) -> None:
    rules = {"moving": lambda rows, draw: (rows <= 20 + 5 * draw) & (rows >= 3 * draw)}

    def sampler() -> RowSampler:
        return RowSampler(Packer(documents, 200, rules=rules), batch_size=2, num_batches=30)

    whole = [np.concatenate(batch) for batch in sampler()]
    first, second = sampler(), sampler()
    draws = iter(first)
    for _ in range(stop):
        next(draws)
    second.load_state_dict(first.state_dict())
    rest = [np.concatenate(batch) for batch in second]
    assert all((x == y).all() for x, y in zip(whole[stop:], rest, strict=True))
