"""Hydra's sweeper for `sweep=`. Hydra finds it here and loads it with every command, so its imports wait until a sweep runs."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Runs the trials of an Optuna study, each in a process of its own; see `etude.run.sweeping`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra passes."""
        self.config: DictConfig = config
        self.context, self.task_function = hydra_context, task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the sweep of a command with these options."""
        from etude.run.sweeping import run_sweep

        run_sweep(self.config, self.context, self.task_function, arguments)
