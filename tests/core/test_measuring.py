"""One measure of a task for validation, evaluation and conditions: the same numbers everywhere, with gradients where asked."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics import MeanMetric

from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured, measure_all, measured_batches
from etude.core.task import Task
from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.evaluation.scores import split_likelihood
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.tokens.satb import SatbGrid
from tests.songs import write_songs
from tests.toys import trainer


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("songs") / "songs", count=16)


def build(songs: Path) -> tuple[LanguageModel, MusicDataModule]:
    data = MusicDataModule(
        corpus=Folder(str(songs)), tokenizer=SatbGrid, cache_dir=str(songs.parent / "cache"), max_len=256, max_eval_len=256,
        batch_size=2, batches_per_epoch=4, prepare_workers=1, split=(0.4, 0.5, 0.1), seed=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = partial(Transformer, dim=16, num_layers=1, num_heads=2)
    return LanguageModel(model=model, tokenizer=data.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2), seed=1), data


def fgsm(task: Any, batch: Batch, size: float = 0.05) -> Batch:
    """The batch moved one step of this size against the likelihood."""
    clean = {name: value.detach().requires_grad_() for name, value in task.inputs(batch).items()}
    loss = task.losses(task.with_inputs(batch, clean))["nll"]
    gradients = torch.autograd.grad(loss, list(clean.values()))
    moved = {name: (x + size * g.sign()).detach() for (name, x), g in zip(clean.items(), gradients, strict=True)}
    return task.with_inputs(batch, moved)


def test_validation_logs_what_it_logged_before_bit_for_bit(songs: Path, tmp_path: Path) -> None:
    """The reference is the step that stood in the language model: a mean of batch means, weighted by their counts."""
    task, data = build(songs)
    run = trainer(tmp_path, max_steps=4)
    run.fit(task, datamodule=data)
    reference = MeanMetric()
    task.eval()
    with torch.inference_mode():
        for batch in data.val_dataloader():
            nll, counted = task.token_nll(batch), (batch["targets"] != -100).sum()
            reference.update(nll.sum() / counted.clamp(min=1), counted)
    assert len(list(data.val_dataloader())) > 1
    assert run.callback_metrics["val/nll"] == reference.compute()
    assert task.logged_metrics == ("val/nll",)
    assert not [name for name in task.state_dict() if "validation_means" in name]  # checkpoints stay as they were


def test_validation_evaluation_and_a_plain_sum_agree(songs: Path) -> None:
    task, data = build(songs)
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for batch in data.val_dataloader():
            nats += float(task.token_nll(batch).double().sum())
            tokens += int((batch["targets"] != -100).sum())
    found = measure_all(task, data.val_dataloader())
    assert found == {"nll": pytest.approx(nats / tokens, rel=1e-6)}
    row = split_likelihood(task, data, "val")
    assert row["tokens"] == tokens
    assert row["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-6)


def test_a_condition_gets_gradients_and_changes_what_is_measured(songs: Path) -> None:
    task, data = build(songs)
    task.train()
    clean = measure_all(task, data.val_dataloader())["nll"]
    same = measure_all(task, data.val_dataloader(), condition=lambda task, batch: task.with_inputs(batch, task.inputs(batch)))
    assert same["nll"] == pytest.approx(clean, rel=1e-6)
    attacked = measure_all(task, data.val_dataloader(), condition=fgsm)["nll"]
    assert attacked > clean + 0.01
    row = split_likelihood(task, data, "val", condition=fgsm)
    assert row["nats_per_token"] == pytest.approx(attacked, rel=1e-5)
    assert task.training  # as it was
    assert all(parameter.grad is None for parameter in task.parameters())


def test_each_batch_is_given_with_its_measure_in_evaluation_mode() -> None:
    class Counting(Task):
        """Measures the mean of x."""

        def measures(self) -> tuple[Measure, ...]:
            return (Measure("x", "none", higher_is_better=True),)

        def measure(self, batch: Batch) -> dict[str, Measured]:
            assert not self.training and not torch.is_grad_enabled()
            return {"x": Measured(batch["x"].mean(), torch.tensor(len(batch["x"])))}

    task = Counting(optimizer=lambda groups: torch.optim.SGD(groups))
    batches = [{"x": torch.tensor([1.0, 2.0, 3.0])}, {"x": torch.tensor([10.0])}]
    assert [float(found["x"].mean) for _, found in measured_batches(task, batches)] == [2.0, 10.0]
    assert measure_all(task, batches) == {"x": 4.0}
    assert task.logged_metrics == ("val/x",)
    with pytest.raises(ValueError, match="higher values are better, but its mode is min"):
        task.check_metric("val/x", "monitor", "min", [])
    task.check_metric("val/x", "monitor", "max", [])
    for nothing in ([], [{"x": torch.empty(0)}]):
        with pytest.raises(ValueError, match="no held-out data to measure"):
            measure_all(task, nothing)
