"""The classifier: what its terms are, what the heads share, what it fits in validation, and that it resumes bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.models.shared_encoders import SHARING, SharedEncoders
from etude.models.symbolic.transformer import Transformer
from etude.tasks.classifier import APART, Classifier, whole_pieces
from etude.tokens.satb import SatbGrid
from tests.songs import write_songs
from tests.toys import same, trainer, weights

LABELS = {"genre": ("classical", "folk"), "metre": ("3/4", "4/4", "6/8")}
NETWORK = partial(Transformer, dim=16, num_layers=2, num_heads=2, causal=False)
DOCUMENTS = torch.tensor([[0] * 6 + [1] * 7 + [-1] * 3, [0] * 10 + [1] * 6])


def task(**options: Any) -> Classifier:
    torch.manual_seed(0)
    own = {"model": NETWORK, "tokenizer": SatbGrid(genres=[]), "labels": LABELS, "optimizer": partial(torch.optim.AdamW, lr=1e-2)}
    return Classifier(**{**own, **options})


def batch(genre: tuple[int, ...] = (0, 1, 1, 0), metre: tuple[int, ...] = (2, -1, 0, 1)) -> dict[str, Tensor]:
    """Four documents in two rows."""
    draws, tokenizer = torch.Generator().manual_seed(1), SatbGrid(genres=[])
    owner = torch.tensor([[0] * 6 + [1] * 7 + [-1] * 3, [2] * 10 + [3] * 6])
    found = {"documents": DOCUMENTS, "piece": owner, "positions": torch.arange(16).expand(2, 16)}
    found["tokens"] = torch.randint(4, len(tokenizer), (2, 16), generator=draws)
    for name, size in tokenizer.feature_sizes.items():
        found[f"feature_{name}"] = torch.randint(0, size, (2, 16), generator=draws)
    for name, classes in (("genre", genre), ("metre", metre)):
        found[f"label_{name}"] = torch.where(owner >= 0, torch.tensor(classes)[owner.clamp(min=0)], -1)
    return found


class Fixed(pl.LightningDataModule):
    """The same few batches, over and over."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches * 20, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


def test_a_head_averages_over_the_documents_that_have_its_label() -> None:
    model = task(head_dropout=0.0).eval()
    losses, logits = model.losses(batch()), model.class_logits(batch())
    assert set(losses) == {"genre", "metre"} and logits["metre"].shape == (4, 3)
    known = torch.tensor([0, 2, 3])
    expected = torch.nn.functional.cross_entropy(logits["metre"][known], torch.tensor([2, 0, 1]))
    torch.testing.assert_close(losses["metre"], expected)
    without = model.losses(batch(metre=(-1, -1, -1, -1)))
    torch.testing.assert_close(without["genre"], losses["genre"])
    assert float(without["metre"].detach()) == 0 and without["metre"].requires_grad


def test_a_document_does_not_see_its_neighbours_or_padding() -> None:
    model, one = task().eval(), batch()
    other = {**one, "tokens": one["tokens"].clone()}
    other["tokens"][0, 6:] = 5  # the second document of the row, and the padding
    before, after = (model.class_logits(each)["genre"] for each in (one, other))
    torch.testing.assert_close(before[[0, 2, 3]], after[[0, 2, 3]])
    assert (before[1] - after[1]).abs().max() > 1e-4


@pytest.mark.parametrize("sharing", SHARING)
def test_gradients_reach_what_is_shared(sharing: str) -> None:
    model = task(sharing=sharing)
    assert len(model.model.networks) == (2 if sharing in ("soft", "cross_stitch") else 1)
    losses = model.losses(batch())
    assert (APART in losses) == (sharing == "soft")
    losses["metre"].backward()
    first, *rest = (next(network.blocks.parameters()).grad for network in model.model.networks)
    reached = [first is not None and bool(first.any()), *(grad is not None and bool(grad.any()) for grad in rest)]
    assert reached == {"hard": [True], "attention": [True], "soft": [False, True], "cross_stitch": [True, True]}[sharing]


