"""Builds the loggers of a run and the callbacks that serve them; ends W&B's run with the program's."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

P = ParamSpec("P")
Result = TypeVar("Result")
NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # choice of logger= -> the module that it imports


@functools.cache
def _wandb_offline() -> bool:
    from etude.report.dashboards import wandb_offline

    return wandb_offline()


OmegaConf.register_new_resolver("wandb_offline", _wandb_offline, replace=True)


def build_loggers(cfg: DictConfig, folder: Path, *, step: int | None) -> list[Any]:
    """Builds the loggers that logger= names.

    step: optimizer steps that a continued run has made; None for a new run.

    Raises: ValueError if the package of one is not installed.
    """
    from etude.report.dashboards import one_run

    nodes = cfg.get("logger") or {}
    for name, module in NEEDS.items():
        if name in nodes and importlib.util.find_spec(module) is None:
            raise ValueError(f"logger={name} needs a package that is not installed; pip install 'etude[{name}]'")
    return [
        instantiate(node, **one_run(node._target_, folder, step=step), **_series(cfg, node), _convert_="all")
        for node in nodes.values()
    ]


def _series(cfg: DictConfig, node: DictConfig) -> dict[str, Any]:
    """Returns what W&B needs to show the runs of a sweep together: their group, the run's name in it, and tags.

    A trial of a study is grouped by the study, a run of a plain `-m` by the folder of all its runs.
    """
    if not node._target_.endswith(".WandbRun") or node.get("group") is not None:
        return {}
    trial, settings = cfg.get("trial"), HydraConfig.get()
    if trial is not None and trial.get("study") is not None:
        tags = [*node.get("tags", ()), "sweep", str(trial.study)]
        return {"group": str(trial.study), "name": str(trial.number), "tags": tags}
    if settings.mode == RunMode.MULTIRUN:
        tags = [*node.get("tags", ()), "sweep"]
        return {"group": Path(settings.sweep.dir).name, "name": f"{node.name} {settings.job.num}", "tags": tags}
    return {}


def showing_callbacks(cfg: DictConfig, folder: Path, loggers: list[Any]) -> list[Any]:
    """Builds the callbacks that tell the loggers of a run more than curves, and the one that samples while it trains.

    Raises: ValueError if samples are asked for while it trains and the task has none.
    """
    from pytorch_lightning.callbacks import LearningRateMonitor

    from etude.report.tracking import ShowsOptions
    from etude.run.during import SamplesDuring

    found: list[Any] = [LearningRateMonitor("step"), ShowsOptions(folder, monitor=cfg.monitor)] if loggers else []
    if cfg.get("sample_every") is not None:
        if not cfg.get("sampling"):
            raise ValueError(f"sample_every={cfg.sample_every} needs sampling=, which this task or command has not; leave it out")
        found.append(SamplesDuring(every=cfg.sample_every, sampling=instantiate(cfg.sampling, _convert_="all"), folder=folder))
    return found


def ends_dashboards(run: Callable[P, Result]) -> Callable[P, Result]:
    """Decorates a function that makes one training run: W&B's run ends with it, also after an error or a signal."""

    @functools.wraps(run)
    def ending(*args: P.args, **kwargs: P.kwargs) -> Result:
        from etude.report.dashboards import finish

        failed = False
        try:
            return run(*args, **kwargs)
        except BaseException as error:
            failed = type(error).__name__ != "TrialPruned"  # of Optuna, which is imported in sweeps only
            raise
        finally:
            finish(failed=failed)

    return ending
