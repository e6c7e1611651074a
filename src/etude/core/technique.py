"""Training techniques: Lightning callbacks with a few extra hooks, and the rules by which any set of them composes."""

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
    """When a technique changes the batch, first to last; ties break by the technique's name."""

    SELECT = 0
    CROP = 1
    AUGMENT = 2
    MIX = 3
    ADVERSARIAL = 4
    MASK = 5


class GradientSlot(IntEnum):
    """When a technique changes the gradients, first to last; Lightning's `gradient_clip_val` acts in CLIP."""

    PROJECT = 0
    MASK = 1
    CLIP = 2
    SKIP = 3


class StepSlot(IntEnum):
    """When a technique acts after an optimizer step, first to last; the task's own `after_step` comes after WEIGHTS."""

    REPAIR = 0  # puts right what a step that was left out has disturbed
    WEIGHTS = 1  # changes weights: keeps, projects or prunes them
    AVERAGE = 2  # copies or averages the weights that the step ends with
    PLAN = 3  # counts steps and decides what comes next


class Power(StrEnum):
    """What only one technique of a run may own."""

    BACKWARD = "the backward pass"
    LOSSES = "how the task's losses are made"
    EVALUATION_WEIGHTS = "the evaluation weights"
    STEP = "the optimizer step"
    WEIGHING = "the weighting of losses"


