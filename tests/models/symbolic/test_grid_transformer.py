"""The grid model: causal, blind to other pieces, the same step by step, equivariant in its context."""

import numpy as np
import pytest
import torch

from etude.models.symbolic.grid_context import OWN, REST, compute_context
from etude.models.symbolic.grid_transformer import GridTransformer
from etude.tokens.grammar import BOS, EOS
from etude.tokens.satb import SatbGrid

TOKENIZER = SatbGrid(genres=["classical", "folk"])


def frames(length: int, seed: int, *, rests: bool = True) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = rng.choice([-2, -1, 1, 2, 5], (length, 4)) * (rng.random((length, 4)) < 0.4)
    found = np.clip(np.array([72, 67, 60, 50]) + steps.cumsum(0), 40, 80)
    half = length // 2
    found[half : half + length // 4] = found[: length // 4]  # something to repeat
    if rests:
        found[rng.random((length, 4)) < 0.05] = REST
    return found


def document(length: int, seed: int, **labels: object) -> np.ndarray:
    body = TOKENIZER.encode_frames(frames(length, seed))
    return np.concatenate([[BOS], TOKENIZER.controls(labels), body, [EOS]]).astype(np.int64)


def model(**options: object) -> GridTransformer:
    torch.manual_seed(0)
    sizes = dict(
        dim=32, num_layers=2, num_heads=2, decoder_dim=16, decoder_layers=1, dropout=0.0, context_dropout=0.0,
    )  # fmt: skip
    net = GridTransformer(vocab_size=len(TOKENIZER), feature_sizes=TOKENIZER.feature_sizes, **{**sizes, **options})
    for parameter in net.parameters():  # away from the small initial weights, so that differences show
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def batch(*documents: np.ndarray) -> dict[str, torch.Tensor]:
    """The documents in one row, inputs only."""
    parts = [d[:-1] for d in documents]
    number = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    voice = np.concatenate([TOKENIZER.features(p)["voice"] for p in parts])
    return {
        "tokens": torch.tensor(np.concatenate(parts))[None],
        "documents": torch.tensor(number, dtype=torch.int32)[None],
        "voice": torch.tensor(voice, dtype=torch.long)[None],
    }


def run(net: GridTransformer, data: dict[str, torch.Tensor]) -> torch.Tensor:
    return net(data["tokens"], documents_bt=data["documents"], features={"voice": data["voice"]})[0].detach()


def step_by_step(net: GridTransformer, data: dict[str, torch.Tensor], prompt: int) -> torch.Tensor:
    """The logits of one row, computed with a cache: of the first `prompt` tokens at once, then token by token."""
    length = data["tokens"].shape[1]
    cache = net.new_cache(1, length + 1)
    parts = [slice(0, prompt), *(slice(at, at + 1) for at in range(prompt, length))]
    found = [net(data["tokens"][:, part], features={"voice": data["voice"][:, part]}, cache=cache) for part in parts]
    return torch.cat(found, dim=1)[0].detach()


def test_packed_pieces_equal_pieces_alone() -> None:
    net = model()
    pieces = [document(12, 0), document(30, 1, genre="folk"), document(7, 2, key="G major")]
    packed = run(net, batch(*pieces))
    alone = torch.cat([run(net, batch(p)) for p in pieces])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_the_future_does_not_leak() -> None:
    net, piece = model(), document(24, 3)
    before = run(net, batch(piece))
    for at in (2, 9, 30, 57, 80):
        changed = piece.copy()
        changed[at:-1] = TOKENIZER.rest_id + 1 + np.random.default_rng(at).integers(5, 40, len(piece) - 1 - at)
        after = run(net, batch(changed))
        torch.testing.assert_close(after[:at], before[:at], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after[at:], before[at:], atol=1e-3)


@pytest.mark.parametrize("prompt", [1, 2, 5, 6, 18])
def test_step_by_step_equals_at_once(prompt: int) -> None:
    net, data = model(), batch(document(14, 4))
    torch.testing.assert_close(step_by_step(net, data, prompt), run(net, data), atol=1e-4, rtol=1e-4)


def test_every_target_of_a_piece_can_be_predicted_and_nothing_else() -> None:
    piece = document(9, 5, genre="folk")
    logits, voice = run(model(), batch(piece)), TOKENIZER.features(piece)["voice"]
    for at, target in enumerate(piece[1:]):
        if target >= TOKENIZER.first_body or target == EOS:
            assert logits[at, target] > -100
            assert (logits[at, EOS] > -100) == (voice[at] in (0, 4))  # a piece ends between frames only
        assert (logits[at, 3 : TOKENIZER.first_body] < -1000).all()


def test_controls_reach_every_frame() -> None:
    net = model()
    one, other = (run(net, batch(document(6, 6, genre=genre))) for genre in ("folk", "classical"))
    assert ((one - other)[1:].abs().amax(dim=1) > 1e-4).all()


def test_context_is_relative() -> None:
    x = torch.tensor(frames(40, 7, rests=False))[None]
    low, high = compute_context(x), compute_context(x + 3)
    different = (low.ids != high.ids).any(dim=(0, 1, 2)).nonzero().flatten().tolist()
    # Before a voice has sounded, intervals are taken from its stand-in, which does not move.
    settled = slice(8, None)
    later = (low.ids[:, settled] != high.ids[:, settled])[..., [OWN]]
    assert later.all() and OWN in different
    torch.testing.assert_close(high.references[:, settled], low.references[:, settled] + 3)
    torch.testing.assert_close(high.chroma[:, settled], low.chroma[:, settled])


def test_context_of_a_hand_made_piece() -> None:
    x = torch.tensor([[60, 57, 53, 48], [60, 57, 53, 48], [62, 57, 53, 50], [62, REST, 53, 50]])[None]
    found = compute_context(x)
    names = {"own": 3, "to_voice": 4, "age": 8, "back": 12}
    alto_2 = found.ids[0, 2, 1]  # soprano of frame 2 is known, alto not
    assert alto_2[names["own"]] == 57
    assert alto_2[names["to_voice"] : names["to_voice"] + 4].tolist() == [25 + 5, 25, 25 - 4, 25 - 9]
    assert alto_2[names["age"] : names["age"] + 4].tolist() == [0, 1, 1, 1]
    assert alto_2[names["back"]] == 25 - 2  # the soprano came from two semitones below
    bass_3 = found.ids[0, 3, 3]
    assert bass_3[names["age"] : names["age"] + 4].tolist() == [1, 18, 3, 0]  # the alto rests
    assert found.references[0, 3, 3].tolist() == [62, 57, 53, 50]


def test_repeats_are_found() -> None:
    rng = np.random.default_rng(0)
    theme = rng.integers(50, 70, (16, 4))
    x = torch.tensor(np.concatenate([theme, theme]))[None]
    found = compute_context(x, [32])
    at = found.ids[0, 20, 2]  # 18 tokens into the repetition: what follows is known from the first time
    assert at[-4] == 25 + int(theme[4, 2]) - int(found.references[0, 20, 2, 2])
    assert at[-3] == 5  # 18 tokens: ceil(log2(19))
    assert found.ids[0, 10, 2, -3] <= 1


def test_another_tokenizer_is_told() -> None:
    with pytest.raises(ValueError, match="tokenizer=satb"):
        GridTransformer(vocab_size=300, feature_sizes={"position": 17})


def test_a_row_of_padding_is_no_piece() -> None:
    padding = torch.full((1, 8), -1, dtype=torch.int32)
    logits = model()(torch.zeros(1, 8, dtype=torch.long), documents_bt=padding, features={"voice": torch.zeros(1, 8).long()})
    assert logits.shape == (1, 8, len(TOKENIZER)) and torch.isfinite(logits).all()
