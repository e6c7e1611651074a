"""Sweeps of real trainings from the command line."""

import csv
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests.songs import write_songs

ROOT = Path(__file__).parents[2]
TINY = [
    "data=folder", "trainer=cpu", "logger=csv", "model.dim=32", "model.num_layers=1", "model.num_heads=2", "technique=[ema]",
    "model.num_kv_heads=null", "data.max_len=256", "data.max_eval_len=512", "data.batch_size=2", "data.prepare_workers=1",
    "max_steps=24", "save_every=4", "trainer.limit_val_batches=1", "n_jobs=1",
]  # fmt: skip


def start(home: Path, *options: str) -> "subprocess.Popen[str]":
    shared = [f"data.root={home / 'songs'}", f"outputs={home / 'outputs'}", f"cache_dir={home / 'cache'}"]
    command = [sys.executable, str(ROOT / "train.py"), *TINY, *shared, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=home)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_songs(home / "songs")
    return home


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_prunes_goes_on_after_a_kill_and_leaves_its_best_as_an_experiment(home: Path, tmp_path: Path) -> None:
    options = (
        "sweep=grid", "optimizer=adamw", "optimizer.lr=0.01,0.003,1e-7", "study=rates", "pruner_options={n_startup_trials: 2}",
    )  # fmt: skip
    folder = home / "outputs" / "sweeps" / "rates"
    process = start(home, *options)
    for _ in range(2400):
        if (folder / "1" / "checkpoints" / "last.ckpt").is_file():
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start(home, *options)
    told = process.communicate(timeout=600)[0]
    assert process.returncode == 0, told
    assert "trial 1 was left behind by a process that is gone; it goes on" in told
    assert "continuing" in (folder / "output" / "1.txt").read_text()
    found = rows(folder)
    assert [row["trial"] for row in found] == ["0", "1", "2"] and [row["optimizer.lr"] for row in found] == [
        "0.01",
        "0.003",
        "1e-07",
    ]
    assert [row["state"] for row in found] == ["complete", "complete", "pruned"]
    assert found[2]["reason"].startswith("pruned by median: val/nll")
    best = min(found[:2], key=lambda row: float(row["val/nll"]))
    with (folder / best["trial"] / "metrics.csv").open() as file:
        values = [float(row["val/nll"]) for row in csv.DictReader(file) if row.get("val/nll")]
    assert len(values) == 6 and float(best["val/nll"]) == pytest.approx(min(values), rel=1e-3)
    text = (folder / "best.yaml").read_text()
    conf = tmp_path / "conf"
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment" / "found.yaml").write_text(text)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[f"hydra.searchpath=[file://{conf}]", "experiment=found"])
    assert cfg.optimizer.lr == float(best["optimizer.lr"]) and cfg.model.dim == 32 and cfg.data.max_len == 256
    assert f"best: trial {best['trial']}" in told and "results: " in told


def test_what_cannot_work_ends_before_any_trial_in_one_line(home: Path) -> None:
    wrong = [
        (["optimizer.lrx=0.1,0.2"], "there is no setting optimizer.lrx; did you mean optimizer.lr"),
        (["optimizer=muon,adamx"], "optimizer=adamx is unknown; did you mean adam"),
        (["n_trials=0", "seed=0,1"], "n_trials=0 must be at least 1"),
        (["n_jobs=1,2", "seed=0,1"], "n_jobs is the sweep's own and can't be swept"),
        ([], "sweep= has nothing to vary"),
    ]
    started = [(start(home, "sweep=random", "study=wrong", *options), told) for options, told in wrong]
    for process, told in started:
        output = process.communicate(timeout=300)[0]
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert process.returncode == 2 and len(errors) == 1 and told in errors[0], output
    assert not (home / "outputs" / "sweeps" / "wrong").exists()


def test_several_objectives_a_constraint_and_failures(home: Path) -> None:
    options = (
        "sweep=grid", "objectives=[val/nll:min,parameters:min]", "constraints=['val/nll<=100']", "study=sizes", "max_steps=4",
        "model.dim=32,33,48",
    )  # fmt: skip
    process = start(home, *options)
    told = process.communicate(timeout=600)[0]
    assert process.returncode == 0, told
    found = rows(home / "outputs" / "sweeps" / "sizes")
    assert [row["state"] for row in found] == ["complete", "fail", "complete"] and "33" in found[1]["reason"]
    assert int(found[0]["parameters"]) < int(found[2]["parameters"])


def test_an_objective_that_nothing_logs_ends_the_sweep(home: Path) -> None:
    process = start(home, "sweep=random", "objectives=[live/quality:max]", "seed=0,1,2", "study=unlogged", "pruner=none")
    told = process.communicate(timeout=600)[0]
    assert process.returncode == 2, told
    assert "error: objectives is 'live/quality', which nothing logs; there are " in told
    assert [row["state"] for row in rows(home / "outputs" / "sweeps" / "unlogged")] == ["fail"]


@pytest.mark.parametrize(("launcher", "package"), [("submitit_local", "submitit"), ("ray", "ray")])
def test_a_launcher_runs_the_trials_and_ctrl_c_puts_them_back(home: Path, launcher: str, package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"needs the extra with {package}")
    study = f"launched_{package}"
    options = ("sweep=grid", f"hydra/launcher={launcher}", f"study={study}", "seed=0,1", "lease_seconds=4", "max_steps=3000")
    folder = home / "outputs" / "sweeps" / study
    process = start(home, *options, "save_every=20", "n_jobs=2")
    for _ in range(2400):
        if all((folder / str(number) / "checkpoints" / "last.ckpt").is_file() for number in range(2)):
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 130 and "trials under way were put back" in told, told
    assert [row["state"] for row in rows(folder)] == ["waiting", "waiting"]
