"""Trains on with another optimizer from a share of the run on, with a stage, or once a metric no longer improves."""

import logging
import math
from functools import partial
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch

from etude.core import lightning
from etude.core.task import OptimizerFactory, Task
from etude.core.technique import Power, Technique
from etude.optim.optimizers import lion
from etude.optim.plateau import Plateau, check_mode

log = logging.getLogger(__name__)


class SwitchOptimizer(Technique):
    """Replaces the optimizer once: at `at` of the run, with the stage `stage`, or when `monitor` has not improved for `patience`
    observations.

    The new one starts with an empty state, and its schedule anew, warm-up included, over the steps that are left. Players
    keep the proportion of their learning rate to the optimizer's. Without `to`, Adam's family gives way to Lion with a fifth
    of its learning rates and five times its weight decay (Chen et al. 2023, section 5, asks for a factor of 3 to 10), which
    goes on at the same scale whatever the model. What is watched is observed after each validation, a metric train/... at
    each step that the loggers are told of (trainer.log_every_n_steps).

    When to use: AdamW finds its way early, and a plainer rule generalises better late; for SGD, as in the source, say
    'technique.switch_optimizer.to={_target_:torch.optim.SGD,_partial_:true,lr:0.1,momentum:0.9}'.

    Source: Keskar and Socher 2017 (SWATS). Deviation: the time is chosen by share or plateau, the rate by its owner.

    Args:
        to: called with parameter groups, gives the new optimizer; None for Lion as above.
        at: share of the run, in (0, 1); None where `monitor` or `stage` decides.
        stage: name of a stage of technique stages that begins with the new optimizer, which then has that stage's schedule.
        monitor: name of a logged metric; None where `at` alone decides. With both, the first to come.
        mode: whether less ("min") or more ("max") of it is better.
        patience: observations in a row without progress that make a plateau, at least 1.
        min_delta: progress smaller than this is none, at least 0.

    Raises:
        ValueError: a value out of range, neither `at` nor `monitor`, a metric that nothing logs, or no `to` for an optimizer
            that is not of Adam's family.
    """

    claims: ClassVar[frozenset[Power]] = frozenset({Power.STEP})

    def __init__(
        self,
        *,
        to: OptimizerFactory | None = None,
        at: float | None = 0.5,
        stage: str | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        patience: int = 5,
        min_delta: float = 0.0,
    ) -> None:
        super().__init__()
        if at is not None and not 0 < at < 1:
            raise ValueError(f"switch_optimizer.at is {at}, must be in (0, 1), a share of the run, or null")
        if at is None and monitor is None and stage is None:
            raise ValueError("switch_optimizer.at, stage and monitor are all null; say when to switch, such as at=0.5")
        if at is not None and stage is not None:
            raise ValueError(f"switch_optimizer.at is {at} and stage {stage!r}; set technique.switch_optimizer.at=null")
        check_mode("switch_optimizer.mode", mode)
        if patience < 1:
            raise ValueError(f"switch_optimizer.patience is {patience}, must be at least 1 observation")
        if min_delta < 0:
            raise ValueError(f"switch_optimizer.min_delta is {min_delta}, must be at least 0")
        self.to, self.at, self.stage, self.monitor, self.mode = to, at, stage, monitor, mode
        self.patience, self.plateau = patience, Plateau(mode=mode, min_delta=min_delta)
        self.switched: dict[str, Any] = {}  # how the new optimizer is built, once there is one
        self._task: Task | None = None
        self._total = math.inf

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Task) or stage != "fit":
            return
        self._task = pl_module
        if self.to is None:
            former = pl_module.build_optimizer()
            if not isinstance(former, torch.optim.Adam | torch.optim.NAdam | torch.optim.RAdam):
                raise ValueError(
                    f"technique switch_optimizer switches from Adam's family to Lion by itself, but {type(pl_module).__name__} "
                    f"trains with {type(former).__name__}; give technique.switch_optimizer.to"
                )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is not None and isinstance(pl_module, Task):
            pl_module.check_metric(self.monitor, "switch_optimizer.monitor", self.mode)
        if self.stage is not None and isinstance(pl_module, Task) and self.stage not in pl_module.phases.names[1:]:
            later = pl_module.phases.names[1:]
            those = f"after its first the stages {', '.join(later)}" if pl_module.phases.names else "no stages"
            raise ValueError(
                f"switch_optimizer.stage is {self.stage!r}, and {type(pl_module).__name__}'s run has {those}; choose one of "
                "technique=[stages]"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._total = trainer.estimated_stepping_batches
        if self.at is not None and self._total == math.inf:
            raise ValueError("switch_optimizer.at is a share of the run: set trainer.max_steps or trainer.max_epochs")

    # Decided here, done before the next batch: what else acts after a validation then sees one optimizer.

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Task, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        if self.switched:
            return
        if self.at is not None and pl_module.steps_trained >= self.at * self._total:
            self._switch(trainer, pl_module, f"{self.at:g} of the run has passed")
        elif self.stage is not None and pl_module.phase.name == self.stage:
            self._switch(trainer, pl_module, f"stage {self.stage} begins", steps=pl_module.schedule_steps)
        elif self.plateau.waited >= self.patience:
            best, waited = self.plateau.best, self.plateau.waited
            self._switch(trainer, pl_module, f"{self.monitor} has not improved on {best:.4g} {waited} times")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        watched = self.monitor is not None and self.monitor.startswith("train/")
        if watched and not pl_module.accumulating and self.is_logged(trainer):
            self._look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is not None and not self.monitor.startswith("train/") and not trainer.sanity_checking:
            self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        found = trainer.callback_metrics.get(str(self.monitor))
        if found is None:
            if str(self.monitor).startswith("train/"):
                raise ValueError(
                    f"switch_optimizer.monitor is {self.monitor!r}, which nothing logs; "
                    f"there are {', '.join(sorted(trainer.callback_metrics))}"
                )
            return  # one that is not logged at every validation
        self.plateau.improves(float(found))

    def _switch(self, trainer: pl.Trainer, task: Task, reason: str, *, steps: int | None = None) -> None:
        former, players = trainer.optimizers[0], task.player_lr
        rates = _rates(task)
        self.switched = {
            "step": task.steps_trained,
            "schedule_steps": steps or (None if self._total == math.inf else int(self._total) - task.steps_trained),
            "former": {name: former.defaults.get(name) for name in ("lr", "weight_decay")},
            "player_lr": {},
        }
        self._build(task)
        now = _rates(task)
        self.switched["player_lr"] = {name: rate * now[name] / rates[name] for name, rate in players.items()}
        self._build(task)
        lightning.rebuild_optimizers(trainer)
        names = f"{type(former).__name__} gives way to {type(trainer.optimizers[0]).__name__}"
        log.warning(f"step {task.steps_trained}: {names}, for {reason}")

    def _build(self, task: Task) -> None:
        """Gives the task the new optimizer, as `switched` says."""
        former = self.switched["former"]
        to = self.to or partial(lion, lr=former["lr"] / 5, weight_decay=former["weight_decay"] * 5)
        steps, start_step = self.switched["schedule_steps"], self.switched["step"]
        task.use_optimizer(to, player_lr=self.switched["player_lr"], schedule_steps=steps, start_step=start_step)

    def state_dict(self) -> dict[str, Any]:
        return {**self.plateau.state_dict(), "switched": self.switched}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.plateau.load_state_dict(state_dict)
        self.switched = state_dict["switched"]
        if self.switched and self._task is not None:  # before the optimizer is built, so that the right one is
            self._build(self._task)


def _rates(task: Task) -> dict[str, float]:
    """Returns the learning rate that the task's optimizer gives each player of itself."""
    own, task.player_lr = task.player_lr, {}
    try:
        groups = task.build_optimizer().param_groups
    finally:
        task.player_lr = own
    return {group["player"]: float(group["lr"]) / group.get("lr_factor", 1.0) for group in reversed(groups)}
