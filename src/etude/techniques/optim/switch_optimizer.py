"""Technique switch_optimizer: replaces the optimizer once during a run."""

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch

from etude.core import lightning
from etude.core.task import OptimizerFactory, Task
from etude.core.technique import Power, Technique
from etude.optim.optimizers import lion
from etude.optim.plateau import Plateau, check_mode, watched_options

log = logging.getLogger(__name__)


class SwitchOptimizer(Technique):
    """Replaces the optimizer once: after a share of the run, when a phase begins, or when a metric no longer improves.

    The new optimizer has no state. Its schedule, warm-up included, starts afresh over the remaining steps. The ratio of each
    player's learning rate to the optimizer's stays the same. Without `to`, the new optimizer is Lion, with a fifth of the
    learning rates and five times the weight decay (Chen et al. 2023, section 5, recommend a factor of 3 to 10); the first
    optimizer must then be Adam or a variant of it. `monitor` is read after each validation, or, if its name begins with train/,
    at each step that is logged (trainer.log_every_n_steps).

    When to use: AdamW makes fast progress early, but a simpler optimizer may generalize better late. For SGD, as in the source:
    'technique.switch_optimizer.to={_target_:torch.optim.SGD,_partial_:true,lr:0.1,momentum:0.9}'.

    Source: Keskar and Socher 2017 (SWATS). Deviation: the time of the switch and the new learning rate are options.

    Args:
        to: called with the parameter groups, returns the new optimizer; None for Lion as above.
        at: share of the run after which to switch, in (0, 1); None if `monitor` or `stage` decides.
        stage: name of a phase of technique stages; the switch is made when it begins, and its schedule is used.
        monitor: name of a logged metric; None if `at` alone decides. If both are given, whichever comes first.
        mode: "min" if lower values are better, "max" if higher values are.
        patience: values in a row without improvement after which to switch, at least 1.
        min_delta: a value must be better by more than this to count as an improvement, at least 0.

    Raises:
        ValueError: a value is out of its range; none of `at`, `stage` and `monitor` is given; nothing logs the metric; or `to`
            is missing and the first optimizer is no variant of Adam.
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
        self.switched: dict[str, Any] = {}  # how the new optimizer is built; empty before the switch
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
                    f"technique switch_optimizer without `to` replaces Adam or a variant by Lion, but {type(pl_module).__name__} "
                    f"trains with {type(former).__name__}; give technique.switch_optimizer.to"
                )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is not None and isinstance(pl_module, Task):
            pl_module.check_metric(self.monitor, "switch_optimizer.monitor", self.mode)
        if self.stage is not None and isinstance(pl_module, Task) and self.stage not in pl_module.phases.names[1:]:
            later = pl_module.phases.names[1:]
            those = f"the later stages {', '.join(later)}" if pl_module.phases.names else "no stages"
            raise ValueError(
                f"switch_optimizer.stage is {self.stage!r}, but {type(pl_module).__name__}'s run has {those}; choose one of "
                "technique=[stages]"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._total = trainer.estimated_stepping_batches
        if self.at is not None and self._total == math.inf:
            raise ValueError("switch_optimizer.at is a share of the run: set trainer.max_steps or trainer.max_epochs")

    # The switch is made before the next batch, so that all callbacks after a validation see the same optimizer.

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
            self._read_metric(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is not None and not self.monitor.startswith("train/") and not trainer.sanity_checking:
            self._read_metric(trainer)

    def _read_metric(self, trainer: pl.Trainer) -> None:
        found = trainer.callback_metrics.get(str(self.monitor))
        if found is None:
            if str(self.monitor).startswith("train/"):
                raise ValueError(
                    f"switch_optimizer.monitor is {self.monitor!r}, which nothing logs; "
                    f"there are {', '.join(sorted(trainer.callback_metrics))}"
                )
            return  # a metric that is not logged at every validation
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
        names = f"{type(former).__name__} is replaced by {type(trainer.optimizers[0]).__name__}"
        log.warning(f"step {task.steps_trained}: {names}: {reason}")

    def _build(self, task: Task) -> None:
        """Sets the new optimizer of the task, as described by `switched`."""
        former = self.switched["former"]
        to = self.to or partial(lion, lr=former["lr"] / 5, weight_decay=former["weight_decay"] * 5)
        steps, start_step = self.switched["schedule_steps"], self.switched["step"]
        task.use_optimizer(to, player_lr=self.switched["player_lr"], schedule_steps=steps, start_step=start_step)

    def state_dict(self) -> dict[str, Any]:
        return {**self.plateau.state_dict(), "switched": self.switched}

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        switched = {"to", "at", "stage", "monitor", "mode", "patience", "min_delta"} if state["switched"] else set()
        return frozenset(switched) | watched_options(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.plateau.load_state_dict(state_dict)
        self.switched = state_dict["switched"]
        if self.switched and self._task is not None:  # before Lightning builds the optimizer
            self._build(self._task)


def _rates(task: Task) -> dict[str, float]:
    """Returns each player's learning rate without `player_lr`, that is, the optimizer's own."""
    own, task.player_lr = task.player_lr, {}
    try:
        groups = task.build_optimizer().param_groups
    finally:
        task.player_lr = own
    return {group["player"]: float(group["lr"]) / group.get("lr_factor", 1.0) for group in reversed(groups)}
