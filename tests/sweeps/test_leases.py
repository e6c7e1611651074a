"""Leases: who may take over a trial, seen with clocks and processes of the test's own."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from etude.sweeps.leases import LEASE, Lease, Leases, Owner, Watcher, claim, this_host
from etude.sweeps.plan import Plan
from etude.sweeps.storage import open_storage, storage_url
from etude.sweeps.study import open_study


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["a.db", "a.journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    return open_storage(storage_url(str(tmp_path / request.param)))


@pytest.fixture
def study(storage: BaseStorage) -> optuna.Study:
    return open_study(storage, "s", Plan(["a:min"]))


def set_lease(study: optuna.Study, trial: optuna.Trial, lease: Lease) -> None:
    trial.set_user_attr(LEASE, lease.saved())


def test_a_process_is_known_by_its_id_and_start() -> None:
    mine = Owner.of(os.getpid())
    assert mine is not None and mine.alive() and mine.host == this_host()
    assert not replace(mine, started=mine.started - 100).alive()  # another process had this id
    process = subprocess.Popen([sys.executable, "-c", ""])
    theirs = Owner.of(process.pid)
    assert theirs is not None
    process.wait()
    assert not theirs.alive() and Owner.of(process.pid) is None


def test_on_its_own_host_a_dead_owner_is_seen_at_once(study: optuna.Study) -> None:
    me = Owner.of(os.getpid())
    assert me is not None
    dead, watcher = replace(me, started=0.0), Watcher(host=me.host, seconds=60, clock=Clock())
    trial = study.ask()
    for lease, is_dead in (
        (Lease.new(me), False), (Lease.new(dead), True), (replace(Lease.new(dead), worker=me), False),
        (replace(Lease.new(dead), worker=dead), True),
    ):  # fmt: skip
        set_lease(study, trial, lease)
        assert watcher.is_dead(study.trials[0]) is is_dead


def test_from_another_host_a_lease_is_dead_when_its_beat_stands_still(study: optuna.Study) -> None:
    clock = Clock()
    watcher = Watcher(host="here", seconds=60, clock=clock)
    trial, lease = study.ask(), Lease.new(Owner("there", 1, 0.0))
    set_lease(study, trial, lease)
    for beat in range(5):
        set_lease(study, trial, replace(lease, beat=beat))
        assert not watcher.is_dead(study.trials[0])
        clock.now += 59
        assert not watcher.is_dead(study.trials[0])
        clock.now += 0.5
    clock.now += 0.6
    assert watcher.is_dead(study.trials[0])


def test_a_trial_without_a_lease_is_dead_after_a_while(study: optuna.Study) -> None:
    clock = Clock()
    watcher = Watcher(host="here", seconds=60, clock=clock)
    study.ask()
    assert not watcher.is_dead(study.trials[0])
    clock.now = 61
    assert watcher.is_dead(study.trials[0])


def test_of_many_that_claim_a_lease_one_wins(storage: BaseStorage, study: optuna.Study) -> None:
    assert [claim(storage, "s", 3, "token") for _ in range(5)] == [True] + [False] * 4
    assert claim(storage, "s", 3, "another") and claim(storage, "s", 4, "token")
    assert study.trials == []  # claims are kept apart


def test_a_dead_trial_goes_on_with_its_number_and_values(storage: BaseStorage, study: optuna.Study) -> None:
    leases = Leases(study, storage)
    trial = study.ask()
    value = trial.suggest_float("x", 0, 1)
    set_lease(study, trial, Lease.new(replace(leases.owner, started=0.0)))
    others = [Leases(study, storage) for _ in range(3)]
    found = study.get_trials(deepcopy=False)
    assert [other.recover(found) for other in others] == [[0], [], []]
    assert study.trials[0].state == TrialState.WAITING
    again = study.ask()
    assert again.number == 0 and again.suggest_float("x", 0, 1) == value
    leases.take(again)
    assert Leases(study, storage).recover(study.trials) == []


def test_if_the_winner_of_a_claim_dies_another_comes_after_a_while(storage: BaseStorage, study: optuna.Study) -> None:
    clock = Clock()
    leases = Leases(study, storage, seconds=60, clock=clock)
    lease = Lease.new(replace(leases.owner, started=0.0))
    set_lease(study, study.ask(), lease)
    assert claim(storage, "s", 0, f"{lease.token}.0")  # and nothing after that
    for now in (0, 30, 59):
        clock.now = now
        assert leases.recover(study.trials) == []
    clock.now = 61
    assert leases.recover(study.trials) == [] and leases.recover(study.trials) == [0]


def test_beats_go_on_and_a_lost_lease_is_noticed(storage: BaseStorage, study: optuna.Study) -> None:
    leases = Leases(study, storage)
    first, second = study.ask(), study.ask()
    leases.take(first)
    leases.take(second)
    leases.beat()
    leases.beat()
    assert [trial.user_attrs[LEASE]["beat"] for trial in study.trials] == [2, 2]
    set_lease(study, second, Lease.new(Owner("there", 1, 0.0)))
    leases.beat()
    assert leases.lost == {1} and study.trials[1].user_attrs[LEASE]["owner"]["host"] == "there"
    study.tell(first, 1.0)
    leases.beat()  # of a finished trial: nothing
    assert study.trials[0].user_attrs[LEASE]["beat"] == 3


def test_what_is_put_back_is_the_next(storage: BaseStorage, study: optuna.Study) -> None:
    leases = Leases(study, storage)
    trials = [study.ask() for _ in range(3)]
    for trial in trials:
        leases.take(trial)
    leases.put_back(1)
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "WAITING", "RUNNING"]
    assert study.ask().number == 1 and study.ask().number == 3
