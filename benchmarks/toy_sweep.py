"""A sweep over a function in place of a training: for tests and figures of the sweep itself.

    python -m benchmarks.toy_sweep FOLDER --n-trials 20 --n-jobs 2 --seconds 0.1

Each trial writes a line when it begins and one when it ends into FOLDER/runs.txt, and counts its steps in its own folder, so that
one that was killed goes on where it was.
"""

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from etude.core.stopping import Stopped
from etude.sweeps.driver import Driver
from etude.sweeps.early_end import EarlyEnd
from etude.sweeps.leases import Leases
from etude.sweeps.plan import Plan
from etude.sweeps.processes import Forked, WarmProcess, threads_each
from etude.sweeps.space import Space, choices, described, interval
from etude.sweeps.storage import open_storage, storage_url
from etude.sweeps.study import best_trial, open_study

WIDTH: Space = (interval("width", "width@round", 0.1, 10.0, log=True),)
SPACE: Space = (
    choices("kind", "kind", [("round", "round"), ("flat", "flat")], {"round": WIDTH}),
    interval("x", "x", -3.0, 3.0),
    interval("n", "n", 1, 9),
)
STEPS = 5


def objective(options: dict[str, str]) -> float:
    """Returns a value that is best, 0, at x = 1, n = 4 and a width of 1."""
    width = float(options.get("width", 3.0))
    return (float(options["x"]) - 1) ** 2 + (int(options["n"]) - 4) ** 2 / 10 + abs(width - 1)


def run(study: str, storage: str, number: int, options: list[str], folder: str, seconds: float, busy: bool) -> None:
    """The process of a trial: takes `seconds`, and goes on with the steps that an earlier process of it has made.

    busy: compute so long instead of waiting.
    """
    from etude.core.stopping import stop_on_signals
    from etude.sweeps.trial import running_trial

    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    told = f"{number} {os.getpid()} {' '.join(options)}"
    with _exit_codes(), stop_on_signals(), running_trial({"study": study, "storage": storage, "number": number}) as trial:
        _note(home.parent, f"begin {told}")
        values = dict(option.split("=") for option in options)
        count = home / "steps.txt"
        begun = count.read_text().count(".") if count.is_file() else 0
        for step in range(begun, STEPS):
            pause(seconds / STEPS, busy)
            if values["n"] == "9" and step == 3:
                raise ValueError("n=9 always fails")
            if trial.plan.pruner != "none" and trial.reports(objective(values) + STEPS - step, step):
                trial.pruned = True
                trial.raise_if_pruned()
            with count.open("a") as file:
                file.write(".")
        trial.take({"loss": objective(values)})
        _note(home.parent, f"end {told}")


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Within this context a signal ends the process with 128 + its number, as it ends the programs."""
    try:
        yield
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


def pause(seconds: float, busy: bool) -> None:
    """Waits, or computes for so long by the process's own clock."""
    if not busy:
        time.sleep(seconds)
        return
    until = time.process_time() + seconds
    while time.process_time() < until:
        math.fsum(range(1000))


def _note(folder: Path, line: str) -> None:
    with (folder / "runs.txt").open("a") as file:
        file.write(f"{line}\n")


def _show(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Runs the sweep that the command line describes; Ctrl-C ends it with 130."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--storage", default=None)
    parser.add_argument("--n-trials", type=int, default=20)
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--pruner", default="none")
    parser.add_argument("--lease-seconds", type=float, default=60)
    parser.add_argument("--busy", action="store_true", help="compute instead of waiting")
    given = parser.parse_args()
    plan = Plan(["loss:min"], sampler=given.sampler, pruner=given.pruner, space=described(SPACE), max_steps=STEPS)
    url = storage_url(given.storage or str(given.folder / "study.journal"))
    warm = WarmProcess(["optuna", "etude.sweeps.trial"])
    warm.warm_up()
    storage = open_storage(url)
    study = open_study(storage, "toy", plan)
    (given.folder / "output").mkdir(parents=True, exist_ok=True)

    def start(number: int, options: list[str], folder: Path) -> Forked:
        output = given.folder / "output" / f"{number}.txt"
        args = ("toy", url, number, options, str(folder), given.seconds, given.busy)
        return warm.start(run, *args, output=output, threads=threads_each(given.n_jobs))

    warm.memory()
    began = time.monotonic()
    leases = Leases(study, storage, seconds=given.lease_seconds)
    driver = Driver(study, plan, SPACE, leases, given.folder, given.n_trials, given.n_jobs, start, EarlyEnd(plan), _show)
    try:
        driver.run()
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    best = best_trial(study, plan)
    print(f"took {time.monotonic() - began:.2f} s; best {best.value if best else None}")


if __name__ == "__main__":
    main()
