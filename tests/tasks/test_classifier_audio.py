"""The classifier on mels: what its terms are, pieces in segments, sharing, its checkpoint, and starting from a grader."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.audio.mel import MelContract
from etude.evaluation.classes import predicted, score_classifier
from etude.models.mel.encoder import MelEncoder
from etude.models.mel.grader import GraderNetwork
from etude.models.mel.patches import PatchEncoder
from etude.models.shared_encoders import SHARING, Encoder
from etude.tasks.classifier import Classifier
from tests.data.audio.files import CONTRACT, module, write_styles
from tests.tasks.test_grader import task as grader
from tests.toys import trainer

STYLES = {"style": ("folk", "rock")}
NETWORK = partial(MelEncoder, channels=4, dim=16, num_layers=2)
PATCHES = partial(PatchEncoder, dim=16, num_layers=2, num_heads=2, patch_bands=8, patch_frames=8)


def task(**options: Any) -> Classifier:
    torch.manual_seed(0)
    own = {"model": NETWORK, "contract": CONTRACT, "labels": STYLES, "optimizer": partial(torch.optim.AdamW, lr=1e-2)}
    return Classifier(**{**own, **options})


def batch() -> dict[str, Tensor]:
    """Two segments of each of two styles; one has no label."""
    mel = torch.randn(2, 2, CONTRACT.n_mels, 16, generator=torch.Generator().manual_seed(1))
    return {"mel": mel, "label_style": torch.tensor([[0, -1], [1, 1]]), "piece": torch.tensor([[0, 1], [2, 2]])}


def test_a_head_averages_over_the_segments_that_have_its_label() -> None:
    model = task(head_dropout=0.0).eval()
    logits = model.class_logits(batch())["style"]
    assert logits.shape == (4, 2)
    expected = torch.nn.functional.cross_entropy(logits[[0, 2, 3]], torch.tensor([0, 1, 1]))
    torch.testing.assert_close(model.losses(batch())["style"], expected)
    alone = {name: entry[:, :1] for name, entry in batch().items()}
    torch.testing.assert_close(model.class_logits(alone)["style"], logits[[0, 2]])  # segments don't see each other


@pytest.mark.parametrize(("build", "steps"), [(NETWORK, 16), (PATCHES, 4)])
def test_the_steps_of_the_network_are_its_hidden_states(build: Any, steps: int) -> None:
    torch.manual_seed(0)
    network = build(n_mels=16)
    assert isinstance(network, Encoder)
    mel = batch()["mel"].flatten(0, 1)
    x, *beside = network.begin(mel)
    for block in network.blocks:
        x = network.through(block, x, *beside)
    torch.testing.assert_close(network.end(x), network.hidden(mel))
    assert network.hidden(mel).shape == (4, steps, 16)


@pytest.mark.parametrize("sharing", SHARING)
def test_it_starts_from_a_representation_of_mels(sharing: str, tmp_path: Path) -> None:
    encoder = PATCHES(n_mels=CONTRACT.n_mels)
    weights = {f"encoder.{name}": torch.randn_like(value) for name, value in encoder.state_dict().items()}
    saved = {"state_dict": weights, "etude": {"contract": CONTRACT.to_dict()}}
    of = task(model=PATCHES, sharing=sharing)
    found = of.weights_from(saved, tmp_path)
    torch.testing.assert_close(found["model.networks.0.inlet.weight"], weights["encoder.inlet.weight"])
    assert of.losses(batch())["style"].isfinite()
    with pytest.raises(ValueError, match="it holds no such network of mels"):
        task().weights_from(saved, tmp_path)


@pytest.mark.parametrize("sharing", SHARING)
def test_mels_are_shared_in_every_way(sharing: str) -> None:
    model = task(sharing=sharing, labels=STYLES | {"composer": ("A", "B", "C")})
    one = batch() | {"label_composer": torch.tensor([[2, 0], [1, -1]])}
    losses = model.losses(one)
    assert set(losses) == {"style", "composer", *(["sharing"] if sharing == "soft" else [])}
    losses["composer"].backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.model.parameters())


def test_it_learns_styles_and_its_checkpoint_holds_the_contract(tmp_path: Path) -> None:
    data = module(write_styles(tmp_path / "audio", files=14), tmp_path / "cache", targets=["style"])
    of = task(**data.label_parts)
    run = trainer(tmp_path / "run", max_steps=24, val_check_interval=6)
    run.fit(of, data)
    assert {"val/nll", "val/style_accuracy", "val/style_balanced_accuracy"} <= set(run.callback_metrics)
    run.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    parts = Classifier.constructor_arguments_from(saved["etude"])
    assert parts["contract"] == CONTRACT and parts["labels"] == {"style": ["folk", "rock"]} and "tokenizer" not in parts
    found = predicted(of, data.val_dataloader())["style"]
    assert sorted(found) == list(range(sum(data.num_pieces("val", style) for style in data.styles)))
    folder = tmp_path / "evaluated"
    folder.mkdir()
    rows = score_classifier(task=of, datamodule=data, folder=folder, split="val")
    methods = [row["method"] for row in rows]
    assert methods == [
        "most frequent class", "mean and deviation of bands, logistic regression", "the same, balanced classes", "this model",
    ]  # fmt: skip
    assert rows[-1]["temperature"] == of.temperatures["style"] and 0 <= rows[-1]["calibration error before"] <= 1
    assert (folder / "reliability_style.png").stat().st_size > 1000 and (folder / "report.html").is_file()
    other = task(contract=MelContract(n_mels=24))
    with pytest.raises(ValueError, match="another mel contract"):
        other.on_load_checkpoint(saved)


def test_it_starts_from_a_grader_of_the_same_mels(tmp_path: Path) -> None:
    teacher = grader(contract=CONTRACT, model=partial(GraderNetwork, channels=4, dim=16, num_layers=2))
    saved = {"state_dict": teacher.state_dict(), "etude": {"contract": CONTRACT.to_dict()}}
    found = task().weights_from(saved, tmp_path)
    torch.testing.assert_close(found["model.networks.0.inlet.weight"], teacher.state_dict()["model.inlet.weight"])
    with pytest.raises(ValueError, match="it reads other mels: sample_rate"):
        task(contract=MelContract(n_mels=16)).weights_from(saved, tmp_path)
    with pytest.raises(ValueError, match="give the model= options of its run"):
        task(model=partial(MelEncoder, channels=8, dim=16, num_layers=2)).weights_from(saved, tmp_path)
    scores = {"state_dict": {"model.embedding.weight": torch.zeros(2, 2)}, "etude": {"tokenizer": {}}}
    with pytest.raises(ValueError, match="it holds no such network of mels"):
        task().weights_from(scores, tmp_path)


def test_options_of_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task.hide_metre=True is about tokens"):
        task(hide_metre=True)
    with pytest.raises(ValueError, match="reads tokens of scores or mels of audio"):
        task(contract=None)
