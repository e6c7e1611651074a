"""The phases of a run: what each wants, which one is under way, and how the next one begins.

A phase is one section of a run's training: so many steps on these pieces, with these parameters at rest and these rates. A run
without a sequence of phases is one phase. `technique=stages` gives a run its sequence and says when a phase ends; the files of
the option group `stage=` describe such sequences, or runs that follow one another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from etude.core import lightning
from etude.core.any_task import AnyTask
from etude.core.optimizer_state import carry_state
from etude.core.phase_draws import Draws


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a run.

    name: how messages and other options call it.
    frozen: beginnings of the names of parameters that rest; `embeddings` are all tables of embeddings, if there are any.
    lr: factor of the learning rates, above 0. layer_decay: in (0, 1], of each residual block but the last, counted from the
        output backwards, and of the embeddings: block l of L learns with lr * layer_decay^(L - l).
    loss_weights: laid over the task's.
    data: {column: value, [values] or [lowest, highest]} of the data's table of pieces: those that are drawn.
    modules: what `Task.add_modules` is called with when the phase begins; not of the first.
    max_steps: its length in optimizer steps, over which the task's schedule runs anew; None: to the end of the run, or until
        `patience` ends it. warmup: share of it, in [0, 1); None for the schedule's own.
    monitor (None: the task's own), mode ("min" or "max" is better), patience, min_delta, min_steps: it ends, after `min_steps`
        at the earliest, when the metric has not improved by more than `min_delta` for `patience` validations.

    Raises:
        ValueError: a value out of its range.
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
            raise ValueError(f"warmup of {self.name} is {self.warmup}, must be in [0, 1), a share of it")


class Phases:
    """The sequence of a task's phases and the position in it, which is part of the task's checkpoint.

    A technique asks `task.phase` what the phase under way wants and `task.phases` for its `number` (from 0) and for the optimizer
    step at which it `began`; `Technique.on_phase_end` and `on_phase_start` tell it of a boundary between two phases.

    sequence: the phases in order, () where the run is one phase. added: what `Task.add_modules` was called with so far.
    draws: from which batch on the data are of which phase.
    """

    def __init__(self) -> None:
        self.sequence: tuple[Phase, ...] = ()
        self.number = 0
        self.began = 0
        self.added: list[dict[str, Any]] = []
        self.draws = Draws()
        self._trainable: dict[str, bool] = {}
        self._loss_weights: dict[str, float] = {}

    @property
    def current(self) -> Phase:
        """The phase under way."""
        return self.sequence[self.number] if self.sequence else Phase()

    @property
    def names(self) -> list[str]:
        """The names of the phases in order; none where the run is one phase."""
        return [phase.name for phase in self.sequence]

    @property
    def is_last(self) -> bool:
        """Whether no phase follows."""
        return self.number + 1 >= len(self.sequence)

    # --- a new sequence ---

    def give(self, task: AnyTask, sequence: Sequence[Phase]) -> None:
        """Gives a run its phases and begins with the first; called in the setup of a technique, before a checkpoint is loaded.

        Raises:
            ValueError: the task does not have what a phase names.
        """
        self._trainable = {name: p.requires_grad for name, p in task.named_parameters()}
        self._loss_weights = dict(task.loss_weights)
        for phase in sequence:
            self._check(phase, task)
        run = task.trainer
        if run.world_size > 1 and any(list(p.frozen) != list(sequence[0].frozen) or p.modules for p in sequence):
            raise ValueError(
                f"on several devices {type(task).__name__}'s parameters rest in all phases or in none and no modules are added; "
                "give every phase the same frozen, and no modules"
            )
        if sequence[0].modules:
            raise ValueError(f"modules of {sequence[0].name}: the first phase adds none; build the task with them")
        self.sequence = tuple(sequence)
        self.draws.choose(task, self.sequence)
        self._apply(task)

    def _check(self, phase: Phase, task: AnyTask) -> None:
        who = type(task).__name__
        for prefix in phase.frozen if not self.added and not phase.modules else ():
            if prefix != "embeddings" and not any(name.startswith(prefix) for name in self._trainable):
                tops = sorted({".".join(name.split(".")[:2]) for name in self._trainable})
                raise ValueError(f"frozen {prefix!r} of {phase.name} begins no parameter of {who}; there are {', '.join(tops)}")
        if phase.layer_decay < 1 and not task.residual_blocks:
            raise ValueError(f"layer_decay of {phase.name} needs residual blocks, {who} has none; leave it out")
        if phase.warmup is not None and "warmup" not in task.schedule_arguments:
            raise ValueError(f"warmup of {phase.name} needs a schedule that has one; {who}'s has none")
        if phase.modules and not task.can_add_modules:
            raise ValueError(f"modules of {phase.name}: {who} has no modules to add in a phase; leave modules out")

    def _apply(self, task: AnyTask) -> None:
        """Makes the task what the phase under way wants; the next `configure_optimizers` builds accordingly."""
        phase = self.current
        frozen = tuple(name for name in phase.frozen if name != "embeddings")
        if "embeddings" in phase.frozen:
            frozen += tuple(f"{name}." for name in _embeddings(task))
        for name, parameter in task.named_parameters():
            parameter.requires_grad_(self._trainable.get(name, True) and not name.startswith(frozen))
        task.loss_weights = {**self._loss_weights, **phase.loss_weights}
        task.schedule_steps = phase.max_steps or max(1, task.trainer.max_steps - self.began)
        task.schedule_start_step = self.began
        task.schedule_options = {} if phase.warmup is None else {"warmup": phase.warmup}
        task.lr_factors = rate_factors(task, phase.lr, phase.layer_decay)

    # --- a boundary ---

    def advance(self, task: AnyTask) -> None:
        """Ends the phase under way and begins the next; only between two optimizer steps, before the next batch is trained.

        The optimizer is built anew and keeps what it knew of the parameters that stay; of one that has grown in
        `Task.add_modules`, what it knew of the part that was there. Techniques are told in their canonical order, of the end
        before anything changes, of the start when all is done.
        """
        task.composition.on_phase_end(task)
        run = task.trainer
        self.number, self.began = self.number + 1, task.steps_trained
        before = dict(task.named_parameters())
        if self.current.modules:
            self.add(task, self.current.modules)
        grown = {p: before[n] for n, p in task.named_parameters() if n in before and before[n] is not p}
        self.draws.boundary(task)
        former = run.optimizers
        self._apply(task)
        for parameter in task.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
        lightning.rebuild_optimizers(run)
        for old, new in zip(former, run.optimizers, strict=True):
            carry_state(old, new, grown=grown)
        task.composition.on_phase_start(task)

    def add(self, task: AnyTask, options: Mapping[str, Any]) -> None:
        """Has the task add modules, and remembers it for its checkpoints; their first weights are a function of the task's seed
        and of how many were added before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((task.seed * 1_000_003 + len(self.added) + 1) % 2**63)
            task.add_modules(**options)
        task.to(task.device)
        self.added.append(dict(options))

    def restore(self, task: AnyTask, saved: Mapping[str, Any]) -> None:
        """Adds to a task that was built anew what phases had added before a checkpoint, from what stands in it under "etude"; its
        weights can then be loaded."""
        for options in (saved.get("phases") or {"added": []})["added"][len(self.added) :]:
            self.add(task, options)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "names": self.names, "number": self.number, "began": self.began, "added": self.added, "draws": self.draws.state_dict()
        }  # fmt: skip

    def load(self, task: AnyTask, checkpoint: Mapping[str, Any]) -> None:
        """Goes on where a checkpoint stands, before its weights are loaded and the optimizer is built.

        Raises:
            ValueError: this run has fewer phases.
        """
        state = checkpoint["etude"].get("phases") or _of_stages(checkpoint)
        if state is None:
            return
        self.restore(task, checkpoint["etude"])
        if not self.sequence:
            return
        if state["number"] >= len(self.sequence):
            raise ValueError(
                f"the checkpoint is in phase {state['number'] + 1}, and this run has {len(self.sequence)}; give those of its run"
            )
        self.number, self.began = state["number"], state["began"]
        self.draws.load(task, state["draws"], step=checkpoint["global_step"])
        self._apply(task)


def position(saved: Mapping[str, Any]) -> str:
    """The name of the phase in which a checkpoint was written, from what stands in it under "etude"; "" where the run is one
    phase."""
    state = saved.get("phases") or {"names": [], "number": 0}
    return str(state["names"][state["number"]]) if state["names"] else ""


def _of_stages(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The position in a checkpoint of before it was state of the core: the technique `stages` kept it."""
    old = checkpoint.get("callbacks", {}).get("Stages")
    if old is None or "number" not in old:
        return None
    return {"names": [], "number": old["number"], "began": old["started"], "added": [], "draws": old["changes"]}


def _embeddings(task: AnyTask) -> list[str]:
    return [name for name, module in task.named_modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]


def rate_factors(task: AnyTask, lr: float, decay: float) -> dict[str, float]:
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
