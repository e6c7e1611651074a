"""Several stages in one run, each with its frozen modules, learning rates, weights and data, and automatic transitions."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch import nn

from etude.core.optimizer_state import carry_state
from etude.core.plateau import Plateau, check_mode
from etude.core.task import Task
from etude.core.technique import Technique

log = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    "name": None, "frozen": [], "lr": 1.0, "layer_decay": 1.0, "warmup": None, "loss_weights": {}, "data": {}, "monitor": None,
    "mode": "min", "min_steps": 0, "max_steps": None, "patience": None, "min_delta": 0.0,
}  # fmt: skip


class Stages(Technique):
    """Trains stage after stage without leaving the run; each is a mapping of

    - name.
    - frozen: beginnings of the names of parameters that rest; `embeddings` are all tables of embeddings, if there are any.
    - lr: factor of the learning rates. layer_decay: of each residual block but the last, counted from the output backwards,
      and of the embeddings: block l of L learns with lr * layer_decay^(L - l) (Howard and Ruder 2018; Clark et al. 2020).
    - loss_weights: laid over the task's.
    - data: {column: value, [values] or [lowest, highest]} of the manifest's columns: the pieces that are drawn, from the next
      draws that no worker has made yet.
    - max_steps: length of the stage, over which the task's schedule runs anew; None for the rest of the run.
      warmup: share of it, in [0, 1), None for the schedule's own.
    - monitor (None: the task's own), mode ("min" or "max" is better), patience, min_delta, min_steps: it ends, after
      `min_steps` at the earliest, when the metric has not improved by more than `min_delta` for `patience` validations.

    A stage changes between two optimizer steps; the reason is logged, and the optimizer's moments stay with the parameters
    that stay. The run is over with its last stage, at the latest after the trainer's max_steps. Resuming in a stage goes on
    in it, bit for bit.

    When to use: first broad data, then your own; first the new layers, then all. `stage=progression` is an example.

    Args:
        stages: at least one such mapping.
        seed: unused, every technique has one.

    Raises:
        ValueError: an unknown key, nothing to tell where a stage ends; in setup, an unknown parameter, column or metric.
    """

    def __init__(self, *, stages: Sequence[Mapping[str, Any]] | None = None, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.stages = [self._checked(stage, number, len(stages or ())) for number, stage in enumerate(stages or (), start=1)]
        self.number = 0
        self.started = 0  # optimizer steps before this stage
        self.plateau = self._plateau()
        self.reason = ""  # why it ends before the next batch
        self.changes: list[list[int]] = [[0, 0]]  # from which draw, data of which stage
        self._task: list[Task] = []
        self._masks: list[np.ndarray] = []
        self._step, self._between = 0, True  # no gradients are being accumulated

    @staticmethod
    def _checked(stage: Mapping[str, Any], number: int, count: int) -> dict[str, Any]:
        if unknown := set(stage) - set(DEFAULTS):
            raise ValueError(
                f"technique.stages.stages[{number - 1}] has {sorted(unknown)[0]!r}; the keys are {', '.join(sorted(DEFAULTS))}"
            )
        made = {**DEFAULTS, "name": f"stage {number}", **stage}
        if number < count and made["max_steps"] is None and made["patience"] is None:
            raise ValueError(f"technique.stages: {made['name']} has no end; give it max_steps or patience")
        for name, low in (("max_steps", 1), ("patience", 1), ("min_steps", 0), ("min_delta", 0)):
            if made[name] is not None and made[name] < low:
                raise ValueError(f"technique.stages: {name} of {made['name']} is {made[name]}, must be at least {low}")
        if not 0 < made["layer_decay"] <= 1 or made["lr"] <= 0:
            raise ValueError(
                f"technique.stages: layer_decay of {made['name']} is {made['layer_decay']}, must be in (0, 1], and lr "
                f"{made['lr']}, above 0"
            )
        check_mode(f"stages.stages[{number - 1}].mode", made["mode"])
        if made["warmup"] is not None and not 0 <= made["warmup"] < 1:
            raise ValueError(f"technique.stages: warmup of {made['name']} is {made['warmup']}, must be in [0, 1), a share of it")
        return made

    @property
    def logs(self) -> frozenset[str]:
        return frozenset({"stages/number"})

    @property
    def current(self) -> dict[str, Any]:
        """The stage under way."""
        return self.stages[self.number]

    def _plateau(self) -> Plateau:
        made = self.current if self.stages else DEFAULTS
        return Plateau(mode=made["mode"], min_delta=made["min_delta"])

    # --- setup ---

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, Task)
        if not self.stages:
            raise ValueError(
                f"technique stages has no stages for this {type(pl_module).__name__}; choose stage=progression, or give "
                "technique.stages.stages=[{name: ..., max_steps: ...}, ...]"
            )
        if trainer.max_steps < 1:
            raise ValueError(f"technique stages counts the steps of {type(pl_module).__name__}'s run; set max_steps")
        self._task = [pl_module]
        pl_module.stages = [made["name"] for made in self.stages]
        self._trainable = {name: p.requires_grad for name, p in pl_module.named_parameters()}
        self._loss_weights = dict(pl_module.loss_weights)
        for made in self.stages:
            self._check(made, pl_module)
        if trainer.world_size > 1 and any(made["frozen"] != self.stages[0]["frozen"] for made in self.stages):
            raise ValueError(
                f"technique stages: on several devices {type(pl_module).__name__}'s parameters rest in all stages or in none; "
                "give every stage the same frozen"
            )
        if any(made["data"] for made in self.stages):
            self._choose(trainer, pl_module)
        self._apply()

    def _check(self, made: Mapping[str, Any], task: Task) -> None:
        """Raises: ValueError where the task does not have what the stage names."""
        who = type(task).__name__
        for prefix in made["frozen"]:
            if prefix != "embeddings" and not any(name.startswith(prefix) for name in self._trainable):
                tops = sorted({".".join(name.split(".")[:2]) for name in self._trainable})
                raise ValueError(
                    f"technique stages: frozen {prefix!r} of {made['name']} begins no parameter of {who}; "
                    f"there are {', '.join(tops)}"
                )
        if made["layer_decay"] < 1 and not task.residual_blocks:
            raise ValueError(
                f"technique stages: layer_decay of {made['name']} needs residual blocks, {who} has none; leave it out"
            )
        if made["warmup"] is not None and "warmup" not in task.schedule_arguments:
            raise ValueError(f"technique stages: warmup of {made['name']} needs a schedule that has one; {who}'s has none")

    def _choose(self, trainer: pl.Trainer, task: Task) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "admit"):
            raise ValueError(
                f"technique stages chooses pieces, {type(task).__name__}'s data ({type(data).__name__}) has no table of them; "
                "leave data out of the stages"
            )
        columns = data.pieces()
        self._lookahead = data.lookahead
        self._masks = [self._mask(made, columns) for made in self.stages]
        data.admit("stages", self.rule)

    @staticmethod
    def _mask(made: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> np.ndarray:
        mask = np.ones(len(next(iter(columns.values()))), bool)
        for name, wanted in made["data"].items():
            if name not in columns:
                raise ValueError(
                    f"technique stages: data of {made['name']} names {name!r}; columns are {', '.join(sorted(columns))}"
                )
            values = columns[name]
            if isinstance(wanted, list | tuple) and np.issubdtype(values.dtype, np.number):
                mask &= (values >= wanted[0]) & (values <= wanted[-1])
            else:
                mask &= np.isin(values, wanted if isinstance(wanted, list | tuple) else [wanted])
        if not mask.any():
            raise ValueError(f"technique stages: data of {made['name']} leaves no piece; {dict(made['data'])} is too narrow")
        return mask

    def rule(self, rows: np.ndarray, draw: int) -> np.ndarray:
        """1 for each piece (row of the manifest) that the stage of this draw trains on."""
        number = next(number for first, number in reversed(self.changes) if first <= draw)
        admitted: np.ndarray = self._masks[number][rows].astype(np.float64)
        return admitted

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for made in self.stages:
            if made["patience"] is not None:
                assert isinstance(pl_module, Task)
                made["monitor"] = made["monitor"] or pl_module.logs[0]
                pl_module.check_metric(made["monitor"], f"technique.stages: monitor of {made['name']}", made["mode"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        self._finish(trainer)  # a run that was over is over again

    def _apply(self) -> None:
        """Makes the task what the stage under way wants; the next `configure_optimizers` builds accordingly."""
        task, made = self._task[0], self.current
        frozen = tuple(name for name in made["frozen"] if name != "embeddings")
        if "embeddings" in made["frozen"]:
            frozen += tuple(f"{name}." for name in _embeddings(task))
        for name, parameter in task.named_parameters():
            parameter.requires_grad_(self._trainable[name] and not name.startswith(frozen))
        task.loss_weights = {**self._loss_weights, **made["loss_weights"]}
        task.schedule_steps = made["max_steps"] or max(1, task.trainer.max_steps - self.started)
        task.schedule_since, task.stage = self.started, made["name"]
        task.schedule_options = {} if made["warmup"] is None else {"warmup": made["warmup"]}
        task.lr_factors = _factors(task, made["lr"], made["layer_decay"])

    # --- transitions: decided after a step or a validation, done before the next batch ---

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self.reason and self._between and self.number + 1 < len(self.stages):
            self._next(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._between, self._step = trainer.global_step != self._step, trainer.global_step
        length = self.current["max_steps"]
        if length is not None and trainer.global_step - self.started >= length:
            self.reason = self.reason or f"its {length} steps are over"
        if self.is_logged(trainer):
            pl_module.log("stages/number", float(self.number + 1))
        self._finish(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        made = self.current
        if trainer.sanity_checking or made["patience"] is None:
            return
        value = trainer.callback_metrics.get(made["monitor"])
        if value is None:
            found = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"technique.stages: monitor of {made['name']} is {made['monitor']!r}, not logged; there are {found}")
        self.plateau.improves(float(value))
        best, waited = self.plateau.best, self.plateau.waited
        if waited >= made["patience"] and trainer.global_step - self.started >= made["min_steps"]:
            self.reason = self.reason or f"{made['monitor']} has not improved on {best:.4f} for {waited} validations"
        self._finish(trainer)

    def _finish(self, trainer: pl.Trainer) -> None:
        """Ends the run where its last stage is over."""
        if not self.reason or not self._between or self.number + 1 < len(self.stages) or trainer.should_stop:
            return
        if trainer.global_step < trainer.max_steps:
            log.warning(f"stages: {self.current['name']}, the last one, ends at step {trainer.global_step}: {self.reason}")
        trainer.should_stop = True

    def _next(self, trainer: pl.Trainer) -> None:
        over, reason = self.current["name"], self.reason
        self.number, self.started, self.reason = self.number + 1, trainer.global_step, ""
        self.plateau = self._plateau()
        log.warning(f"stages: {over} ends at step {trainer.global_step}: {reason}; {self.current['name']} begins")
        task = self._task[0]
        if self._masks:
            now = task.batches_trained
            current = max(i for i, (first, _) in enumerate(self.changes) if first <= now)
            self.changes = [*self.changes[current:], [now + self._lookahead + 1, self.number]]  # this batch is drawn
        former = trainer.optimizers
        self._apply()
        for parameter in task.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
        trainer.strategy.setup_optimizers(trainer)
        for old, new in zip(former, trainer.optimizers, strict=True):
            carry_state(old, new)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.plateau.state_dict(), "number": self.number, "started": self.started, "reason": self.reason,
            "changes": self.changes,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.number, self.started = state_dict["number"], state_dict["started"]
        self.reason = state_dict["reason"]
        self.changes = [list(change) for change in state_dict["changes"]]
        if self.number >= len(self.stages):
            raise ValueError(f"technique.stages: the checkpoint is in stage {self.number + 1}, here are {len(self.stages)}")
        self.plateau = self._plateau()
        self.plateau.load_state_dict(state_dict)
        if self._task:
            self._apply()  # before the optimizer is built


def _embeddings(task: Task) -> list[str]:
    return [name for name, module in task.named_modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]


def _factors(task: Task, lr: float, decay: float) -> dict[str, float]:
    """Beginnings of parameter names and the factors of their learning rates."""
    factors = {"": lr} if lr != 1 or decay != 1 else {}
    if decay == 1:
        return factors
    names = {id(module): name for name, module in task.named_modules()}
    stacks: dict[str, list[str]] = {}  # the blocks of one network stand in one list
    for block in task.residual_blocks:
        stacks.setdefault(names[id(block)].rpartition(".")[0], []).append(names[id(block)])
    for stack in stacks.values():
        for place, name in enumerate(reversed(stack)):
            factors[f"{name}."] = lr * decay**place
    for name in _embeddings(task):
        factors[f"{name}."] = lr * decay ** max(len(stack) for stack in stacks.values())
    return factors
