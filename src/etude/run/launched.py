"""Trials that one of Hydra's launchers runs, on this machine or another one."""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig

from etude.core.called import program
from etude.sweeps.processes import forget_rank


class LaunchedTrial:
    """A trial that a launcher runs; a thread waits for it.

    The trial holds its own lease once it runs. It can be asked to end, but not be killed.
    """

    pid = None
    sentinel = None

    def __init__(self, launch: Callable[[], Sequence[Any]], ask_to_end: Callable[[], None]) -> None:
        self._launch, self._ask_to_end = launch, ask_to_end
        self._code: int | None = None
        self._asked = False
        self.told = ""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            for job in self._launch():
                _ = job.return_value  # raises what the job has raised
            self._code = 0
        except (Exception, SystemExit) as error:  # the job's, of any kind; most have told the study why
            self.told = " ".join(str(error).split())[-300:]
            self._code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1

    def exit_code(self) -> int | None:
        """Returns 0 if the job came to its end, otherwise its exit code or 1; None while it runs or waits for a machine."""
        return self._code

    def terminate(self) -> None:
        """Asks the trial to end after its current step."""
        if not self._asked:
            self._asked = True
            self._ask_to_end()

    def kill(self) -> None:
        """Waits no longer. The trial ends by itself when it finds that its lease is another's."""
        self.terminate()
        self._code = 1 if self._code is None else self._code


def launcher_of(config: DictConfig, context: HydraContext, task_function: TaskFunction) -> Any:
    """Returns the launcher of `hydra/launcher=`; None for Hydra's own, which runs one trial after the other."""
    if config.hydra.runtime.choices.get("hydra/launcher") == "basic":
        return None
    forget_rank()
    return Plugins.instance().instantiate_launcher(config=config, hydra_context=context, task_function=task_function)


def refuse_several_devices(devices: int | str | list[int], *, trial: bool) -> None:
    """Checks the devices of a training of a multirun; a launched trial can have several if its job has a task for each.

    Raises: ValueError for several devices without such tasks.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN or devices in (1, "1", "auto"):
        return
    if not trial:
        raise ValueError(
            "a multirun with several devices would start the whole sweep on every rank; "
            f"start one `{program('train')}` for each run"
        )
    if os.environ.get("SLURM_NTASKS", "1") == "1":  # without, each rank would start the launcher's own program again
        raise ValueError(
            f"trainer.devices={devices} needs a job with a task for each device: give "
            f"hydra/launcher=submitit_slurm hydra.launcher.tasks_per_node={devices}, or leave the launcher out"
        )
