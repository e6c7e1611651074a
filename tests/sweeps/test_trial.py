"""A trial in its own process: what it tells the study, and when it tells nothing."""

import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from etude.core.stopping import Stopped
from etude.run.folder import locked_folder
from etude.sweeps.callback import TrialCallback
from etude.sweeps.leases import AGAIN, LEASE, Lease, LeaseLost, Owner
from etude.sweeps.plan import Plan
from etude.sweeps.storage import open_storage, storage_url
from etude.sweeps.study import open_study
from etude.sweeps.trial import RunningTrial, running_trial


@pytest.fixture
def begun(tmp_path: Path) -> tuple[optuna.Study, dict[str, Any]]:
    """A study with a running trial that a launcher has started, and what the trial gets."""
    url = storage_url(str(tmp_path / "a.journal"))
    study = open_study(open_storage(url), "s", Plan(["a:min"]))
    lease = Lease.new(Owner("here", 1, 0.0))
    study.ask().set_user_attr(LEASE, lease.saved())
    return study, {"study": "s", "storage": url, "number": 0, "token": lease.token, "lease_seconds": 60}


def test_a_job_whose_trial_was_taken_over_tells_nothing(begun: tuple[optuna.Study, dict[str, Any]]) -> None:
    study, node = begun
    with pytest.raises(LeaseLost, match="taken over"), running_trial({**node, "token": "an earlier one"}):
        raise AssertionError("it must not begin")
    (trial,) = study.trials
    assert trial.state == TrialState.RUNNING and set(trial.user_attrs) == {LEASE}


@pytest.mark.parametrize("launched", [True, False])
def test_a_folder_in_use_is_no_failure(begun: tuple[optuna.Study, dict[str, Any]], tmp_path: Path, launched: bool) -> None:
    study, node = begun
    given = node if launched else {key: node[key] for key in ("study", "storage", "number")}
    with (
        locked_folder(tmp_path),
        pytest.raises(ValueError, match="still running"),
        running_trial(given),
        locked_folder(tmp_path),
    ):
        raise AssertionError("it must not begin")
    assert study.trials[0].state == TrialState.RUNNING and "still running" in study.trials[0].user_attrs[AGAIN]


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_launched_trial_says_that_a_signal_has_ended_it(begun: tuple[optuna.Study, dict[str, Any]], wrapped: bool) -> None:
    study, node = begun
    stopped = Stopped(signal.SIGTERM)
    with pytest.raises(SystemExit if wrapped else Stopped), running_trial(node):
        if wrapped:
            sys.exit(stopped.exit_code)
        raise stopped
    assert study.trials[0].state == TrialState.RUNNING and study.trials[0].user_attrs[AGAIN] == "ended by SIGTERM"


def test_the_time_since_the_last_validation_is_saved(begun: tuple[optuna.Study, dict[str, Any]]) -> None:
    study, _ = begun
    trainer: Any = SimpleNamespace(global_step=0, callback_metrics={}, sanity_checking=False)
    module: Any = SimpleNamespace(parameters=list)
    callback = TrialCallback(RunningTrial(optuna.Trial(study, 0), Plan(["a:min"])))
    assert callback.state_dict()["seconds"] == 0
    callback.on_train_start(trainer, module)
    time.sleep(0.05)
    saved = callback.state_dict()["seconds"]
    assert 0.05 <= saved < 5
    callback.on_train_end(trainer, module)
    ended = callback.state_dict()["seconds"]
    time.sleep(0.02)
    assert callback.state_dict()["seconds"] == ended >= saved  # what follows the training is not counted
    later = TrialCallback(RunningTrial(optuna.Trial(study, 0), Plan(["a:min"])))
    later.load_state_dict(callback.state_dict())
    later.on_train_start(trainer, module)
    assert later.state_dict()["seconds"] >= ended


@pytest.mark.parametrize(("seen", "early"), [({"train/nll": 1.0}, True), ({"train/nll": 1.0, "val/accuracy": 0.5}, False)])
def test_a_trial_that_ended_before_a_validation_says_so(
    begun: tuple[optuna.Study, dict[str, Any]], seen: dict[str, float], early: bool
) -> None:
    running = RunningTrial(optuna.Trial(begun[0], 0), Plan(["val/nll:min"]))
    running.take(seen)
    with pytest.raises(ValueError, match="nothing logged 'val/nll'") as caught:
        running.finish()
    assert ("ended before a validation: give more max_steps" in str(caught.value)) == early
