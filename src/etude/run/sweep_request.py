"""Reads what the command of a sweep asks for, and refuses what no trial could be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from etude.run.cli import conf_folder
from etude.run.launched import launcher_of
from etude.run.search_space import space_files, space_of
from etude.sweeps.contents import contents_of
from etude.sweeps.plan import WHERE, Plan
from etude.sweeps.space import Space, described, examples, grid
from etude.sweeps.storage import storage_url

OWN = (  # the settings of conf/hydra/sweeper/study.yaml, which trials do not have
    "sweep", "study", "storage", "n_trials", "n_jobs", "space", "objectives", "constraints", "objective_at", "pruner", "prune_by",
    "pruner_options", "sampler_options", "patience", "target", "hours", "lease_seconds", "trial",
)  # fmt: skip


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
    shared = [*fixed, *_without_samples(compose_trial(context, config, [*fixed, *shown[0]]), options)]
    composed = [compose_trial(context, config, [*shared, *example]) for example in shown]
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


def compose_trial(context: HydraContext, config: DictConfig, options: list[str]) -> DictConfig:
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
