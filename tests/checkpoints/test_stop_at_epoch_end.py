"""A signal in the validation that ends an epoch: reader processes have read ahead, and nothing of it is lost on resuming."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from etude.core.checkpoints import LastCheckpoint
from tests.songs import write_songs
from tests.test_composition import Terminator, build
from tests.toys import same, trainer, weights


@pytest.mark.parametrize(("accumulate", "stop"), [(1, 10), (2, 6)])  # epochs have 5 batches
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_ended_in_the_validation_of_an_epochs_end_goes_on_exactly(
    tmp_path: Path, workers: int, accumulate: int, stop: int
) -> None:
    songs = write_songs(tmp_path / "songs")

    def run(name: str, *, terminate_at: int = 1000, resume: Path | None = None) -> dict[str, torch.Tensor]:
        task, data = build("language_model", songs, workers)
        last = LastCheckpoint(path=tmp_path / name / "last.ckpt", every_n_steps=1000)
        fit = trainer(
            tmp_path / name, max_steps=stop + 4, callbacks=[Terminator(terminate_at), last], val_check_interval=5,
            check_val_every_n_epoch=None, accumulate_grad_batches=accumulate,
        )  # fmt: skip
        with suppress(SystemExit):
            fit.fit(task, data, ckpt_path=resume, weights_only=True)
        return weights(task)

    whole = run("whole")
    run("half", terminate_at=stop)
    assert torch.load(tmp_path / "half" / "last.ckpt", weights_only=True)["global_step"] == stop
    assert same(whole, run("rest", resume=tmp_path / "half" / "last.ckpt"))
