"""What a sweep does for jobs: several devices of a trial, ranks, and starting again under Slurm."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from etude.core.ranks import rank
from etude.core.stopping import Stopped
from etude.run import sweeping
from etude.run.launched import refuse_several_devices
from etude.sweeps.processes import start_command

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


@pytest.mark.parametrize("autoresume", [True, False])
def test_a_sweep_that_slurm_warns_asks_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], autoresume: bool
) -> None:
    """By a program in the place of scontrol, since there is no Slurm here."""
    asked = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")

    def stopped(*_: Any) -> None:
        raise Stopped(signal.SIGUSR1)

    monkeypatch.setattr(sweeping, "read_request", stopped)
    nothing: Any = None
    with pytest.raises(SystemExit) as end:
        sweeping.run_sweep(OmegaConf.create({"autoresume": autoresume}), nothing, nothing, [])
    assert end.value.code == 128 + signal.SIGUSR1
    assert asked.is_file() is autoresume and ("Slurm starts job 17 again" in capsys.readouterr().err) is autoresume
