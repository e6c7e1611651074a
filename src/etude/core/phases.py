"""The phases of a run: `Phase` describes one, `Phases` holds their sequence and the current position.

A phase is one section of a run's training, with its own number of steps, pieces, frozen parameters and learning rates. A run
without a sequence of phases is a single phase. `technique=stages` sets the sequence and decides when a phase ends. The files of
the option group `stage=` describe such sequences, or several runs, one after another.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from etude.core import lightning
from etude.core.any_task import AnyTask
from etude.core.optimizer_state import carry_state
from etude.core.phase_draws import PhasePieces
from etude.core.phase_protocols import GrowsInPhases


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a run.

    name: its name in messages and in other options.
    frozen: prefixes of the names of parameters that are not trained; `embeddings` stands for all embedding tables. After a phase
        with `modules` they are checked only when the phase begins.
    lr: factor of the learning rates, above 0. layer_decay: in (0, 1]; residual block l of L is trained with the learning rate
        lr * layer_decay^(L - l), and the embeddings like a block below the first.
    loss_weights: these replace the task's weights of the same names.
    data: {column: value, [values] or [lowest, highest]} of the data's table of pieces; only matching pieces are
        drawn. Two numbers are a range; a list of more or fewer numbers holds the values themselves.
    modules: arguments for `Task.add_modules`, which is called when the phase begins; not allowed in the first phase.
    max_steps: its length in optimizer steps, which is also the length of the schedule, started afresh. None: until the run or
        `patience` ends it. warmup: share of the phase, in [0, 1); None keeps the schedule's own value.
    monitor (None: the task's main metric), mode ("min" or "max"), patience, min_delta, min_steps: the phase ends when the metric
        has not improved by more than `min_delta` for `patience` validations, but not before `min_steps`.

    Raises:
        ValueError: a value is out of its range.
    """

    name: str = ""
    frozen: Sequence[str] = ()
    lr: float = 1.0
    layer_decay: float = 1.0
    warmup: float | None = None
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, Any] = field(default_factory=dict)
    monitor: str | None = None
    mode: str = "min"
    min_steps: int = 0
    max_steps: int | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        for name, low in (("max_steps", 1), ("patience", 1), ("min_steps", 0), ("min_delta", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} of {self.name} is {value}, must be at least {low}")
        if not 0 < self.layer_decay <= 1 or self.lr <= 0:
            raise ValueError(f"layer_decay of {self.name} is {self.layer_decay}, must be in (0, 1], and lr {self.lr}, above 0")
        if self.warmup is not None and not 0 <= self.warmup < 1:
            raise ValueError(f"warmup of {self.name} is {self.warmup}, must be in [0, 1), a share of the phase")


class Phases:
    """The sequence of a task's phases and the current position, which is saved in the task's checkpoints.

    `task.phase` is the current phase. Techniques are told of a change of phase by `on_phase_end` and `on_phase_start`.

    sequence: the phases in order; () if the run is a single phase. index: of the current phase, from 0.
    start_step: the optimizer step at which the current phase began.
    added_modules: the arguments of all calls of `Task.add_modules` so far.
    pieces: decides which batches hold the pieces of which phase.
    """

    def __init__(self) -> None:
        self.sequence: tuple[Phase, ...] = ()
        self.index = 0
        self.start_step = 0
        self.added_modules: list[dict[str, Any]] = []
        self.pieces = PhasePieces()
        self._held: frozenset[str] = frozenset()
        self._trainable: dict[str, bool] = {}
        self._loss_weights: dict[str, float] = {}

    @property
    def current(self) -> Phase:
        """The current phase."""
        return self.sequence[self.index] if self.sequence else Phase()

    @property
    def names(self) -> list[str]:
        """The names of the phases in order; empty if the run is a single phase."""
        return [phase.name for phase in self.sequence]

    @property
    def is_last(self) -> bool:
        """Whether the current phase is the last one."""
        return self.index + 1 >= len(self.sequence)

    def drawn(self, column: str, values: Sequence[str]) -> list[str]:
        """Returns those values of a column of the data's table whose pieces a phase that has begun draws, in their order."""
        begun = [phase.data.get(column) for phase in self.sequence[: self.index + 1]] or [None]
        named = {str(one) for each in begun for one in ([each] if isinstance(each, str) else each or ())}
        return [value for value in values if None in begun or value in named]

    def hold(self, task: AnyTask, names: Collection[str]) -> None:
        """Freezes the parameters of these names for the whole run, whatever the phases freeze.

        A technique calls this in its `setup`, before or after the phases are set.
        """
        self._held |= frozenset(names)
        for name, parameter in task.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in self._held)
        if self.sequence:
            self._apply(task)

    def trainable(self, task: AnyTask) -> frozenset[str]:
        """Returns the names of the parameters that are trained where no phase freezes them."""
        known = self._trainable if self.sequence else {}
        names = {name for name, p in task.named_parameters() if known.get(name, bool(self.sequence) or p.requires_grad)}
        return frozenset(names - self._held)

    # --- a new sequence ---

    def set_sequence(self, task: AnyTask, sequence: Sequence[Phase]) -> None:
        """Sets the phases of a run and begins the first. A technique calls this in its `setup`, before a checkpoint is loaded.

        Raises:
            ValueError: a phase needs something that the task does not have.
        """
        self._trainable = {name: p.requires_grad for name, p in task.named_parameters()}
        self._loss_weights = dict(task.loss_weights)
        grows = False
        for phase in sequence:
            self._check(phase, task)
            grows = grows or bool(phase.modules)
            if not grows:  # later ones may freeze what a phase adds; their prefixes are checked when they begin
                _check_frozen(phase, task)
        run = task.trainer
        if run.world_size > 1 and any(list(p.frozen) != list(sequence[0].frozen) or p.modules for p in sequence):
            raise ValueError(
                f"on several devices all phases of {type(task).__name__} must freeze the same parameters, and none may add "
                "modules; give every phase the same frozen, and no modules"
            )
        if sequence[0].modules:
            raise ValueError(f"modules of {sequence[0].name}: the first phase can't add modules; build the task with them")
        self.sequence = tuple(sequence)
        self.pieces.register(task, self.sequence)
        self._apply(task)

    def _check(self, phase: Phase, task: AnyTask) -> None:
        who = type(task).__name__
        if phase.layer_decay < 1 and not task.residual_blocks:
            raise ValueError(f"layer_decay of {phase.name} needs residual blocks, but {who} has none; leave it out")
        if phase.warmup is not None and "warmup" not in task.schedule_arguments:
            raise ValueError(f"warmup of {phase.name} needs a schedule with a warm-up; that of {who} has none")
        if phase.modules and not task.can_add_modules:
            raise ValueError(f"modules of {phase.name}: {who} can't add modules in a phase; leave modules out")

    def _apply(self, task: AnyTask) -> None:
        """Applies the options of the current phase to the task; the next `configure_optimizers` uses them."""
        phase = self.current
        _check_frozen(phase, task)
        frozen = tuple(name for name in phase.frozen if name != "embeddings")
        if "embeddings" in phase.frozen:
            frozen += tuple(f"{name}." for name in embeddings_of(task))
        for name, parameter in task.named_parameters():
            trainable = self._trainable.get(name, True) and name not in self._held
            parameter.requires_grad_(trainable and not name.startswith(frozen))
        task.loss_weights = {**self._loss_weights, **phase.loss_weights}
        task.schedule_steps = phase.max_steps or max(1, task.trainer.max_steps - self.start_step)
        task.schedule_start_step = self.start_step
        task.schedule_options = {} if phase.warmup is None else {"warmup": phase.warmup}
        task.lr_factors = rate_factors(task, phase.lr, phase.layer_decay)

    # --- the change from one phase to the next ---

    def advance(self, task: AnyTask) -> None:
        """Ends the current phase and begins the next. Call it only between two optimizer steps, before the next batch.

        The optimizer is built anew but keeps its state (moments, counters) of all parameters that remain; if
        `Task.add_modules` has enlarged a parameter, it keeps the state of the old entries. `on_phase_end` of the techniques is
        called before anything changes, `on_phase_start` after everything has changed.
        """
        task.composition.on_phase_end(task)
        run = task.trainer
        self.index, self.start_step = self.index + 1, task.steps_trained
        before = dict(task.named_parameters())
        added = {**self.current.modules, **(task.modules_of_phase() if isinstance(task, GrowsInPhases) else {})}
        if added:
            self.add_modules(task, added)
        grown = {p: before[n] for n, p in task.named_parameters() if n in before and before[n] is not p}
        self.pieces.on_phase_start(task)
        former = run.optimizers
        self._apply(task)
        for parameter in task.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
        lightning.rebuild_optimizers(run)
        for old, new in zip(former, run.optimizers, strict=True):
            carry_state(old, new, grown=grown)
        task.composition.on_phase_start(task)

    def add_modules(self, task: AnyTask, options: Mapping[str, Any]) -> None:
        """Calls `task.add_modules` and records the call for checkpoints.

        The initial weights depend only on the task's seed and on how many calls came before.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((task.seed * 1_000_003 + len(self.added_modules) + 1) % 2**63)
            task.add_modules(**options)
        task.to(task.device)
        self.added_modules.append(dict(options))

    def restore_modules(self, task: AnyTask, saved: Mapping[str, Any]) -> None:
        """Adds to a newly built task the modules that phases had added before the checkpoint, so that its weights can be loaded.

        saved: the checkpoint's entry "etude".
        """
        for options in (saved.get("phases") or {"added": []})["added"][len(self.added_modules) :]:
            self.add_modules(task, options)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "names": self.names, "number": self.index, "began": self.start_step, "added": self.added_modules, 
            "draws": self.pieces.state_dict(),
        }  # fmt: skip

    def load(self, task: AnyTask, checkpoint: Mapping[str, Any]) -> None:
        """Restores the position from a checkpoint, before its weights are loaded and the optimizer is built.

        Raises:
            ValueError: this run has fewer phases.
        """
        state = checkpoint["etude"].get("phases") or _state_of_older_checkpoint(checkpoint)
        if state is None:
            return
        self.restore_modules(task, checkpoint["etude"])
        if not self.sequence:
            return
        if state["number"] >= len(self.sequence):
            raise ValueError(
                f"the checkpoint is in phase {state['number'] + 1}, but this run has {len(self.sequence)}; give all phases"
            )
        self.index, self.start_step = state["number"], state["began"]
        self.pieces.load(task, state["draws"], step=checkpoint["global_step"])
        self._apply(task)


def position(saved: Mapping[str, Any]) -> str:
    """Returns the name of the phase in which a checkpoint was written; "" if its run is a single phase.

    saved: the checkpoint's entry "etude".
    """
    state = saved.get("phases") or {"names": [], "number": 0}
    return str(state["names"][state["number"]]) if state["names"] else ""


def _state_of_older_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the position from an older checkpoint, where the technique `stages` stored it; None if there is none."""
    old = checkpoint.get("callbacks", {}).get("Stages")
    if old is None or "number" not in old:
        return None
    return {"names": [], "number": old["number"], "began": old["started"], "added": [], "draws": old["changes"]}


def _check_frozen(phase: Phase, task: AnyTask) -> None:
    """Raises: ValueError if a prefix in `frozen` begins no name of the task's present parameters."""
    names = [name for name, _ in task.named_parameters()]
    for prefix in phase.frozen:
        if prefix != "embeddings" and not any(name.startswith(prefix) for name in names):
            tops = ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))
            raise ValueError(
                f"frozen of {phase.name}: {prefix!r} begins no parameter name of {type(task).__name__}; names begin with {tops}"
            )


def embeddings_of(task: AnyTask) -> list[str]:
    """Returns the names of the task's embedding tables, for which `embeddings` stands in options."""
    return [name for name, module in task.named_modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]


def rate_factors(task: AnyTask, lr: float, decay: float) -> dict[str, float]:
    """Returns prefixes of parameter names with the factors of their learning rates, for `Task.lr_factors`."""
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
    for name in embeddings_of(task):
        factors[f"{name}."] = lr * decay ** max(len(stack) for stack in stacks.values())
    return factors
