"""`Technique`, the base class of training techniques, and `Composition`, the rules by which any set of them is combined."""

import hashlib
from collections.abc import Iterable, Mapping
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core import lightning
from etude.core.any_task import AnyTask
from etude.core.batch import Batch


class BatchSlot(IntEnum):
    """The order in which techniques change the batch; within a slot they are called in the order of their names."""

    SELECT = 0
    CROP = 1
    AUGMENT = 2
    MIX = 3
    ADVERSARIAL = 4
    MASK = 5


class GradientSlot(IntEnum):
    """The order in which techniques change the gradients; Lightning's `gradient_clip_val` is applied at the start of CLIP."""

    PROJECT = 0
    MASK = 1
    CLIP = 2
    SKIP = 3


class StepSlot(IntEnum):
    """The order in which techniques act after an optimizer step; the task's own `after_step` is called after WEIGHTS."""

    REPAIR = 0  # restores state that a skipped step has changed
    WEIGHTS = 1  # changes weights: resets, projects or prunes them
    AVERAGE = 2  # copies or averages the weights after the step
    PLAN = 3  # counts steps and decides what happens next


class Power(StrEnum):
    """A part of training that at most one technique of a run may control."""

    BACKWARD = "the backward pass"
    LOSSES = "how the task's losses are made"
    EVALUATION_WEIGHTS = "the evaluation weights"
    INITIAL_WEIGHTS = "the weights with which the layers start"
    STEP = "the optimizer step"
    WEIGHING = "the weighting of losses"


