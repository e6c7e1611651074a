"""Runs the trials of a study on this host: asks for one whenever a slot is free, and puts back what is not finished."""

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from etude.core.stopping import SIGNALS, Stopped, install_handlers, restore_handlers
from etude.sweeps import study as studies
from etude.sweeps.early_end import EarlyEnd, hopeless
from etude.sweeps.leases import AGAIN, Leases
from etude.sweeps.plan import Plan
from etude.sweeps.processes import Process
from etude.sweeps.space import Space, options_of, suggest

POLL = 0.2  # seconds between two looks at processes without a sentinel, and at other hosts' trials
PAUSE = 5.0  # seconds until a trial whose folder is still in use starts again
TRIES = 12  # how often one trial is put back while the sweep lives, so that none goes on forever

Start = Callable[[int, list[str], Path], Process]


@dataclass
class Driver:
    """Runs trials until the study has `n_trials` that are finished, whichever host finished them.

    Args:
        study, plan, space: see `open_study`.
        leases: of this process.
        folder: the sweep's folder; a trial's folder in it is its number.
        n_trials: finished trials of the study in all. n_jobs: trials at a time.
        start: starts the process of a trial, from its number, its options and its folder.
        early: ends the sweep before that, by what its trials have reached.
        show: called with a line for each trial that ends.
    """

    study: Study
    plan: Plan
    space: Space
    leases: Leases
    folder: Path
    n_trials: int
    n_jobs: int
    start: Start
    early: EarlyEnd
    show: Callable[[str], None]
    _slots: dict[int, Process] = field(default_factory=dict)
    _later: dict[int, float] = field(default_factory=dict)  # trials to be put back, and when
    _tries: Counter[int] = field(default_factory=Counter)  # how often each was
    _stopped: Stopped | None = None
    _at_once: bool = False  # after a second Ctrl-C
    _ended: str | None = None  # why no further trial is started
    _hopeless: str | None = None  # why the sweep can come to nothing
    _told: set[int] = field(default_factory=set)
    _waiting_for: str = ""
    _looked: float = -1e9

    def run(self) -> str | None:
        """Runs the trials; returns why the sweep ended early, None if it has all.

        Raises: Stopped on a signal, after all trials have been put back; ValueError if the sweep can come to nothing.
        """
        self._told = {trial.number for trial in self._trials() if trial.state.is_finished()}
        with self._signals(), self.leases.beating():
            try:
                self._loop()
            finally:  # also if the storage fails: no process is left behind
                for process in self._slots.values():
                    process.kill()
        if self._stopped is not None:
            raise self._stopped
        if self._hopeless is not None:
            raise ValueError(self._hopeless)
        return self._ended

    def _loop(self) -> None:
        while True:
            self._reap()
            if self._ended is None:
                self._hopeless = hopeless(self._trials())
                self._ended = self._hopeless or self.early.reason(self._trials())
            if self._stopped is None:
                self._recover()
                self._fill()
            if self._stopped is not None:  # a trial may have started at the moment of the signal
                for process in self._slots.values():
                    process.kill() if self._at_once else process.terminate()
            if not self._slots and not self._later and (self._stopped is not None or self._is_over()):
                return
            self._sleep()

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _is_over(self) -> bool:
        """Returns whether nothing is left to do or to wait for: a trial of another host may yet have to be taken over."""
        running = [trial for trial in self._trials() if trial.state == TrialState.RUNNING]
        if running and (told := ", ".join(str(trial.number) for trial in running)) != self._waiting_for:
            self._waiting_for = told
            self.show(f"waiting for trials of other processes: {told}")
        return not running

    # --- starting ---

    def _recover(self) -> None:
        """Puts back the trials of processes that are dead, once a second at most."""
        if time.monotonic() - self._looked < 1:
            return
        self._looked = time.monotonic()
        for number in self.leases.recover(self._trials()):
            self.show(f"trial {number} was left behind by a process that is gone; it goes on")

    def _fill(self) -> None:
        """Starts trials in all free slots, as long as there are trials to do."""
        while len(self._slots) < self.n_jobs and self._stopped is None:
            trials = self._trials()
            begun = sum(trial.state == TrialState.RUNNING or trial.state.is_finished() for trial in trials)
            put_back = any(t.state == TrialState.WAITING and t.number < self.n_trials for t in trials)
            if begun >= self.n_trials or (self._ended is not None and not put_back):
                return
            trial = self.study.ask()
            self.leases.take(trial)
            if trial.number >= self.n_trials:  # another host asked at the same moment; the trial waits for a larger n_trials
                self.leases.put_back(trial.number)
                return
            options = suggest(self.space, trial)
            folder = self._folder(trial)
            if folder.exists() and studies.FOLDER not in trial.user_attrs:
                self.leases.put_back(trial.number)
                raise studies.foreign_folder(folder, self.study.study_name)
            trial.set_user_attr(studies.FOLDER, str(folder))
            process = self.start(trial.number, options, folder)
            self._slots[trial.number] = process
            if process.pid is not None:
                self.leases.started(trial.number, process.pid)

    def _folder(self, trial: Trial) -> Path:
        """Returns the trial's folder: the one where it was begun if this host sees that."""
        earlier = trial.user_attrs.get(studies.FOLDER)
        return Path(earlier) if earlier and Path(earlier).is_dir() else self.folder / str(trial.number)

    # --- ending ---

    def _reap(self) -> None:
        """Takes leave of processes that have ended."""
        for number in [number for number, process in self._slots.items() if process.exit_code() is not None]:
            self._settle(number, self._slots.pop(number))
        for number in [n for n, when in self._later.items() if self._stopped is not None or time.monotonic() >= when]:
            del self._later[number]
            self.leases.put_back(number) if self.leases.holds(number) else self.leases.release(number)
        for number in self.leases.lost & self._slots.keys():
            self._slots.pop(number).kill()
            self.leases.lost.discard(number)
            self.leases.release(number)
            self.show(f"trial {number} was taken over by another host, since this one was held up")
        self._tell_new()

    def _settle(self, number: int, process: Process) -> None:
        """Gives a state to a trial whose process has ended; most have told the study themselves."""
        trial = self._trials()[number]
        if trial.state == TrialState.RUNNING and self.leases.holds(number):
            if self._stopped is not None:
                self.leases.put_back(number)
                return
            by, told = _signal(process.exit_code()), trial.user_attrs.get(AGAIN)
            if (told or by in SIGNALS) and self._tries[number] < TRIES:
                self._tries[number] += 1
                told = told or f"ended by {signal.Signals(by).name}"
                self.show(f"trial {number} is put back: {told}")
                self._later[number] = time.monotonic() + PAUSE
                return
            self.leases.storage.set_trial_user_attr(trial._trial_id, studies.REASON, told or self._reason(number, process))
            self.study.tell(number, state=TrialState.FAIL)
        self.leases.release(number)

    def _reason(self, number: int, process: Process) -> str:
        """Returns why a process ended that has told nothing: by its signal, its launcher, or its last line."""
        number_of_signal = _signal(process.exit_code())
        if number_of_signal in set(signal.Signals):
            name = signal.Signals(number_of_signal).name
            return f"killed by {name}" + ("; the system does that when memory runs out" if name == "SIGKILL" else "")
        if process.told:
            return process.told
        output = self.folder / "output" / f"{number}.txt"
        lines = output.read_text(errors="replace").split("\n") if output.is_file() else []
        last = next((line for line in reversed(lines) if line.strip()), "it ended without a result")
        return last.strip().removeprefix("error: ")[:500]

    def _tell_new(self) -> None:
        """Shows the trials that have ended since, of all hosts."""
        for trial in self._trials():
            if trial.state.is_finished() and trial.number not in self._told:
                self._told.add(trial.number)
                self.show(self._line(trial))

    def _line(self, trial: FrozenTrial) -> str:
        params = " ".join(options_of(self.space, trial.params))
        values = studies.told_values(trial, self.plan) if trial.state == TrialState.COMPLETE else ""
        why = trial.user_attrs.get(studies.REASON, "")
        best = studies.best_trial(self.study, self.plan)
        so_far = "" if best is None else f"best {studies.told_values(best, self.plan)} (trial {best.number})"
        parts = [f"trial {trial.number} of {self.n_trials}", params, trial.state.name.lower(), values, why, so_far]
        return "  ".join(part for part in parts if part)

    # --- waiting ---

    def _sleep(self) -> None:
        sentinels = [process.sentinel for process in self._slots.values() if process.sentinel is not None]
        if sentinels:
            wait(sentinels, timeout=POLL)
        else:
            time.sleep(POLL)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Within this context a signal asks the trials to end after their step; a second Ctrl-C ends them at once."""

        def handle(code: int, frame: FrameType | None) -> None:
            self._at_once = self._at_once or (self._stopped is not None and code == signal.SIGINT)
            self._stopped = self._stopped or Stopped(code)
            for process in list(self._slots.values()):
                if process.pid is not None:  # others are asked by way of the storage, whose lock the main thread may hold now
                    process.kill() if self._at_once else process.terminate()

        handlers = install_handlers(handle)
        try:
            yield
        finally:
            restore_handlers(handlers)


def _signal(code: int | None) -> int:
    """Returns the number of the signal that ended a process with this exit code; 0 or less if none did."""
    code = code or 0
    return -code if code < 0 else code - 128
