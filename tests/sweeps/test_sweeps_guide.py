"""docs/guides/sweeps.md, followed to the letter in a copy of the repository: each of its commands is run, with tiny trials."""

import csv
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.songs import write_songs

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "sweeps.md").read_text()
PLAIN = re.sub(r"^```.*?^```$", "", GUIDE, flags=re.MULTILINE | re.DOTALL)  # without what stands in files
COMMANDS = re.findall(r"^ {4}(.*)$|`((?:python|etude|make) [^`]*)`", PLAIN, re.MULTILINE)
SMALL = [  # stands before the options of a command, which take precedence
    "model.dim=32", "model.num_layers=1", "model.num_heads=2", "model.num_kv_heads=null", "data.max_len=256",
    "data.max_eval_len=512", "data.batch_size=2", "data.prepare_workers=1", "trainer.max_steps=2", "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
]  # fmt: skip
FEW = ["sampling.num_samples=1", "sampling.num_bars=1", "sampling.audio=false", "sampling.max_new_tokens=50"]
FOLLOW = """
import json, subprocess, sys
from etude.run.cli import run

def main():  # one process, which imports once
    for command in json.load(open(sys.argv[1])):
        print("$", *command, file=sys.stderr, flush=True)
        if command[:2] != ["python", "train.py"]:
            subprocess.run(command, check=True)
            continue
        sys.argv = command[1:]
        run("train", command[2:])

if __name__ == "__main__":
    main()
"""
SLURM = {  # a cluster of one machine
    "sbatch": 'cp "$1" asked.sh; SLURM_JOB_ID=17 SLURM_NTASKS=1 bash "$1" > job.txt 2>&1 & echo Submitted batch job 17',
    "srun": 'shift 5; exec "$@"',  # --unbuffered --output FILE --error FILE
    "sacct": "echo 'JobID|State|NodeList'; echo '17|RUNNING|here'",
}


def tiny(command: str) -> list[str]:
    """Returns the words of a command, with a single trial, or with a second one where the sweep of the first command goes on."""
    words = shlex.split(command)
    if words[:2] != ["python", "train.py"] or "--cfg" in words:
        return words
    if "sweep=tpe" not in words and "sweep=nsga2" not in words:  # a single run, which samples
        return [*words, *SMALL, *FEW]
    trials = "2" if "study=first" in words and command != COMMANDS[0][0] else "1"
    return [*words[:2], *SMALL, *(f"n_trials={trials}" if word.startswith("n_trials=") else word for word in words[2:])]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, with songs and a cluster, in which the guide was followed."""
    home = tmp_path_factory.mktemp("home")
    for name in ("src", "conf", "scripts"):
        shutil.copytree(ROOT / name, home / name)
    for name in ("train.py", "Makefile"):
        shutil.copy(ROOT / name, home)
    write_songs(home / "my_songs")
    (home / "bin").mkdir()
    for name, text in SLURM.items():
        (home / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (home / "bin" / name).chmod(0o755)
    ((name, space),) = re.findall(r"As `(\w+\.yaml)`:\n\n```yaml\n(.*?)```", GUIDE, re.DOTALL)
    (home / name).write_text(space)
    (home / "follow.py").write_text(FOLLOW)
    commands = [tiny(block or inline) for block, inline in COMMANDS]
    (home / "commands.json").write_text(json.dumps([command for command in commands if command[0] != "make"]))
    environment = {
        **os.environ, "PYTHONPATH": str(home / "src"), "OMP_NUM_THREADS": "1", "HOME": str(home), "WANDB_SILENT": "true",
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    environment.pop("WANDB_API_KEY", None)
    done = subprocess.run(
        [sys.executable, "follow.py", "commands.json"], cwd=home, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (home / "told.txt").write_text(done.stderr)
    return home


def rows(home: Path, study: str) -> list[dict[str, str]]:
    with (home / "outputs" / "sweeps" / study / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_sweep_comes_to_its_end(home: Path) -> None:
    studies = [word.partition("=")[2] for block, _ in COMMANDS for word in block.split() if word.startswith("study=")]
    assert len(studies) > 6
    for study in studies:
        states = [row["state"] for row in rows(home, study)]
        assert states == ["complete"] * (2 if study == "first" else 1), study
    assert "study first: 1 of 2 trials are finished" in (home / "told.txt").read_text()
    assert {"optimizer", "optimizer.lr@muon", "optimizer.momentum@muon", "optimizer.lr@adamw"} <= rows(home, "optimizers")[
        0
    ].keys()
    assert "parameters" in rows(home, "sizes")[0] and (home / "shared" / "sweeps.journal").is_file()


@pytest.mark.slow
def test_a_sweep_leaves_what_the_table_says(home: Path) -> None:
    (table,) = re.findall(r"^\| in `(\S+)` \| holds \|\n\|---\|---\|\n((?:\|.*\n)+)", GUIDE, re.MULTILINE)
    first = home / table[0]
    named = {name for line in table[1].splitlines() for name in re.findall(r"`([^`=]+)`", line.split("|")[1])}
    assert {"best.yaml", "report.html", "trials.csv", "0", "output/0.txt"} <= named
    assert all((first / name).exists() for name in named), named
    assert not (first / "0" / "samples").exists()


@pytest.mark.slow
def test_slurm_is_asked_for_what_the_command_says(home: Path) -> None:
    asked = (home / "asked.sh").read_text()
    for flag in ("--partition=cpu", "--time=240", "--cpus-per-task=4"):
        assert f"#SBATCH {flag}\n" in asked


@pytest.mark.slow
def test_the_best_settings_are_an_experiment(home: Path) -> None:
    (run,) = (path.parent for path in (home / "outputs").glob("2*/*/config.yaml"))
    best = next(row for row in rows(home, "first") if f"(trial {row['trial']})" in (home / "told.txt").read_text())
    text = (run / "config.yaml").read_text()
    assert f"lr: {best['optimizer.lr']}"[:10] in text and "max_steps: 2000" in text


@pytest.mark.slow
def test_wandb_has_a_run_for_each_trial(home: Path) -> None:
    assert list((home / "outputs" / "sweeps" / "tracked" / "0" / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_the_dashboard_answers(home: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="needs etude[dashboard]")
    (command,) = (shlex.split(block) for block, _ in COMMANDS if block.startswith("make "))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = [
        "-o",
        "setup",
        f"BIN={Path(sys.executable).parent}",
        f"ARGS=--port {port}",
    ]  # what is installed is not installed again
    process = subprocess.Popen([*command, *here], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            assert process.poll() is None, process.communicate()[0]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                    assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["first"]
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise AssertionError("no answer")
    finally:
        process.terminate()
        process.communicate(timeout=30)
