"""Runs `sweep=`: the trials of a study, and what is told of them."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from etude.core.called import program
from etude.run import again
from etude.run.command import FULL_ERROR
from etude.run.experiment_file import experiment_file
from etude.run.launched import LaunchedTrial
from etude.run.recipes import key
from etude.run.sweep_request import Request, compose_trial, read_request
from etude.sweeps import processes, summary
from etude.sweeps.driver import Driver
from etude.sweeps.early_end import EarlyEnd
from etude.sweeps.leases import Leases
from etude.sweeps.processes import Process, WarmProcess
from etude.sweeps.report import write_report
from etude.sweeps.space import options_of
from etude.sweeps.storage import one_line, open_storage
from etude.sweeps.study import open_study, refuse_foreign, told_values

WARM = "etude.run.warm"


def run_sweep(config: DictConfig, context: HydraContext, task_function: TaskFunction, arguments: Sequence[str]) -> None:
    """Runs the sweep; ends the program with one line if it can't work, and with 128 + the signal's number on a signal."""
    from etude.core.stopping import Stopped

    full = os.environ.pop(FULL_ERROR, None)  # trials must not inherit what `start` has set for Hydra
    try:
        _run(read_request(config, context, task_function, arguments))
    except Stopped as stopped:
        line = shlex.join([*program("train").split(), *sys.argv[1:]])
        print(f"stopped by {stopped.name}; trials under way were put back, and the same command goes on: {line}", file=sys.stderr)
        if config.get("autoresume"):
            again.requeue(stopped.number)
        sys.exit(stopped.exit_code)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        if full is not None:
            os.environ[FULL_ERROR] = full


def _run(request: Request) -> None:
    config, plan = request.config, request.plan
    early = EarlyEnd(plan, patience=config.patience, target=config.target, hours=config.hours)
    if config.n_jobs < 1:
        raise ValueError(f"n_jobs={config.n_jobs} must be at least 1")
    warm = WarmProcess([WARM, *request.modules]) if request.warm else None
    if warm is not None:
        warm.warm_up()  # while the study is opened
    with one_line(request.storage):
        storage = open_storage(request.storage)
        study = open_study(storage, config.study, plan, points=request.points)
        refuse_foreign(study, request.folder)
        (request.folder / "output").mkdir(parents=True, exist_ok=True)
        done = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        print(f"study {config.study}: {done} of {request.n_trials} trials are finished; {request.folder}", file=sys.stderr)
        if warm is not None:
            show("importing what the trials need")
            processes.refuse_too_many(config.n_jobs, warm.memory())
        if request.told:
            show(request.told)
        leases = Leases(study, storage, seconds=config.lease_seconds)
        starter = TrialStarter(request, warm, leases)
        driver = Driver(
            study, plan, request.space, leases, request.folder, request.n_trials,
            config.n_jobs, starter, early, show,
        )  # fmt: skip
        try:
            ended = driver.run()
        finally:
            summary.write(study, plan, request.space, request.folder, lambda trial: experiment(trial, request))
            page = write_report(
                study, plan, request.space, request.folder, lambda trial: repeated(trial, request), dashboard(request.storage)
            )
        if ended is not None:
            show(f"the sweep ended early: {ended}")
        show(summary.told(study, plan, lambda trial: repeated(trial, request), request.folder))
        if page is not None:
            show(f"report:  {page}")


def dashboard(storage: str) -> str:
    """Returns the command that opens a storage in optuna-dashboard."""
    return f"make dashboard STORAGE={shlex.quote(storage)}"


def repeated(trial: FrozenTrial, request: Request) -> str:
    """Returns the command that repeats a trial alone."""
    return shlex.join([*program("train").split(), *alone(trial, request)])


def alone(trial: FrozenTrial, request: Request) -> list[str]:
    """Returns the options that repeat a trial alone, with the threads that it had beside others: sums depend on their number."""
    options = [*request.fixed, *options_of(request.space, trial.params)]
    threads = processes.threads_each(request.config.n_jobs)
    if request.launcher is not None or threads is None or any(key(option) == "threads" for option in options):
        return options
    return [*options, f"threads={threads}"]


def experiment(trial: FrozenTrial, request: Request) -> str:
    """Returns a file for conf/experiment with the settings of a trial."""
    return experiment_file(
        alone(trial, request),
        compose=lambda options: compose_trial(request.context, request.config, options),
        comments=[
            f"Trial {trial.number} of the study {request.config.study}: {told_values(trial, request.plan)}.",
            repeated(trial, request),
        ],
    )


def show(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)


class TrialStarter:
    """Starts the process of a trial: forked from the warm process, or with a command line of its own.

    A trial that was begun before goes on from its last checkpoint if it has one, and begins anew otherwise.
    """

    def __init__(self, request: Request, warm: WarmProcess | None, leases: Leases) -> None:
        self.request, self.warm, self.leases = request, warm, leases
        self.threads = processes.threads_each(request.config.n_jobs)

    def __call__(self, number: int, options: list[str], folder: Path) -> Process:
        line = self.options(number, options, folder)
        if folder.is_dir() and not any(option.startswith("ckpt=") for option in line):
            shutil.rmtree(folder)
        launcher = self.request.launcher
        if launcher is not None:
            return LaunchedTrial(lambda: launcher.launch([line], initial_job_idx=number), lambda: self.leases.ask_to_end(number))
        output = self.request.folder / "output" / f"{number}.txt"
        if self.warm is not None:
            return self.warm.start(run_trial, sys.argv[0], line, output=output, threads=self.threads)
        return processes.start_command([*_command(), *line], output=output, threads=self.threads)

    def options(self, number: int, options: list[str], folder: Path) -> list[str]:
        """Returns the options of a trial's command line."""
        config = self.request.config
        trial = {"study": config.study, "storage": self.request.storage, "number": number}
        found = [*self.request.shared, *options]
        if self.request.launcher is not None:
            trial |= {"token": self.leases.token(number), "lease_seconds": config.lease_seconds}
            found += [f"hydra.sweep.dir={json.dumps(str(folder.parent))}", f"hydra.sweep.subdir={number}"]
        else:
            found += [f"hydra.run.dir={json.dumps(str(folder))}"]
        found += [f"trial={{{','.join(f'{key}:{json.dumps(value)}' for key, value in trial.items())}}}"]
        if (folder / "checkpoints" / "last.ckpt").is_file() and not any(path.name[:1].isdigit() for path in folder.iterdir()):
            found.append(f"ckpt={json.dumps(str(folder))}")
        return found


def _command() -> list[str]:
    script = Path(sys.argv[0])
    return [sys.executable, str(script)] if script.name == "train.py" else [sys.executable, "-m", "etude.run.cli", "train"]


def run_trial(script: str, options: list[str]) -> None:
    """Runs a trial in this process, as the command line with these options does."""
    from etude.run.cli import run

    sys.argv = [script, *options]
    run("train", options)