class Technique(pl.Callback):
    """A Lightning callback that may also change batches, add losses, weigh them and change gradients.

    A subclass overrides what it needs; whoever overrides `transform_batch` declares `batch_slot`, whoever overrides
    `transform_gradients` declares `gradient_slot`, whoever overrides `after_step` declares `step_slot`, whoever overrides
    `make_losses`, `weigh` or `backward` claims the `Power`. All state goes through Lightning's
    `state_dict`/`load_state_dict`. What a technique needs and the task does not offer is a ValueError of its `setup` that names
    both; a technique that acts on faults alone declares `guards`, one that only looks declares `observes`.

    Args:
        seed: of the technique's own randomness, see `generator`; only techniques that draw have it as an option.
    """

    claims: ClassVar[frozenset[Power]] = frozenset()
    batch_slot: ClassVar[BatchSlot | None] = None
    gradient_slot: ClassVar[GradientSlot | None] = None
    step_slot: ClassVar[StepSlot | None] = None
    guards: ClassVar[bool] = False
    observes: ClassVar[bool] = False

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    @property
    def name(self) -> str:
        """The technique's name: its file's, which is its key in the configuration."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def logs(self) -> frozenset[str]:
        """Names of the metrics that it logs, for those who want to watch one."""
        return frozenset()

    @property
    def more_is_better(self) -> frozenset[str]:
        """Those of `logs` that are the better, the higher."""
        return frozenset()

    @property
    def corrections(self) -> dict[str, str]:
        """Those of its loss terms that correct another term and mean nothing alone, each with the term that it belongs to, whose
        weight they share."""
        return {}

    def paths(self) -> dict[str, Path]:
        """Files of other runs that it reads, by the option that names each, where they are now."""
        return {}

    def is_logged(self, trainer: pl.Trainer) -> bool:
        """Whether the loggers will be told of the step that is just done, or a validation follows on which somebody may look
        at what it logs; a `log` costs up to a millisecond."""
        return lightning.is_logged(trainer)

    def generator(self, clock: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Returns a generator seeded by (seed, name, clock), so that no technique shifts another's draws."""
        digest = hashlib.blake2b(f"{self.seed}/{self.name}/{clock}".encode(), digest_size=7).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))

    def transform_batch(self, task: AnyTask, batch: Batch) -> Batch:
        """Returns the batch to train on. Needs `batch_slot`."""
        return batch

    def make_losses(self, task: AnyTask, batch: Batch) -> dict[str, Tensor]:
        """Returns the task's terms on the batch, made in another way than by `task.losses`, such as after an inner loop.

        `task.losses_at` gives losses with other weights. Exclusive: needs a claim of `Power.LOSSES`.
        """
        found: dict[str, Tensor] = task.losses(batch)
        return found

    def extra_losses(self, task: AnyTask, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns new named, unweighted terms (`scale_losses` weighs them); a name that exists is an error, other techniques'
        terms are never edited."""
        return {}

    def scale_losses(self, task: AnyTask, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        """Returns factors of named terms, by which their weights are multiplied; 1 where a term is not named."""
        return {}

    def weigh(self, task: AnyTask, losses: Mapping[str, Tensor]) -> Tensor:
        """Turns the dictionary into one loss. Exclusive: needs a claim of `Power.WEIGHING`."""
        found: Tensor = task.weighted_sum(losses)
        return found

    def backward(self, task: AnyTask, terms: Mapping[str, Tensor]) -> None:
        """Adds the gradients of the terms, weighted and scaled as the step wants them, to `.grad` of all parameters.

        Exclusive: needs a claim of `Power.BACKWARD`.
        """

    def transform_gradients(self, task: AnyTask) -> None:
        """Changes `.grad` of the task's parameters in place, before the step. Needs `gradient_slot`."""

    def after_step(self, task: AnyTask) -> None:
        """Acts once after each optimizer step, before any checkpoint is written. Needs `step_slot`.

        `task.steps_trained` counts this step already. Runs without gradients. See `Task.after_step` for steps that are left out.
        """

    def on_phase_end(self, task: AnyTask) -> None:
        """Called at a boundary between two phases, not at the end of the run: after the last step of `task.phase`, whose weights
        and optimizer are still there."""

    def on_phase_start(self, task: AnyTask) -> None:
        """Called at a boundary between two phases, not at the beginning of the run: before the first batch of `task.phase`, whose
        modules and optimizer are there."""

    def carried_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns what this technique takes over, as its `load_state_dict` wants it, from its own `state` in the checkpoint whose
        weights a new run starts from; None: it begins anew. Within one run the state goes on by itself."""
        return None


class Composition:
    """A set of techniques in one canonical order, whatever the order they came in.

    Raises:
        ValueError: two techniques of one name, two claimants of one power, or a hook without its slot or claim.
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
        self._maker = self._owner(Power.LOSSES, "make_losses")
        self._weigher = self._owner(Power.WEIGHING, "weigh")
        self.backward_owner = self._owner(Power.BACKWARD, "backward")
        self.terms: dict[str, Tensor] = {}  # of the last batch, for reports

    def _owner(self, power: Power, hook: str) -> Technique | None:
        owners = [t for t in self.techniques if power in t.claims and _overrides(t, hook)]
        return owners[0] if owners else None

    def _check(self) -> None:
        owners: dict[str, str] = {}
        for technique in self.techniques:
            for right in (f"the name {technique.name!r}", *technique.claims):
                if right in owners:
                    raise ValueError(
                        f"techniques {owners[right]!r} and {technique.name!r} both claim {right}; "
                        f"take one of them out of technique=[...]"
                    )
                owners[right] = technique.name
            for hook, declared in (
                ("transform_batch", technique.batch_slot is not None),
                ("transform_gradients", technique.gradient_slot is not None),
                ("after_step", technique.step_slot is not None),
            ):
                if _overrides(technique, hook) != declared:
                    raise ValueError(
                        f"technique {technique.name!r}: overriding {hook} and declaring its slot or claim "
                        f"go together; only one of the two was done"
                    )
            for hook, power in (
                ("make_losses", Power.LOSSES),
                ("weigh", Power.WEIGHING),
                ("backward", Power.BACKWARD),
            ):
                chosen = "claims" in vars(technique)  # by its options: then a hook may rest
                overridden, claimed = _overrides(technique, hook), power in technique.claims
                if claimed > overridden or (overridden > claimed and not chosen):
                    raise ValueError(
                        f"technique {technique.name!r}: overriding {hook} and claiming {power} go together; only one was done"
                    )

    def transform_batch(self, task: AnyTask, batch: Batch) -> Batch:
        """Applies every technique's batch transform in slot order."""
        for technique in self._batch_order:
            batch = technique.transform_batch(task, batch)
        return batch

    def make_losses(self, task: AnyTask, batch: Batch) -> dict[str, Tensor]:
        """Returns the claimant's losses on the batch, or the task's own."""
        found: dict[str, Tensor] = self._maker.make_losses(task, batch) if self._maker else task.losses(batch)
        return found

    def extend_losses(self, task: AnyTask, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the task's terms and every technique's new ones; each technique sees only the task's terms."""
        terms = dict(losses)
        for technique in self.techniques:
            for name, value in technique.extra_losses(task, batch, dict(losses)).items():
                if name in terms:
                    raise ValueError(f"technique {technique.name!r} adds a loss {name!r}, which exists; rename it")
                terms[name] = value
        self.terms = {name: value.detach() for name, value in terms.items()}
        return terms

    def factors(self, task: AnyTask, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        """Returns the product of all techniques' factors of each term that has any.

        Raises: ValueError for a factor of a term that is not there.
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
        """Returns the loss to minimise: the claimant's, or the task's weighted sum."""
        found: Tensor = self._weigher.weigh(task, losses) if self._weigher else task.weighted_sum(losses)
        return found

    @property
    def guarded(self) -> bool:
        """Whether a technique acts on gradients after the trainer's clipping."""
        return bool(self._after_clip)

    def changes_clipped(self, besides: Technique) -> bool:
        """Whether techniques other than `besides` change gradients after the trainer's clipping, but for those that guard."""
        return any(t is not besides and not t.guards for t in self._after_clip)

    def transform_gradients(self, task: AnyTask, clip: Any) -> None:
        """Applies the gradient transforms in slot order, the trainer's own `clip()` at the start of CLIP."""
        for technique in self._before_clip:
            technique.transform_gradients(task)
        clip()
        for technique in self._after_clip:
            technique.transform_gradients(task)

    def after_step(self, task: AnyTask) -> None:
        """Calls every technique's `after_step` in slot order, and the task's own once weights are no longer changed."""
        waiting = True
        for technique in self._after_step:
            if waiting and technique.step_slot is not None and technique.step_slot > StepSlot.WEIGHTS:
                task.after_step()
                waiting = False
            technique.after_step(task)
        if waiting:
            task.after_step()


def _overrides(technique: Technique, hook: str) -> bool:
    return getattr(type(technique), hook) is not getattr(Technique, hook)
