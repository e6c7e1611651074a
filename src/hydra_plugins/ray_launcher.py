"""Hydra's launcher for `hydra/launcher=ray`: jobs are tasks of a Ray cluster. Every command loads it, so it imports Ray late."""

import os
import threading
from collections.abc import Sequence
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

_STARTING = threading.Lock()  # trials are launched from several threads


class RayLauncher(Launcher):
    """Runs each job in a process of Ray, on any machine of the cluster that has the resources free.

    The machines must see the same files under the same paths, and have Etude installed.

    Args:
        address: of the cluster, such as `auto` or `ray://HEAD:10001`; None starts Ray on this machine for this command.
        num_cpus, num_gpus: what a job needs; Ray runs as many jobs at a time as there is room for.
        max_retries: how often a job is started again whose machine was lost; a trial then goes on from its last checkpoint.
        init: further arguments of `ray.init`, such as {runtime_env: {env_vars: {OMP_NUM_THREADS: "1"}}}.

    Raises: ValueError if Ray is not installed.
    """

    def __init__(
        self, *, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0, max_retries: int = 0,
        init: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.address, self.init = address, dict(init or {})
        self.resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": max_retries, "max_calls": 1}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra passes."""
        self.config: DictConfig = config
        self.context, self.task_function = hydra_context, task_function
        _ray()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Returns what each job returned; waits for all of them."""
        from hydra.core.singleton import Singleton

        ray = _ray()
        with _STARTING:
            if not ray.is_initialized():
                ray.init(address=self.address, **{"include_dashboard": False, "log_to_driver": True, **self.init})
        run = ray.remote(**self.resources)(_run)
        shared = (self.context, self.config, self.task_function, Singleton.get_state())
        jobs = [run.remote(list(options), initial_job_idx + place, *shared) for place, options in enumerate(job_overrides)]
        found: list[Any] = ray.get(jobs)
        return found


def _run(
    options: list[str], number: int, context: HydraContext, config: DictConfig, task_function: TaskFunction, state: Any
) -> Any:  # fmt: skip
    """Runs one job, in a process of Ray."""
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from omegaconf import open_dict

    Singleton.set_state(state)
    setup_globals()
    cfg = context.config_loader.load_sweep_config(config, options)
    with open_dict(cfg.hydra.job):
        cfg.hydra.job.id, cfg.hydra.job.num = f"ray_{number}", number
    return run_job(
        hydra_context=context, task_function=task_function, config=cfg, job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )  # fmt: skip


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray tells its makers of each use
    try:
        import ray
    except ImportError as error:
        raise ValueError("hydra/launcher=ray needs Ray, which is not installed; run: pip install 'etude[ray]'") from error
    return ray
