"""Hashes of weights and batches: they name the first step and tensor in which two runs differ."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from etude.core.checkpoints import LastCheckpoint
from etude.core.hash_log import HashLog, compare_hashes, hash_log, read_hashes, tensor_hash
from tests.core.test_checkpoints import Killer, KillError
from tests.toys import PairsData, ToyGan, trainer


class Change(pl.Callback):
    """Changes one weight by one bit after a step, or one value of a batch before it."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.what == "batch" and trainer.global_step == self.step:
            batch["b"][0, 0] += 1e-6

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.what == "weight" and trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.da[0].bias[0] = torch.nextafter(pl_module.da[0].bias[0], torch.tensor(9.0))


def run(folder: Path, *callbacks: pl.Callback, every: int = 2, resume: Path | None = None, workers: int = 0) -> Path:
    torch.manual_seed(0)
    log = HashLog(path=folder / "hashes.tsv", every_n_steps=every)
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=3)
    fit = trainer(folder, max_steps=20, callbacks=[*callbacks, log, last])
    with suppress(KillError):
        fit.fit(ToyGan(), PairsData(num_workers=workers), ckpt_path=resume, weights_only=True)
    return log.path


def test_equal_runs_agree_also_one_that_was_killed_and_continued(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert sorted(read_hashes(whole)) == list(range(2, 21, 2))
    run(tmp_path / "half", Killer(11))
    path = tmp_path / "half" / "hashes.tsv"
    path.write_text(path.read_text() + "12\tabc")  # killed while it wrote
    rest = run(tmp_path / "half", resume=tmp_path / "half" / "last.ckpt")
    assert rest.read_text() == whole.read_text() and compare_hashes(whole, rest) is None


@pytest.mark.parametrize("kind", ["FSDPStrategy", "ModelParallelStrategy"])
def test_a_sharded_model_is_refused_before_training(tmp_path: Path, kind: str) -> None:
    fit = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    fit.strategy.__class__ = type(kind, (type(fit.strategy),), {})  # the real ones need several devices
    log = HashLog(path=tmp_path / "hashes.tsv", every_n_steps=2)
    with pytest.raises(ValueError, match="hash_every=2 hashes whole weights, but trainer=fsdp shards the model; leave it out"):
        log.setup(fit, ToyGan(), "fit")


@pytest.mark.parametrize("resumed", [False, True])
def test_the_first_difference_is_named(tmp_path: Path, resumed: bool) -> None:
    whole = run(tmp_path / "whole")
    found = {what: compare_hashes(whole, run(tmp_path / what, Change(7, what))) for what in ("weight", "batch")}
    assert found["weight"] is not None and found["weight"].startswith("step 8: da.0.bias (")
    assert found["batch"] is not None and found["batch"].startswith("step 8: batches (")
    assert found["batch"].endswith(", some batch after step 6")


def test_every_bit_counts() -> None:
    value = torch.randn(3, 4)
    other = value.clone()
    other.view(torch.int32)[1, 2] ^= 1
    hashes = [tensor_hash(each) for each in (value, other, value.reshape(4, 3), value.double(), value.T, torch.zeros(0))]
    assert len(set(hashes)) == 6 and tensor_hash(value.clone()) == hashes[0]
    assert tensor_hash(torch.tensor(1.5, dtype=torch.bfloat16)) != tensor_hash(torch.tensor(1.5, dtype=torch.float16))


def test_what_can_not_be_compared_is_told(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    one.write_text("step\tbatches\tw\n2\ta\tb\n")
    two.write_text("step\tbatches\tw\n3\ta\tb\n")
    other.write_text("loss,step\n1,2\n")
    with pytest.raises(ValueError, match="have no step in common; give the same hash_every"):
        compare_hashes(one, two)
    with pytest.raises(ValueError, match="other: line 1 is not a row of hashes"):
        compare_hashes(one, other)
    with pytest.raises(ValueError, match="missing: there is no such file; set hash_every=10"):
        compare_hashes(one, tmp_path / "missing")
    with pytest.raises(ValueError, match="hash_every is -1, must be at least 1 step, or 0"):
        hash_log(one, -1)
    assert hash_log(one, 0) == []
    two.write_text("step\tbatches\tw\tx\n2\ta\tb\tc\n")
    assert compare_hashes(one, two) == "step 2: only one of the runs has x"
