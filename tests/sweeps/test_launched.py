"""What a sweep does for jobs: several devices of a trial, ranks, and starting again under Slurm."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from optuna.trial import TrialState

from etude.core.ranks import rank
from etude.core.stopping import Stopped
from etude.run import sweeping
from etude.run.launched import refuse_several_devices
from etude.sweeps.plan import Plan
from etude.sweeps.processes import start_command
from etude.sweeps.storage import open_storage, storage_url
from etude.sweeps.study import open_study
from tests.songs import write_songs
from tests.test_run import TINY, call

ROOT = Path(__file__).parents[2]


@pytest.fixture
def multirun() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        HydraConfig.instance().set_config(compose("train", overrides=["hydra.mode=MULTIRUN"], return_hydra_config=True))


def test_a_launched_trial_has_several_devices_if_its_job_has_a_task_for_each(
    multirun: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(ValueError, match="on every rank"):
        refuse_several_devices(2, trial=False)
    with pytest.raises(ValueError, match="tasks_per_node=2"):
        refuse_several_devices(2, trial=True)
    for devices in (1, "1", "auto"):
        refuse_several_devices(devices, trial=False)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    refuse_several_devices(2, trial=True)
    with pytest.raises(ValueError, match="on every rank"):
        refuse_several_devices(2, trial=False)


def test_a_trial_with_a_command_of_its_own_is_no_rank_of_the_sweeps_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_PROCID", "RANK", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "3")
    program = "import os; print(sorted({'SLURM_PROCID', 'RANK', 'SLURM_NTASKS'} & set(os.environ)))"
    process = start_command([sys.executable, "-S", "-c", program], output=tmp_path / "o.txt", threads=None)
    process._process.wait()
    assert (tmp_path / "o.txt").read_text() == "[]\n" and rank() == 0


def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a program in the place of scontrol, since there is no Slurm here; returns the file of what it was asked."""
    asked = folder / "asked"
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return asked


@pytest.mark.parametrize("autoresume", [True, False])
def test_a_sweep_that_slurm_warns_asks_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], autoresume: bool
) -> None:
    asked = slurm(tmp_path, monkeypatch)

    def stopped(*_: Any) -> None:
        raise Stopped(signal.SIGUSR1)

    monkeypatch.setattr(sweeping, "read_request", stopped)
    nothing: Any = None
    with pytest.raises(SystemExit) as end:
        sweeping.run_sweep(OmegaConf.create({"autoresume": autoresume}), nothing, nothing, [])
    assert end.value.code == 128 + signal.SIGUSR1
    assert asked.is_file() is autoresume and ("Slurm starts job 17 again" in capsys.readouterr().err) is autoresume


def test_a_trial_that_slurm_warns_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, url = slurm(tmp_path, monkeypatch), storage_url(str(tmp_path / "a.journal"))
    study = open_study(open_storage(url), "s", Plan(["val/nll:min"]))
    study.ask()
    write_songs(tmp_path / "songs")
    folder = tmp_path / "0"

    def warn() -> None:
        for _ in range(2400):
            if (folder / "checkpoints" / "last.ckpt").is_file():
                os.kill(os.getpid(), signal.SIGUSR1)
                return
            time.sleep(0.05)

    threading.Thread(target=warn, daemon=True).start()
    trial = f"trial={{study:s,storage:{json.dumps(url)},number:0}}"
    options = [*TINY, f"data.root={tmp_path / 'songs'}", f"cache_dir={tmp_path / 'cache'}", "autoresume=true", "~sampling", trial]
    with pytest.raises(SystemExit) as end:
        call("train", folder, *[o for o in options if not o.startswith("sampling.")], "max_steps=3000", "trainer.max_steps=3000")
    told = capsys.readouterr().err
    assert end.value.code == 128 + signal.SIGUSR1 and "by SIGUSR1" in told and not asked.exists(), told
    assert study.trials[0].state == TrialState.RUNNING
