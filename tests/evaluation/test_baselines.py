"""The baselines are distributions, learn what there is to learn, and reach known figures on the chorales."""

import json
import math

import numpy as np
import pytest

from etude.evaluation.baselines import CopyPrevious, GridTokens
from etude.evaluation.count_model import CountModel

LOW, HIGH = 60, 67


def random_pieces(seed, count=6, frames=24):
    generator = np.random.default_rng(seed)
    pitches = np.concatenate([[-1], np.arange(LOW, HIGH + 1)])
    return [generator.choice(pitches, size=(frames, 4)) for _ in range(count)]


def chorales(shared_data):
    path = shared_data / "jsb" / "Jsb16thSeparated.json"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    return {split: [np.array(piece) for piece in pieces] for split, pieces in json.loads(path.read_text()).items()}


def test_tokens_of_a_small_grid():
    tokens = GridTokens.of([np.array([[60, 62], [60, -1], [61, -1]])], low=60, high=64)
    assert tokens.symbol.tolist() == [1, 3, 1, 0, 2, 0]
    assert tokens.own.tolist() == [-1, -1, 1, 3, 1, 0]
    assert tokens.current.tolist() == [[-1, -1], [1, -1], [-1, -1], [1, -1], [-1, -1], [2, -1]]
    assert tokens.two_before.tolist() == [-1, -1, -1, -1, 1, 3]
    assert tokens.duration.tolist() == [0, 0, 1, 1, 2, 1]
    assert tokens.step.tolist() == [0, 0, 1, 1, 2, 2]


def test_copying_has_its_closed_form():
    """One voice that always holds: every probability can be written down."""
    model = CopyPrevious(low=60, high=61).fit([np.array([[60]] * 9)])
    unigram = 10 / 12  # nine of the pitch and one added to each of three symbols
    rate = 9 / 10
    copy = (rate - unigram) / (1 - unigram)
    assert model.nats([np.array([[60]] * 3)])[0] == pytest.approx(-math.log(unigram) - 2 * math.log(rate))
    assert model.nats([np.array([[60], [61]])])[0] == pytest.approx(-math.log(unigram) - math.log((1 - copy) / 12))


@pytest.mark.parametrize("kind", [CopyPrevious, CountModel])
def test_probabilities_of_all_symbols_sum_to_at_most_one(kind):
    model = kind(low=LOW, high=HIGH).fit(random_pieces(0))
    history = random_pieces(1, count=1, frames=5)[0]
    for voice in range(4):
        total = 0.0
        for symbol in (-1, *range(LOW, HIGH + 1)):
            last = history.copy()
            last[-1, voice] = symbol
            last[-1, voice + 1 :] = -1
            # p(symbol) alone: the piece up to this token against the piece up to the one before
            tokens = GridTokens.of([last], low=LOW, high=HIGH)
            place = (len(last) - 1) * 4 + voice
            total += math.exp(-_token_nats(model, last, tokens, place))
        assert total <= 1 + 1e-9
        assert total > (1 - 1e-9 if kind is CopyPrevious else 0.75)


def _token_nats(model, piece, tokens, place):
    if isinstance(model, CountModel):
        return -math.log(model.probability(tokens)[place])
    frame, voice = divmod(place, 4)
    probability = model.unigram[voice, tokens.symbol[place]]
    copied = piece[frame, voice] == piece[frame - 1, voice]
    return -math.log(model.copy[voice] * copied + (1 - model.copy[voice]) * probability)


def test_no_token_sees_what_comes_after_it():
    train = random_pieces(0)
    model = CountModel(low=LOW, high=HIGH).fit(train)
    piece = random_pieces(2, count=1)[0]
    changed = piece.copy()
    changed[10, 2:] = LOW
    changed[11:] = HIGH
    before, after = (model.probability(GridTokens.of([p], low=LOW, high=HIGH)) for p in (piece, changed))
    assert np.array_equal(before[: 10 * 4 + 2], after[: 10 * 4 + 2])


def test_the_count_model_learns_a_rule_and_nothing_from_noise():
    generator = np.random.default_rng(3)

    def piece():
        soprano = generator.integers(LOW, HIGH - 2, size=60)
        return np.stack([soprano, soprano + 1, soprano + 2, np.full(60, LOW)], axis=1)

    model = CountModel(low=LOW, high=HIGH).fit([piece() for _ in range(20)])
    per_frame = model.nats([piece()])[0] / 60
    assert per_frame == pytest.approx(math.log(5), rel=0.2)  # the soprano alone is free, one of five
    noise = CountModel(low=LOW, high=HIGH).fit(random_pieces(0, count=20))
    assert noise.nats(random_pieces(9))[0] / (24 * 4) == pytest.approx(math.log(9), rel=0.05)


def test_refusals():
    with pytest.raises(ValueError, match="must satisfy 0 <= low < high"):
        CopyPrevious(low=70, high=60)
    with pytest.raises(ValueError, match="must satisfy 0 <= low < high"):
        CountModel(low=-1, high=60)
    with pytest.raises(ValueError, match="2 or more"):
        CountModel(low=LOW, high=HIGH).fit(random_pieces(0, count=1))
    with pytest.raises(ValueError, match=r"piece 0 has pitches 90\.\.90"):
        CopyPrevious(low=LOW, high=HIGH).fit([np.full((3, 4), 90)])
    with pytest.raises(ValueError, match="must be \\[frames, voices\\]"):
        CopyPrevious(low=LOW, high=HIGH).fit([np.zeros((0, 4))])
    with pytest.raises(ValueError, match="pieces is empty"):
        CopyPrevious(low=LOW, high=HIGH).fit([])


def test_copying_on_the_chorales(shared_data):
    splits = chorales(shared_data)
    assert [len(splits[split]) for split in ("train", "valid", "test")] == [229, 76, 77]
    model = CopyPrevious(low=36, high=81).fit(splits["train"])
    for split, expected in (("valid", 1.0654), ("test", 1.1361)):
        tokens = sum(piece.size for piece in splits[split])
        assert model.nats(splits[split]).sum() / tokens == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_counting_on_the_chorales(shared_data):
    splits = chorales(shared_data)
    model = CountModel(low=36, high=81).fit(splits["train"])
    for split, expected in (("valid", 0.4819), ("test", 0.4930)):
        tokens = sum(piece.size for piece in splits[split])
        assert model.nats(splits[split]).sum() / tokens == pytest.approx(expected, abs=1e-3)
