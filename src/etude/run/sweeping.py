"""Runs `sweep=`: composes a study's plan from the command, refuses what can't work, and runs the trials."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial

from etude.core.called import program
from etude.run import again
from etude.run.cli import conf_folder
from etude.run.command import FULL_ERROR
from etude.run.experiment_file import experiment_file
from etude.run.launched import LaunchedTrial, launcher_of
from etude.run.recipes import key
from etude.run.search_space import space_files, space_of
from etude.sweeps import processes, summary
from etude.sweeps.contents import contents_of
from etude.sweeps.driver import Driver
from etude.sweeps.early_end import EarlyEnd
from etude.sweeps.leases import Leases
from etude.sweeps.plan import WHERE, Plan
from etude.sweeps.processes import Process, WarmProcess
from etude.sweeps.report import write_report
from etude.sweeps.space import Space, described, examples, grid, options_of
from etude.sweeps.storage import one_line, open_storage, storage_url
from etude.sweeps.study import open_study, refuse_foreign, told_values

OWN = (  # the settings of conf/hydra/sweeper/study.yaml, which trials do not have
    "sweep", "study", "storage", "n_trials", "n_jobs", "space", "objectives", "constraints", "objective_at", "pruner", "prune_by",
    "pruner_options", "sampler_options", "patience", "target", "hours", "lease_seconds", "trial",
)  # fmt: skip
WARM = "etude.run.warm"


@dataclass
class Request:
    """What the command asks for. fixed: the options for all trials. shared: with those that only a sweep's trials get."""

    config: DictConfig
    context: HydraContext
    space: Space
    fixed: list[str]
    shared: list[str]
    plan: Plan
    told: str  # what of the data the plan does not cover; "" if it covers all
    points: list[dict[str, Any]]
    n_trials: int
    warm: bool  # trials can be forked from a warm process
    modules: list[str]  # that a trial imports
    folder: Path
    storage: str
    launcher: Any  # that runs the trials; None: they are processes of this machine


def read_request(config: DictConfig, context: HydraContext, task_function: TaskFunction, arguments: Sequence[str]) -> Request:
    """Returns what the command asks for. Raises: ValueError, or Hydra's errors, for what no trial could be."""
    options = OverridesParser.create(config_loader=context.config_loader).parse_overrides(list(arguments))
    for option in options:
        if _is_own(option) and option.is_sweep_override():
            raise ValueError(f"{option.input_line}: {option.key_or_group} is the sweep's own and can't be swept; give one value")
    options = [option for option in options if not _is_own(option)]
    space = space_of(options, space_files(_plain(config.space), conf_folder()))
    if not space:
        raise ValueError("sweep= has nothing to vary; give options several values, such as model.dim=64,128, or space=NAME")
    fixed = [str(option.input_line) for option in options if not option.is_sweep_override()]
    shown = examples(space)
    shared = [*fixed, *_without_samples(_compose(context, config, [*fixed, *shown[0]]), options)]
    composed = [_compose(context, config, [*shared, *example]) for example in shown]
    first = composed[0]
    contents = contents_of(_plain(OmegaConf.select(first, "data.root")))
    points = grid(space) if config.hydra.runtime.choices.sweep == "grid" else []
    plan = Plan(
        objectives=_plain(config.objectives) if config.objectives is not None else [f"{first.monitor}:{first.monitor_mode}"],
        constraints=_plain(config.constraints),
        objective_at=config.objective_at,
        sampler=config.hydra.runtime.choices.sweep,
        sampler_options=_plain(config.sampler_options) or {},
        pruner=_pruner(config),
        pruner_options=_plain(config.pruner_options) or {},
        prune_by=config.prune_by,
        space=described(space),
        options=fixed,
        seed=first.seed,
        max_steps=first.max_steps,
        trainer={key: value for key, value in _plain(first.trainer).items() if key not in WHERE},
        contents=contents.digest,
    )
    folder = Path(config.hydra.sweep.dir).absolute()
    launcher = launcher_of(config, context, task_function)
    return Request(
        config=config,
        context=context,
        space=space,
        fixed=fixed,
        shared=shared,
        plan=plan,
        told=contents.told,
        points=points,
        n_trials=_number_of_trials(config.n_trials, points),
        warm=launcher is None and all(_on_one_cpu(cfg.trainer) for cfg in composed),
        modules=sorted({module for cfg in composed for module in _modules(cfg)}),
        folder=folder,
        storage=storage_url(config.storage or str(folder / "study.journal")),
        launcher=launcher,
    )


def _without_samples(config: DictConfig, options: Sequence[Override]) -> list[str]:
    """Returns the option that lets trials write no samples; none if the command or the configuration asks for samples."""
    asked = any(option.key_or_group.partition(".")[0] == "sampling" for option in options)
    return [] if asked or config.sample_every is not None or config.get("sampling") is None else ["~sampling"]


def _is_own(option: Override) -> bool:
    return option.key_or_group.partition(".")[0] in OWN


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _pruner(config: DictConfig) -> str:
    several = config.objectives is not None and len(config.objectives) > 1
    return config.pruner if config.pruner is not None else "none" if several else "median"


def _number_of_trials(asked: int | None, points: list[dict[str, Any]]) -> int:
    if asked is None and not points:
        raise ValueError("n_trials=null is for sweep=grid only, whose trials can be counted; give a number")
    if asked is not None and asked < 1:
        raise ValueError(f"n_trials={asked} must be at least 1")
    if points and asked is not None and asked > len(points):
        raise ValueError(f"n_trials={asked}, but the grid has {len(points)} points; leave n_trials out to run them all")
    return len(points) if asked is None else asked


def _compose(context: HydraContext, config: DictConfig, options: list[str]) -> DictConfig:
    """Returns the configuration of a trial; an option that it does not have is refused by name."""
    return context.config_loader.load_configuration(
        config.hydra.job.config_name, overrides=options, run_mode=RunMode.RUN, from_shell=False
    )


def _on_one_cpu(trainer: DictConfig) -> bool:
    return trainer.accelerator == "cpu" and trainer.devices in (1, "1") and trainer.num_nodes == 1


def _modules(node: Any) -> set[str]:
    """Returns the modules of all `_target_`s in a configuration."""
    found = set()
    if OmegaConf.is_dict(node):
        for key in node:
            if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key) or key == "hydra":
                continue
            value = node[key]
            found |= {str(value).rpartition(".")[0]} if key == "_target_" else _modules(value)
    return found


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
        compose=lambda options: _compose(request.context, request.config, options),
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
