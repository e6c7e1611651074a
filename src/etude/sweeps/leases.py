"""Leases: who runs which trial, so that hosts on one storage leave one another's live trials alone and take over dead ones.

A lease is an attribute of a running trial: its owner (host, process, start time), the trial's own process, and a beat that the
owner increases. On its own host a process is seen to be dead at once. From another host it counts as dead when its beat has stood
still for some time by the observer's clock; clocks of hosts are never compared.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

LEASE = "lease"
END = "asked_to_end"  # a trial's attribute, read by the trial where it holds its own lease
AGAIN = "to_be_put_back"  # a trial's attribute, read by its sweep once the process has ended: why it is not finished


class LeaseLost(ValueError):
    """Raised if a trial has been taken over; what happens here says nothing about it."""


def this_host() -> str:
    """Returns a name that no other machine, container or earlier boot has."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(str(Path(path).readlink()) if path.endswith("pid") else Path(path).read_text().strip()[:8])
        except OSError:  # not Linux
            continue
    return " ".join(parts)


@dataclass(frozen=True)
class Owner:
    """A process on a host. started: its start time, since process ids are used again."""

    host: str
    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> "Owner | None":
        """Returns the process of this host with that id; None if there is none."""
        try:
            return cls(this_host(), pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def alive(self) -> bool:
        """Returns whether the process still runs; for processes of this host."""
        try:
            process = psutil.Process(self.pid)
            return bool(abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Lease:
    """The right to run a trial. token: differs between any two leases. worker: the trial's own process, once it has started."""

    token: str
    owner: Owner | None = None
    worker: Owner | None = None
    beat: int = 0

    @classmethod
    def new(cls, owner: Owner | None) -> "Lease":
        return cls(uuid.uuid4().hex, owner)

    @classmethod
    def read(cls, saved: Mapping[str, Any] | None) -> "Lease":
        """Returns the lease of a trial's attribute; one without an owner if there is none yet."""
        if not saved:
            return cls("none")
        people = {name: Owner(**saved[name]) if saved.get(name) else None for name in ("owner", "worker")}
        return cls(saved["token"], **people, beat=saved["beat"])

    def saved(self) -> dict[str, Any]:
        return asdict(self)


class Watcher:
    """Finds running trials whose owner is dead.

    host: of this process. seconds: how long a beat of another host must stand still, above 0. clock: in seconds, of this host.
    """

    def __init__(self, *, host: str, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.host, self.seconds, self.clock = host, seconds, clock
        self._seen: dict[int, tuple[tuple[str, int], float]] = {}  # trial -> (lease and beat, since when)

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Returns whether nobody runs this trial any more."""
        lease = Lease.read(trial.user_attrs.get(LEASE))
        if lease.owner is not None and lease.owner.host == self.host:
            return not any(person.alive() for person in (lease.owner, lease.worker) if person is not None)
        now = (lease.token, lease.beat)
        before, since = self._seen.get(trial.number, (None, 0.0))
        if before != now:
            self._seen[trial.number] = (now, self.clock())
            return False
        return self.clock() - since >= self.seconds


def claim(storage: BaseStorage, study: str, number: int, token: str) -> bool:
    """Returns whether this call is the first to claim a dead lease; of several hosts that find it dead, one gets True.

    The storage numbers the entries of a study in one order for all hosts. Claims are entries of a study of their own, which only
    exists once a trial had to be taken over; the first entry for a lease wins.
    """
    name = f"{study} (taken over)"
    try:
        study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], name)
    except optuna.exceptions.DuplicatedStudyError:
        study_id = storage.get_study_id_from_name(name)
    said = f"{number} {token}"
    mine = storage.create_new_trial(study_id, create_trial(state=TrialState.FAIL, user_attrs={"claim": said}))
    claims = [t for t in storage.get_all_trials(study_id, deepcopy=False) if t.user_attrs.get("claim") == said]
    return min(t.number for t in claims) == storage.get_trial(mine).number


class Leases:
    """The leases that this process holds; a thread keeps their beats going.

    study: the study. seconds: after which other hosts may take over a trial whose beat stands still; the beat is four times as
    often.
    """

    def __init__(
        self, study: Study, storage: BaseStorage, *, seconds: float = 60, clock: Callable[[], float] = time.monotonic
    ) -> None:
        owner = Owner.of(os.getpid())
        assert owner is not None
        self.owner, self.study, self.storage, self.seconds = owner, study, storage, seconds
        self.watcher = Watcher(host=owner.host, seconds=seconds, clock=clock)
        self._held: dict[int, tuple[int, Lease]] = {}  # by the trial's number: its id and the lease
        self.lost: set[int] = set()  # trials that another host has taken over, since this process was held up for too long
        self._claims: dict[tuple[int, str], int] = {}  # how often a lease was claimed in vain
        self._since: dict[tuple[int, str], float] = {}  # when the last of these claims was made
        self._lock = threading.Lock()

    def take(self, trial: optuna.Trial) -> None:
        """Takes the lease of a trial that this process has just got from the study."""
        self._write(trial.number, trial._trial_id, Lease.new(self.owner))

    def started(self, number: int, pid: int) -> None:
        """Notes the process of a trial, which may live a moment longer than its owner."""
        trial_id, lease = self._held[number]
        self._write(number, trial_id, replace(lease, worker=Owner.of(pid)))

    def token(self, number: int) -> str:
        """Returns what tells this lease from any other."""
        return self._held[number][1].token

    def adopt(self, trial: optuna.Trial, token: str) -> None:
        """Takes over the lease of a trial that another machine started here. Raises: LeaseLost if it is another's by now."""
        lease = Lease.read(trial.user_attrs.get(LEASE))
        if lease.token != token:
            raise LeaseLost(f"trial {trial.number} has been taken over by another host meanwhile")
        self._write(trial.number, trial._trial_id, replace(lease, owner=self.owner, beat=lease.beat + 1))

    def ask_to_end(self, number: int) -> None:
        """Asks a trial that holds its own lease to end; does nothing if the trial is another host's by now."""
        if self.holds(number):
            self.storage.set_trial_user_attr(self._held[number][0], END, True)

    def holds(self, number: int) -> bool:
        """Returns whether the storage still has the lease that this process, or the trial itself, was given."""
        if number not in self._held:
            return False
        trial_id, lease = self._held[number]
        trial = self.storage.get_trial(trial_id)
        return Lease.read(trial.user_attrs.get(LEASE)).token == lease.token and trial.state != TrialState.WAITING

    def release(self, number: int) -> None:
        """Ends the lease of a trial that is finished."""
        with self._lock:
            self._held.pop(number, None)
            self.lost.discard(number)

    def put_back(self, number: int) -> None:
        """Puts back a trial that is not finished; the next that asks the study gets it, with its values."""
        with self._lock:
            trial_id, _ = self._held.pop(number)
        self.storage.set_trial_user_attr(trial_id, LEASE, Lease.new(None).saved())
        self.storage.set_trial_user_attr(trial_id, END, False)
        self.storage.set_trial_user_attr(trial_id, AGAIN, "")
        self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def recover(self, trials: Iterable[FrozenTrial]) -> list[int]:
        """Puts back the running trials whose owner is dead, and returns their numbers; of several hosts one does it."""
        found = []
        for trial in trials:
            if trial.number in self._held or trial.state != TrialState.RUNNING or not self.watcher.is_dead(trial):
                continue
            lease = Lease.read(trial.user_attrs.get(LEASE))
            turn = self._claims.setdefault((trial.number, lease.token), 0)
            if not claim(self.storage, self.study.study_name, trial.number, f"{lease.token}.{turn}"):
                # another host was first; if it dies before it has put the trial back, its claim counts no more after a while
                self._claims[trial.number, lease.token] += self._waited(trial, lease)
                continue
            with self._lock:
                self._held[trial.number] = (trial._trial_id, lease)
            self.put_back(trial.number)
            found.append(trial.number)
        return found

    def _waited(self, trial: FrozenTrial, lease: Lease) -> int:
        """Returns 1 if a lost claim has been without effect for `seconds`, else 0."""
        since = self._since.setdefault((trial.number, lease.token), self.watcher.clock())
        if self.watcher.clock() - since < self.seconds:
            return 0
        del self._since[trial.number, lease.token]
        return 1

    def beat(self) -> None:
        """Increases the beats of all leases held; a trial whose lease is another's by now is put into `lost`."""
        with self._lock:
            for number, (trial_id, lease) in list(self._held.items()):
                trial = self.storage.get_trial(trial_id)
                if trial.state.is_finished():
                    continue
                current = Lease.read(trial.user_attrs.get(LEASE))
                if current.token != lease.token or trial.state == TrialState.WAITING:
                    self.lost.add(number)
                    continue
                if current.owner != self.owner:  # the trial runs elsewhere and holds its own lease
                    continue
                self._set(number, trial_id, replace(lease, beat=lease.beat + 1))

    def must_end(self, number: int) -> bool:
        """Returns whether a trial that holds its own lease was asked to end, or has lost it."""
        return number in self.lost or bool(self.storage.get_trial(self._held[number][0]).user_attrs.get(END))

    @contextlib.contextmanager
    def beating(self, *, then: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Within this context a thread keeps the beats going, and calls `then` after each."""
        end = threading.Event()

        def run() -> None:
            while not end.wait(self.seconds / 4):
                with contextlib.suppress(Exception):  # such as a storage that is locked for a moment; the next beat counts
                    self.beat()
                    then()

        thread = threading.Thread(target=run, name="leases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(timeout=5)

    def _write(self, number: int, trial_id: int, lease: Lease) -> None:
        with self._lock:
            self._set(number, trial_id, lease)

    def _set(self, number: int, trial_id: int, lease: Lease) -> None:
        self._held[number] = (trial_id, lease)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # a trial may end at any moment
            self.storage.set_trial_user_attr(trial_id, LEASE, lease.saved())