class Technique(pl.Callback):
    """A Lightning callback that may also change batches, losses, their weights and gradients.

    A subclass overrides the hooks that it needs and declares some of them in class attributes:

    - `batch_slot` if it overrides `transform_batch`, `gradient_slot` if it overrides `transform_gradients`, `step_slot` if it
      overrides `after_step`;
    - the matching `Power` in `claims` if it overrides `make_losses`, `weigh` or `backward`;
    - `is_guard` if it changes training only when something goes wrong, such as a loss of NaN;
    - `only_observes` if it never changes training;
    - `needs_weights` if it makes sense only in a run that starts from trained weights;
    - `holds_weights` if it promises that some weights keep their values, `sets_weights` if it sets any to others as it needs
      (pruning, units that join): one of the first kind can't be combined with one of the second.

    All its state is in Lightning's `state_dict` and `load_state_dict`. If the task lacks something that the technique needs,
    `setup` raises a ValueError that names both.

    Args:
        seed: of the technique's random draws; see `generator`. Only techniques that draw numbers have it as an option.
    """

    claims: ClassVar[frozenset[Power]] = frozenset()
    batch_slot: ClassVar[BatchSlot | None] = None
    gradient_slot: ClassVar[GradientSlot | None] = None
    step_slot: ClassVar[StepSlot | None] = None
    is_guard: ClassVar[bool] = False
    only_observes: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False
    holds_weights: ClassVar[bool] = False
    sets_weights: ClassVar[bool] = False

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    @property
    def name(self) -> str:
        """The name of the technique's module, which is also its key in the configuration, such as "ema"."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def acts_on_layers(self) -> bool:
        """Whether it changes or watches the layers with which a run begins, so that layers of later phases would escape it."""
        return False

    @property
    def logged_metrics(self) -> frozenset[str]:
        """Names of the metrics that this technique logs; an option `monitor` may name any of them."""
        return frozenset()

    @property
    def maximized_metrics(self) -> frozenset[str]:
        """Those of `logged_metrics` for which higher values are better."""
        return frozenset()

    @property
    def corrections(self) -> dict[str, str]:
        """The loss terms of this technique that only correct another term: name -> name of the corrected term.

        A correction is meaningless alone, such as the difference that label smoothing makes. It gets the weight of its term.
        """
        return {}

    def paths(self) -> dict[str, Path]:
        """Files of other runs that this technique reads: name of the option -> path."""
        return {}

    def is_logged(self, trainer: pl.Trainer) -> bool:
        """Whether a value logged now is used: this step is written to the loggers, or a validation may follow.

        A technique asks this before it logs, since each `log` costs up to a millisecond.
        """
        return lightning.is_logged(trainer)

    def generator(self, clock: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Returns a random generator seeded by (seed, name, clock), so that one technique's draws do not change another's."""
        digest = hashlib.blake2b(f"{self.seed}/{self.name}/{clock}".encode(), digest_size=7).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))

    def transform_batch(self, task: AnyTask, batch: Batch) -> Batch:
        """Returns the batch to train on. Needs `batch_slot`."""
        return batch

    def make_losses(self, task: AnyTask, batch: Batch) -> dict[str, Tensor]:
        """Returns the task's loss terms on the batch, computed in another way than by `task.losses`, such as after an inner loop.

        `task.losses_at` computes losses with other weights. Exclusive: needs a claim of `Power.LOSSES`.
        """
        found: dict[str, Tensor] = task.losses(batch)
        return found

    def extra_losses(self, task: AnyTask, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns additional loss terms by name, without weights; `scale_losses` gives their weights.

        A name that exists already is an error. `losses` are the task's terms and must not be changed.
        """
        return {}

    def scale_losses(self, task: AnyTask, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        """Returns factors by which the weights of terms are multiplied, by the name of the term."""
        return {}

    def weigh(self, task: AnyTask, losses: Mapping[str, Tensor]) -> Tensor:
        """Returns the one loss to minimize, computed from all terms. Exclusive: needs a claim of `Power.WEIGHING`."""
        found: Tensor = task.weighted_sum(losses)
        return found

    def backward(self, task: AnyTask, terms: Mapping[str, Tensor]) -> None:
        """Adds gradients to `.grad` of all parameters; replaces the usual backward pass through the sum of the terms.

        terms: the loss terms, already multiplied by their weights, by the scale of 16-mixed precision, and by the share of
        one batch in an accumulated step. Exclusive: needs a claim of `Power.BACKWARD`.
        """

    def transform_gradients(self, task: AnyTask) -> None:
        """Changes `.grad` of the task's parameters in place, before the optimizer step. Needs `gradient_slot`."""

    def after_step(self, task: AnyTask) -> None:
        """Runs once after each optimizer step, before any checkpoint is written. Needs `step_slot`.

        `task.steps_trained` includes this step. Called under `torch.no_grad()`, also after a skipped step; see `Task.after_step`.
        """

    def on_phase_end(self, task: AnyTask) -> None:
        """Called between two phases, after the last step of `task.phase`; not at the end of the run.

        The weights and the optimizer are still those of the phase that ends.
        """

    def on_phase_start(self, task: AnyTask) -> None:
        """Called between two phases, before the first batch of `task.phase`; not at the start of the run.

        The modules and the optimizer are already those of the phase that begins.
        """

    def on_validation_interrupted(self, task: AnyTask) -> None:
        """Undoes what this technique has changed since the validation began, such as a swap of the weights.

        Called when a signal ends the run in a validation, before `last.ckpt` is written. A resumed run repeats the validation.
        """

    def carried_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the state with which this technique starts a new run that begins with the weights of another run's checkpoint.

        state: this technique's state in that checkpoint. The result is passed to `load_state_dict`; None starts afresh. When one
        run is resumed, this method is not used and the state is restored in full.
        """
        return None

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        """Returns the options with which this state was made, so that a run that goes on with it can't take other values.

        A request for another value is then refused. All other options must have an effect from the next batch on.
        """
        return frozenset()


class Composition:
    """The techniques of a run; the order in which they are given does not matter.

    Raises:
        ValueError: two techniques have the same name or claim the same power, or one has a hook without its slot or claim.
    """

    def __init__(self, techniques: Iterable[Technique] = ()) -> None:
        self.techniques = sorted(techniques, key=lambda technique: technique.name)
        self._check()
        self._batch_order = sorted((t for t in self.techniques if t.batch_slot is not None), key=lambda t: (t.batch_slot, t.name))
        slots = [(t.gradient_slot, t.name, t) for t in self.techniques if t.gradient_slot is not None]
        self.corrections = {name: base for technique in self.techniques for name, base in technique.corrections.items()}
        self._before_clip = [t for slot, _, t in sorted(slots) if slot < GradientSlot.CLIP]
        self._after_clip = [t for slot, _, t in sorted(slots) if slot >= GradientSlot.CLIP]
        self._after_step = sorted((t for t in self.techniques if t.step_slot is not None), key=lambda t: (t.step_slot, t.name))
        self._losses_owner = self._owner(Power.LOSSES, "make_losses")
        self._weighing_owner = self._owner(Power.WEIGHING, "weigh")
        self.backward_owner = self._owner(Power.BACKWARD, "backward")
        self.terms: dict[str, Tensor] = {}  # of the last batch, detached, for messages
        self.stepping = False  # the optimizer may have begun its step, which is not yet remembered as a whole one

    def _owner(self, power: Power, hook: str) -> Technique | None:
        owners = [t for t in self.techniques if power in t.claims and _overrides(t, hook)]
        return owners[0] if owners else None

    def _check(self) -> None:
        for holding in (t.name for t in self.techniques if t.holds_weights):
            for other in (t.name for t in self.techniques if t.sets_weights):
                raise ValueError(
                    f"technique {holding!r} holds weights at their values, and technique {other!r} sets them to others; remove "
                    "one of them from technique=[...]"
                )
        owners: dict[str, str] = {}
        for technique in self.techniques:
            for claim in (f"the name {technique.name!r}", *technique.claims):
                if claim in owners:
                    raise ValueError(
                        f"techniques {owners[claim]!r} and {technique.name!r} both claim {claim}; "
                        f"remove one of them from technique=[...]"
                    )
                owners[claim] = technique.name
            for hook, declared in (
                ("transform_batch", technique.batch_slot is not None),
                ("transform_gradients", technique.gradient_slot is not None),
                ("after_step", technique.step_slot is not None),
            ):
                if _overrides(technique, hook) != declared:
                    raise ValueError(
                        f"technique {technique.name!r}: a technique that overrides {hook} must declare its slot, and "
                        f"one that declares the slot must override {hook}; only one of the two was done"
                    )
            for hook, power in (
                ("make_losses", Power.LOSSES),
                ("weigh", Power.WEIGHING),
                ("backward", Power.BACKWARD),
            ):
                chosen = "claims" in vars(technique)  # set by its options: a hook may then be unused
                overridden, claimed = _overrides(technique, hook), power in technique.claims
                if claimed > overridden or (overridden > claimed and not chosen):
                    raise ValueError(
                        f"technique {technique.name!r} must both override {hook} and claim {power}; only one was done"
                    )

    def transform_batch(self, task: AnyTask, batch: Batch) -> Batch:
        """Returns the batch after all techniques have changed it, in the order of their slots."""
        for technique in self._batch_order:
            batch = technique.transform_batch(task, batch)
        return batch

    def make_losses(self, task: AnyTask, batch: Batch) -> dict[str, Tensor]:
        """Returns the task's loss terms: from the technique that claims `Power.LOSSES`, otherwise from the task itself."""
        found: dict[str, Tensor] = self._losses_owner.make_losses(task, batch) if self._losses_owner else task.losses(batch)
        return found

    def extend_losses(self, task: AnyTask, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the task's terms and the additional ones of all techniques; each technique is given the task's terms alone."""
        terms = dict(losses)
        for technique in self.techniques:
            for name, value in technique.extra_losses(task, batch, dict(losses)).items():
                if name in terms:
                    raise ValueError(f"technique {technique.name!r} adds a loss {name!r}, which exists already; rename it")
                terms[name] = value
        self.terms = {name: value.detach() for name, value in terms.items()}
        return terms

    def factors(self, task: AnyTask, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        """Returns, for each term that techniques scale, the product of their factors.

        Raises: ValueError for a factor of a term that does not exist.
        """
        found: dict[str, float | Tensor] = {}
        for technique in self.techniques:
            for name, factor in technique.scale_losses(task, losses).items():
                if name not in losses:
                    raise ValueError(
                        f"technique {technique.name!r} scales a loss {name!r}, but the terms are {sorted(losses)}; rename it"
                    )
                found[name] = found[name] * factor if name in found else factor
        return found

    def on_phase_end(self, task: AnyTask) -> None:
        """Tells all techniques that a phase ends."""
        for technique in self.techniques:
            technique.on_phase_end(task)

    def on_phase_start(self, task: AnyTask) -> None:
        """Tells all techniques that a phase begins."""
        for technique in self.techniques:
            technique.on_phase_start(task)

    def weigh(self, task: AnyTask, losses: Mapping[str, Tensor]) -> Tensor:
        """Returns the loss to minimize: from the technique that claims `Power.WEIGHING`, otherwise the task's weighted sum."""
        found: Tensor = self._weighing_owner.weigh(task, losses) if self._weighing_owner else task.weighted_sum(losses)
        return found

    @property
    def guarded(self) -> bool:
        """Whether any technique reads or changes gradients after the trainer's clipping."""
        return bool(self._after_clip)

    def changes_clipped_gradients(self, except_by: Technique) -> bool:
        """Whether a technique other than `except_by`, and no guard, changes gradients after the trainer's clipping."""
        return any(t is not except_by and not t.is_guard for t in self._after_clip)

    def transform_gradients(self, task: AnyTask, clip: Any) -> None:
        """Changes the gradients: techniques in the order of their slots, with the trainer's `clip()` at the start of CLIP."""
        for technique in self._before_clip:
            technique.transform_gradients(task)
        clip()
        for technique in self._after_clip:
            technique.transform_gradients(task)
        self.stepping = True

    def after_step(self, task: AnyTask) -> None:
        """Calls `after_step` of all techniques in the order of their slots, and that of the task after the slot WEIGHTS."""
        task_waits = True
        for technique in self._after_step:
            if task_waits and technique.step_slot is not None and technique.step_slot > StepSlot.WEIGHTS:
                task.after_step()
                task_waits = False
            technique.after_step(task)
        if task_waits:
            task.after_step()


def _overrides(technique: Technique, hook: str) -> bool:
    return getattr(type(technique), hook) is not getattr(Technique, hook)
