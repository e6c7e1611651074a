"""Continuous inputs that may be changed, and vectors that describe music, of every task that offers them."""

from functools import partial
from typing import Any

import pytest
import torch

from etude.core.protocols import HasFeatures, TakesInputs
from etude.models.symbolic.grid_transformer import GridTransformer
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.tokens.satb import SatbGrid
from tests.models.symbolic.test_grid_transformer import document
from tests.tasks.test_style_transfer import batch as mels
from tests.tasks.test_style_transfer import task as style_transfer
from tests.tasks.test_vocoder import batch as tones
from tests.tasks.test_vocoder import vocoder
from tests.toys import ToyGan

TOKENIZER = SatbGrid(genres=["classical", "folk"])
SMALL = {"dim": 16, "num_layers": 1, "num_heads": 2}


def language_model(model: Any = Transformer, **sizes: Any) -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(model=partial(model, **{**SMALL, **sizes}), tokenizer=TOKENIZER, optimizer=torch.optim.SGD)
    return made.eval()


def rows(*lengths: tuple[int, ...], size: int = 150) -> dict[str, torch.Tensor]:
    """One row for each tuple of lengths in frames, a document each, padded."""
    shape = (len(lengths), size)
    made = {name: torch.zeros(shape, dtype=torch.int64) for name in ("tokens", "positions", *_features())}
    made |= {name: torch.full(shape, -1) for name in ("documents", "piece", "label_genre")} | {"targets": torch.full(shape, -100)}
    for row, frames in enumerate(lengths):
        at = 0
        for number, length in enumerate(frames):
            tokens = torch.from_numpy(document(length, length))
            where = (row, slice(at, at + len(tokens) - 1))
            made["tokens"][where], made["targets"][where] = tokens[:-1], tokens[1:]
            made["documents"][where], made["piece"][where], made["label_genre"][where] = number, length, length % 2
            made["positions"][where] = torch.arange(len(tokens) - 1)
            for name, values in TOKENIZER.features(tokens[:-1].numpy()).items():
                made[f"feature_{name}"][where] = torch.from_numpy(values).long()
            at += len(tokens) - 1
    return made


def _features() -> list[str]:
    return [f"feature_{name}" for name in TOKENIZER.feature_sizes]


PACKED = ((6, 9), (12,), (5, 4, 8))


def test_unchanged_embeddings_change_nothing() -> None:
    task, batch = language_model(), rows(*PACKED)
    inputs = task.inputs(batch)
    assert inputs["embeddings"].shape == (3, 150, 16)
    given = task.with_inputs(batch, inputs)
    assert torch.equal(task.logits(given), task.logits(batch))
    assert torch.equal(task.losses(given)["nll"], task.losses(batch)["nll"])
    assert torch.equal(task.measure(given)["nll"].mean, task.measure(batch)["nll"].mean)
    assert torch.equal(task.inputs(given)["embeddings"], inputs["embeddings"])
    assert "embeddings" not in batch


def test_a_mixture_of_two_rows_is_trained_on_both_targets() -> None:
    """MixUp of embeddings, as a technique would write it."""
    task, batch = language_model(), rows((12,), (12,))
    batch["tokens"][1] = batch["tokens"][1].flip(0)
    own = task.inputs(batch)["embeddings"]
    mixed = task.with_inputs(batch, {"embeddings": 0.3 * own + 0.7 * own.flip(0)})
    loss = task.losses(mixed)["nll"]
    gradient = torch.autograd.grad(loss, task.model.embedding.weight)[0]  # type: ignore[union-attr, arg-type]
    assert loss.isfinite() and gradient.abs().sum() > 0


@pytest.mark.parametrize("model", [Transformer, partial(GridTransformer, decoder_dim=16, decoder_layers=1)])
def test_features_are_of_documents_wherever_they_lie(model: Any) -> None:
    task, batch = language_model(model, dim=32), rows(*PACKED)
    found = task.features(batch)
    pieces = task.documents(batch).tolist()
    assert pieces == [6, 9, 12, 5, 4, 8]
    assert task.documents(batch, "label_genre").tolist() == [piece % 2 for piece in pieces]
    assert found.isfinite().all() and (found.std(0) > 0).all()
    for number, piece in enumerate(pieces):
        torch.testing.assert_close(task.features(rows((piece,)))[0], found[number], atol=1e-5, rtol=1e-5)


def test_a_network_of_notes_takes_no_embeddings() -> None:
    task = language_model(GridTransformer, dim=32)
    with pytest.raises(ValueError, match=r"GridTransformer takes notes, not embeddings.*model=tiny"):
        task.inputs(rows((4,)))


def test_a_language_model_must_be_causal() -> None:
    with pytest.raises(ValueError, match=r"model.causal=false sees; set it to true"):
        language_model(causal=False)


def test_a_vocoders_input_changes_and_its_target_stays() -> None:
    task, batch = vocoder(), tones()
    given = task.with_inputs(batch, task.inputs(batch))
    assert torch.equal(task.losses(given)["generator/mel"], task.losses(batch)["generator/mel"])
    mel = batch["mel"].clone().requires_grad_()
    loss = task.losses(task.with_inputs(batch, {"mel": mel}))["generator/mel"]
    moved = task.with_inputs(batch, {"mel": (mel + 0.05 * torch.autograd.grad(loss, mel)[0].sign()).detach()})
    assert moved["mel"] is batch["mel"]
    assert task.measure(moved)["mel_l1"].mean > task.measure(batch)["mel_l1"].mean
    assert task.features(batch).shape == (2, 32)
    assert not torch.allclose(task.features(batch), task.features(moved))


def test_style_transfer_is_measured_on_a_batch_and_describes_each_piece() -> None:
    task, batch = style_transfer().eval(), mels()
    mel = batch["mel"].clone().requires_grad_()
    loss = task.losses(task.with_inputs(batch, {"mel": mel}))["generator/cycle"]
    assert torch.autograd.grad(loss, mel)[0].abs().sum() > 0
    features = task.features(batch)
    assert features.shape[0] == 3 * 2
    one = task.features({"mel": batch["mel"][:, 1:]})
    torch.testing.assert_close(one, features[1::2])
    with torch.no_grad():
        found, ways = task.measure(batch), task.restyled(batch)
    errors = [float((fake - real).abs().mean()) for fake, real in ways.values()]
    assert float(found["l1"].mean) == pytest.approx(sum(errors) / 6)
    assert int(found["l1"].count) == 2 and float(found["frechet"].mean) > 0
    assert task.logged_metrics == ("val/frechet", "val/l1")


def test_who_offers_what() -> None:
    for task in (language_model(), vocoder(), style_transfer()):
        assert isinstance(task, TakesInputs) and isinstance(task, HasFeatures)
    assert not isinstance(ToyGan(), TakesInputs) and not isinstance(ToyGan(), HasFeatures)
