"""Gives the optimizer of a run that goes on other settings than those that its state was saved with."""

import sys
from typing import Any

import pytorch_lightning as pl

from etude.core.optimizer_state import COUNTERS

NO_SETTINGS = ("params", "param_names", "lr", "train_mode", "scheduled_lr", *COUNTERS)  # of a group: what training changes


class NewSettings(pl.Callback):
    """Gives the optimizer the settings with which it was built, once its state has been loaded, which holds those of before.

    The learning rate is multiplied by the new one over the former one, so that the schedule goes on from where it is.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._settings = [[_settings(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        changes: dict[str, str] = {}
        for optimizer, settings in zip(trainer.optimizers, self._settings, strict=True):
            for group, own in zip(optimizer.param_groups, settings, strict=True):
                changes = {**_take(group, own), **changes}
        for config in trainer.lr_scheduler_configs:
            groups = config.scheduler.optimizer.param_groups
            config.scheduler.base_lrs = [group["initial_lr"] for group in groups]
            config.scheduler._last_lr = [group["lr"] for group in groups]
        if changes and trainer.is_global_zero:
            print(f"the optimizer goes on with {', '.join(changes.values())}", file=sys.stderr)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a parameter group; without a schedule the learning rate is one of them."""
    found = {name: value for name, value in group.items() if name not in NO_SETTINGS}
    return found if "initial_lr" in group else {**found, "lr": group["lr"]}


def _take(group: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """Sets the settings of a group; returns for each that changes its name and both values as text."""
    changed = {name: value for name, value in settings.items() if group.get(name) != value}
    if "initial_lr" in changed and group.get("initial_lr"):
        group["lr"] *= changed["initial_lr"] / group["initial_lr"]
    told = {name: f"{name.removeprefix('initial_')}={value} instead of {group.get(name)}" for name, value in changed.items()}
    group.update(changed)
    return told