def test_a_cross_stitch_of_the_identity_is_separate_networks() -> None:
    torch.manual_seed(0)
    soft = SharedEncoders(lambda: NETWORK(vocab_size=20), [["a", "b"]], sharing="soft")
    for parameter in soft.networks[1].parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    stitched = SharedEncoders(lambda: NETWORK(vocab_size=20), [["a", "b"]], sharing="cross_stitch")
    stitched.networks.load_state_dict(soft.networks.state_dict())
    stitched.mixture.data = torch.eye(2).repeat(2, 1, 1)
    tokens = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(2))
    for name, expected in soft(tokens).items():
        torch.testing.assert_close(stitched(tokens)[name], expected, atol=1e-6, rtol=0)


def test_the_distance_is_the_variance_of_the_weights() -> None:
    soft = SharedEncoders(lambda: NETWORK(vocab_size=20), [["a", "b", "c"]], sharing="soft")
    assert float(soft.distance().detach()) == 0  # they start from one point
    for shift, network in zip((-1.0, 0.0, 1.0), soft.networks, strict=True):
        for parameter in network.parameters():
            parameter.data += shift
    torch.testing.assert_close(soft.distance().detach(), torch.tensor(2 / 3))


def test_classes_are_balanced_by_what_was_seen_before() -> None:
    model = task(balance_classes=True, head_dropout=0.0)
    model.trace = {}
    plain = task(head_dropout=0.0)
    torch.testing.assert_close(model.losses(batch())["genre"], plain.losses(batch())["genre"])  # nothing was seen
    assert not model.seen.any()  # `losses` counts nothing
    model.seen[0, :2] = torch.tensor([2.0, 0.0])
    logits = plain.class_logits(batch())["genre"]
    each = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0]), reduction="none")
    torch.testing.assert_close(model.losses(batch())["genre"], (each * torch.tensor([1.0, 3.0, 3.0, 1.0])).sum() / 8)


def test_a_piece_in_several_documents_gets_their_mean_logits() -> None:
    piece, true = np.array([7, 3, 7, 5]), np.array([1, 0, 1, -1])
    logits = np.array([[0.0, 1.0], [2.0, 0.0], [4.0, 1.0], [9.0, 9.0]])
    found, classes = whole_pieces(piece, logits, true)
    assert found.tolist() == [[2.0, 0.0], [2.0, 1.0]] and classes.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "heads names none"),
        ({"labels": {"genre": ("folk",)}}, "all training pieces have the same genre, folk"),
        ({"sharing": "some"}, "sharing=some is unknown; choose hard, soft, cross_stitch, attention"),
        ({"gamma": -1.0}, "task.gamma=-1.0 must be at least 0"),
        ({"label_smoothing": 1.0}, r"task.label_smoothing=1.0 must lie in \[0, 1\)"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


# --- on files ---


def music(songs: Path) -> MusicDataModule:
    return MusicDataModule(
        corpus=Folder(str(songs)), tokenizer=SatbGrid, cache_dir=str(songs.parent / "cache"), max_len=256, max_eval_len=512,
        batch_size=2, batches_per_epoch=5, prepare_workers=1, seed=1, controls=[], targets=["genre"],
    )  # fmt: skip


def fitted(folder: Path, songs: Path, **options: Any) -> Classifier:
    data = music(songs)
    model = task(**{"tokenizer": data.tokenizer, **data.label_parts, "seed": 1, **options})
    run = trainer(folder, max_steps=6, val_check_interval=3)
    run.fit(model, data)
    run.save_checkpoint(folder / "end.ckpt")
    return model


def test_it_trains_on_files_logs_balanced_accuracy_and_its_checkpoint_holds_the_labels(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", count=16)
    one = fitted(tmp_path, songs, balance_classes=True)
    assert one.seen.sum() > 0 and one.temperatures["genre"] != 1.0
    assert {"val/nll", "val/genre_accuracy", "val/genre_balanced_accuracy"} <= set(one.trainer.callback_metrics)
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["etude"]
    parts = Classifier.constructor_arguments_from(saved)
    assert parts["labels"] == {"genre": ["classical", "folk"]} and parts["temperatures"] == one.temperatures
    again = fitted(tmp_path / "again", songs, balance_classes=True)
    assert same(weights(one), weights(again))
