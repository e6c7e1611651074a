"""Sweeps with real processes over a function: killed, interrupted, shared by several drivers."""

import collections
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from etude.sweeps.storage import open_storage, storage_url

ROOT = Path(__file__).parents[2]


def start(folder: Path, *options: str, **variables: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.toy_sweep", str(folder), *options]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **variables}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment)


def done(process: "subprocess.Popen[str]", code: int = 0) -> str:
    told = process.communicate(timeout=300)[0]
    assert process.returncode == code, told
    return told


def killed(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def study(folder: Path, name: str = "study.journal") -> optuna.Study:
    return optuna.load_study(storage=open_storage(storage_url(str(folder / name))), study_name="toy")


def until(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    for _ in range(3000):
        if holds():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("it never came to that")


def lines(folder: Path, kind: str) -> collections.Counter[int]:
    """How often each trial has begun or ended."""
    path = folder / "runs.txt"
    text = path.read_text().splitlines() if path.is_file() else []
    return collections.Counter(int(line.split()[1]) for line in text if line.startswith(kind))


def finished(found: optuna.Study) -> list[tuple[object, ...]]:
    return [(t.number, t.state.name, t.values, t.params) for t in found.get_trials(deepcopy=False)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    done(start(folder, "--n-trials", "14"))
    return folder


def test_every_trial_runs_once_in_its_number(whole: Path) -> None:
    trials = study(whole).trials
    assert [t.number for t in trials] == list(range(14)) and all(t.state.is_finished() for t in trials)
    assert lines(whole, "begin") == collections.Counter(range(14))
    for trial in trials:
        assert ("width@round" in trial.params) == (trial.params["kind"] == "round")
        if trial.params["n"] == 9:
            assert trial.state == TrialState.FAIL and trial.user_attrs["reason"] == "n=9 always fails"
        else:
            assert trial.state == TrialState.COMPLETE and trial.values is not None


def test_killed_and_started_again_it_reaches_the_same_trials(whole: Path, tmp_path: Path) -> None:
    options = ("--n-trials", "14", "--seconds", "0.5", "--lease-seconds", "2")
    for count in (2, 5, 9):
        process = start(tmp_path, *options)
        until(lambda count=count: lines(tmp_path, "begin").total() > count, process)  # type: ignore[misc]
        killed(process)
    told = done(start(tmp_path, *options))
    assert finished(study(tmp_path)) == finished(study(whole))
    assert "was left behind by a process that is gone; it goes on" in told
    ended = lines(tmp_path, "end")
    assert all(ended[t.number] == 1 for t in study(tmp_path).trials if t.state == TrialState.COMPLETE)
    for trial in study(tmp_path).trials:  # each step was made once, also by those that were killed
        if trial.state == TrialState.COMPLETE:
            assert (tmp_path / str(trial.number) / "steps.txt").read_text() == "....."


@pytest.mark.parametrize(("number", "storage"), [(signal.SIGINT, "study.journal"), (signal.SIGTERM, "study.db")])
def test_a_signal_leaves_nothing_running_and_the_next_start_goes_on(tmp_path: Path, number: int, storage: str) -> None:
    options = ("--n-trials", "6", "--n-jobs", "2", "--seconds", "2", "--storage", str(tmp_path / storage))
    process = start(tmp_path, *options)
    until(lambda: lines(tmp_path, "begin").total() >= 3, process)
    before = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    done(process, 128 + number)
    trials = study(tmp_path, storage).trials  # one or two were running, a busy machine may not have begun the second yet
    begun = [t for t in trials if lines(tmp_path, "begin")[t.number]]
    assert all(t.state.is_finished() or t.state == TrialState.WAITING for t in begun)
    assert 1 <= sum(t.state == TrialState.WAITING for t in begun) <= 2
    assert not any(t.state == TrialState.RUNNING for t in trials)
    assert all(t.user_attrs["reason"] == "n=9 always fails" for t in trials if t.state == TrialState.FAIL)
    _, alive = psutil.wait_procs(before, timeout=10)
    assert not alive, "a process was left behind"
    done(start(tmp_path, *options))
    assert [t.state.is_finished() for t in study(tmp_path, storage).trials] == [True] * 6
    assert max(lines(tmp_path, "end").values()) == 1


def test_when_the_sweep_is_killed_its_trials_end_too(tmp_path: Path) -> None:
    process = start(tmp_path, "--n-trials", "4", "--n-jobs", "2", "--seconds", "60")
    until(lambda: lines(tmp_path, "begin").total() == 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    killed(process)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


def test_two_drivers_share_the_trials(tmp_path: Path) -> None:
    options = ("--n-trials", "12", "--seconds", "0.3", "--lease-seconds", "5")
    processes = [start(tmp_path, *options) for _ in range(2)]
    for process in processes:
        done(process)
    trials = study(tmp_path).trials
    assert sum(t.state.is_finished() for t in trials) == 12 and all(not t.state.is_finished() for t in trials[12:])
    assert lines(tmp_path, "begin") == collections.Counter(range(12)), "each trial was begun once"
    assert not any(t.state == TrialState.RUNNING for t in trials)


def test_more_trials_go_on_where_the_study_was(whole: Path, tmp_path: Path) -> None:
    done(start(tmp_path, "--n-trials", "5"))
    assert "trial 5" not in done(start(tmp_path, "--n-trials", "5"))  # nothing is left to do
    done(start(tmp_path, "--n-trials", "8"))
    assert finished(study(tmp_path)) == finished(study(whole))[:8]


def test_a_killed_trial_fails_with_its_reason_and_the_sweep_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, "--n-trials", "3", "--seconds", "2")
    until(lambda: lines(tmp_path, "begin").total() == 1, process)
    os.kill(int((tmp_path / "runs.txt").read_text().split()[2]), signal.SIGKILL)
    told = done(process)
    first = study(tmp_path).trials[0]
    assert first.state == TrialState.FAIL and first.user_attrs["reason"].startswith("killed by SIGKILL")
    assert "trial 0 of 3" in told and study(tmp_path).trials[2].state.is_finished()


def test_pruned_trials_say_so(tmp_path: Path) -> None:
    done(start(tmp_path, "--n-trials", "14", "--pruner", "median"))
    trials = study(tmp_path).trials
    pruned = [t for t in trials if t.state == TrialState.PRUNED]
    assert pruned and all(t.user_attrs["reason"].startswith("pruned by median") for t in pruned)
    best = min(t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None)
    assert all(min(t.intermediate_values.values()) > best for t in pruned)


def test_each_task_of_a_job_runs_trials_that_are_trainings_of_their_own(tmp_path: Path) -> None:
    """As with `srun -N4`: a trial that took itself for one rank of several would tell nothing."""
    done(start(tmp_path, "--n-trials", "3", SLURM_PROCID="2", SLURM_NTASKS="4", RANK="2"))
    assert {t.state for t in study(tmp_path).trials if t.params["n"] != 9} == {TrialState.COMPLETE}


def test_a_trial_that_was_asked_to_end_from_outside_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, "--n-trials", "1", "--seconds", "3")
    until(lambda: lines(tmp_path, "begin").total() == 1, process)
    os.kill(int((tmp_path / "runs.txt").read_text().split()[2]), signal.SIGTERM)
    assert "trial 0 is put back: ended by SIGTERM" in done(process)
    assert study(tmp_path).trials[0].state.is_finished() and lines(tmp_path, "begin")[0] == 2
