"""The grid model with a memory of training pieces: causal, the same step by step, never finding the piece it learns from."""

from functools import partial

import numpy as np
import pytest
import torch

from etude.models.symbolic.grid_transformer import GridTransformer
from etude.models.symbolic.passage_memory import CLASSES, KINDS, REACH, WIDTH
from etude.models.symbolic.passage_reader import PassageReader
from etude.tasks.language_model import LanguageModel
from etude.tokens.grammar import BOS, EOS
from tests.models.symbolic.test_grid_transformer import TOKENIZER, batch, document, frames, model, run, step_by_step


def remembering(**options: object) -> GridTransformer:
    net = model(memory=True, **options)
    net.passages.remember([frames(90, seed) for seed in range(20, 26)])
    return net


def piece_of(pitches: np.ndarray) -> np.ndarray:
    return np.concatenate([[BOS], TOKENIZER.controls({}), TOKENIZER.encode_frames(pitches), [EOS]]).astype(np.int64)


def test_packed_pieces_equal_pieces_alone() -> None:
    net, pieces = remembering(), [document(12, 0), document(30, 1, genre="folk"), document(7, 2, key="G major")]
    alone = torch.cat([run(net, batch(p)) for p in pieces])
    torch.testing.assert_close(run(net, batch(*pieces)), alone, atol=1e-5, rtol=1e-5)


def test_the_future_does_not_leak() -> None:
    net, piece = remembering(), document(24, 3)
    before = run(net, batch(piece))
    for at in (2, 9, 30, 57, 80):
        changed = piece.copy()
        changed[at:-1] = TOKENIZER.rest_id + 1 + np.random.default_rng(at).integers(5, 40, len(piece) - 1 - at)
        torch.testing.assert_close(run(net, batch(changed))[:at], before[:at], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", [1, 2, 5, 18])
def test_step_by_step_equals_at_once_also_in_a_piece_of_the_memory(prompt: int) -> None:
    net, data = remembering(), batch(piece_of(frames(90, 20)[:14]))
    # passages of whole pieces are kept in half precision
    torch.testing.assert_close(step_by_step(net, data, prompt), run(net, data), atol=2e-2, rtol=2e-3)


def test_the_memory_changes_what_follows() -> None:
    data, net = batch(document(24, 3)), remembering()
    known = run(net, data)
    net.passages.remember([])
    assert not torch.allclose(run(net, data), known, atol=1e-3)


def test_in_training_a_piece_does_not_find_itself() -> None:
    reader = PassageReader(dim=8, dropout=0.0)
    mine, other = frames(60, 1), frames(60, 2)
    reader.remember([mine])
    looked_up = torch.tensor(mine)[None, 8:52], [44]
    assert reader.eval().look_up(*looked_up)[0, 20:, 0, :, :CLASSES].sum() > 20
    assert not reader.train().look_up(*looked_up).any()
    alone = PassageReader(dim=8, dropout=0.0).train()
    alone.remember([other])
    reader.remember([mine, other])
    torch.testing.assert_close(reader.look_up(*looked_up), alone.look_up(*looked_up))
    with reader.eval().own_pieces_left_out():
        torch.testing.assert_close(reader.look_up(*looked_up), alone.look_up(*looked_up))


def test_nor_does_the_teacher_of_a_distillation_find_the_pieces_that_it_reads() -> None:
    task = LanguageModel(
        model=partial(GridTransformer, dim=32, num_layers=1, num_heads=2, decoder_dim=16, memory=True),
        tokenizer=TOKENIZER,
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
    ).eval()
    passages, piece = task.model.passages, frames(24, 20)
    assert isinstance(passages, PassageReader)
    inputs = batch(piece_of(piece))
    data = {
        "tokens": inputs["tokens"], "documents": inputs["documents"], "feature_voice": inputs["voice"],
        "positions": torch.arange(inputs["tokens"].shape[1])[None],
    }  # fmt: skip
    with torch.no_grad():
        passages.gate.bias.fill_(3.0)
        alone = task.recompute_trace(data, {})["logits"]
        passages.remember([piece])
        assert not torch.allclose(task.logits(data), alone, atol=1e-3)
        torch.testing.assert_close(task.recompute_trace(data, {})["logits"], alone)


@pytest.mark.parametrize("at", [0, 12], ids=["a voice rests at first", "a voice rests within"])
def test_what_is_found_does_not_depend_on_what_was_looked_up_before(at: int) -> None:
    reader = PassageReader(dim=8, dropout=0.0).eval()
    reader.remember([frames(90, seed, rests=False) for seed in range(4)])
    piece = torch.tensor(frames(24, 9, rests=False))
    piece[at : at + 4, 2] = -1
    if at:  # the same movements: a rest hides how far the voice goes on
        other = piece.clone()
        other[at + 4 :, 2] += 3
    else:
        other = torch.where(piece == -1, -1, piece + 3)
    fresh = PassageReader(dim=8, dropout=0.0).eval()
    fresh.remember([frames(90, seed, rests=False) for seed in range(4)])
    reader.look_up(piece[None], [24])
    torch.testing.assert_close(reader.look_up(other[None], [24]), fresh.look_up(other[None], [24]))


def test_evidence_goes_to_the_pitch_and_not_to_others() -> None:
    reader = PassageReader(dim=4, dropout=0.0)
    torch.nn.init.zeros_(reader.gate.weight)
    reader.gate.bias.data = torch.tensor([2.0] + [0.0] * (KINDS - 1))  # the melody counts twice, all else not at all
    found = torch.zeros(KINDS, WIDTH)
    found[0, REACH + 5], found[0, CLASSES - 1], found[1, REACH] = 0.75, 0.25, 1.0
    notes, rest = reader.evidence(torch.zeros(4), found, torch.tensor(60), torch.arange(31, 89))
    assert notes[65 - 31].item() == pytest.approx(2 * np.log(76), rel=1e-5)
    assert rest.item() == pytest.approx(2 * np.log(26), rel=1e-5)
    assert notes.count_nonzero() == 1  # beyond an octave the memory says nothing
    unknown, _ = reader.evidence(torch.zeros(4), torch.zeros(KINDS, WIDTH), torch.tensor(60), torch.arange(31, 89))
    assert not unknown.any()


def test_a_checkpoint_brings_its_memory() -> None:
    net, other = remembering(), model(memory=True)
    other.load_state_dict(net.state_dict())
    data = batch(document(24, 3))
    assert torch.equal(run(other, data), run(net, data)) and len(other.passages.memory.bounds) == 7
