"""The driver with processes of the test's own: signals, trials that are put back, leases that are another's."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from etude.run.launched import LaunchedTrial
from etude.sweeps import driver as drivers
from etude.sweeps.driver import Driver
from etude.sweeps.early_end import EarlyEnd
from etude.sweeps.leases import AGAIN, END, LEASE, Lease, Leases, Owner
from etude.sweeps.plan import Plan
from etude.sweeps.processes import Process
from etude.sweeps.space import Space, interval
from etude.sweeps.storage import open_storage, storage_url
from etude.sweeps.study import REASON, open_study

SPACE: Space = (interval("x", "x", 0.0, 1.0),)
Start = Callable[[Leases, int], Process]


@dataclass
class Ended:
    """A process that has ended before anyone looks."""

    code: int
    told: str = ""
    pid: int | None = None
    sentinel: int | None = None

    def exit_code(self) -> int:
        return self.code

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def sweep(folder: Path, start: Start, *, n_trials: int = 1) -> tuple[Driver, list[str]]:
    storage, plan, told = open_storage(storage_url(str(folder / "a.journal"))), Plan(["a:min"]), list[str]()
    study = open_study(storage, "s", plan)
    leases = Leases(study, storage)
    driver = Driver(
        study, plan, SPACE, leases, folder, n_trials, 1, lambda number, *_: start(leases, number), EarlyEnd(plan), told.append
    )
    return driver, told


def tell(leases: Leases, number: int) -> Ended:
    leases.study.tell(number, 1.0)
    return Ended(0)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "PAUSE", 0.0)


def test_ctrl_c_asks_launched_trials_to_end_outside_its_handler(tmp_path: Path) -> None:
    """The main thread may hold the storage's lock, which a handler would wait for without end."""
    asked, ends = list[str](), threading.Event()

    def ask() -> None:
        asked.append("asked")
        ends.set()

    driver, _ = sweep(tmp_path, lambda leases, number: Ended(0))
    process = LaunchedTrial(lambda: list[str]() if ends.wait() else [""], ask)
    driver._slots[0] = process
    with driver._signals():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert driver._stopped is not None and asked == []
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert driver._at_once and asked == []
    driver._slots.clear()

    trial = driver.study.ask()
    driver.leases.take(trial)
    driver._slots[trial.number] = process
    driver._loop()
    assert asked == ["asked"] and driver.study.trials[0].state == TrialState.WAITING


@pytest.mark.parametrize("code", [-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGUSR1])
def test_a_trial_that_was_ended_from_outside_is_put_back(tmp_path: Path, code: int) -> None:
    begun = list[int]()

    def start(leases: Leases, number: int) -> Process:
        begun.append(number)
        return tell(leases, number) if len(begun) > 1 else Ended(code)

    driver, told = sweep(tmp_path, start)
    driver.run()
    assert begun == [0, 0] and [t.state for t in driver.study.trials] == [TrialState.COMPLETE]
    assert any("trial 0 is put back: ended by SIG" in line for line in told)


def test_a_trial_that_says_so_is_put_back_and_not_without_end(tmp_path: Path) -> None:
    begun = list[int]()

    def start(leases: Leases, number: int) -> Process:
        begun.append(number)
        trial = leases.study.get_trials(deepcopy=False)[number]
        assert not trial.user_attrs.get(AGAIN), "an earlier try is forgotten"
        leases.storage.set_trial_user_attr(trial._trial_id, AGAIN, "the folder is in use")
        return Ended(2)

    driver, _ = sweep(tmp_path, start)
    driver.run()
    assert len(begun) == 1 + drivers.TRIES
    (trial,) = driver.study.trials
    assert trial.state == TrialState.FAIL and trial.user_attrs[REASON] == "the folder is in use"


def test_what_a_launcher_says_is_the_reason(tmp_path: Path) -> None:
    driver, _ = sweep(tmp_path, lambda leases, number: Ended(1, told="sbatch: error: invalid partition"))
    driver.run()
    assert driver.study.trials[0].user_attrs[REASON] == "sbatch: error: invalid partition"


def test_of_a_trial_that_is_another_hosts_nothing_is_told(tmp_path: Path) -> None:
    def start(leases: Leases, number: int) -> Process:
        trial = leases.study.get_trials(deepcopy=False)[number]
        leases.storage.set_trial_user_attr(trial._trial_id, LEASE, Lease.new(Owner("there", 1, 0.0)).saved())
        return Ended(2)

    driver, _ = sweep(tmp_path, start)
    driver._fill()
    driver._reap()
    (trial,) = driver.study.trials
    assert trial.state == TrialState.RUNNING and trial.user_attrs[LEASE]["owner"]["host"] == "there"


def test_a_lease_that_is_another_hosts_is_not_asked_to_end(tmp_path: Path) -> None:
    driver, _ = sweep(tmp_path, lambda leases, number: Ended(0))
    leases, trial = driver.leases, driver.study.ask()
    leases.take(trial)
    theirs = Lease.new(replace(leases.owner, host="there"))
    trial.set_user_attr(LEASE, theirs.saved())
    leases.ask_to_end(trial.number)
    assert END not in driver.study.trials[0].user_attrs
    trial.set_user_attr(LEASE, replace(theirs, token=leases.token(trial.number)).saved())  # adopted by the trial itself
    leases.ask_to_end(trial.number)
    assert driver.study.trials[0].user_attrs[END] is True
