"""How a language model's network grows between the phases of a run, and how its parts are chosen; see `symbolic.growing`."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from torch import nn

from etude.core.measuring import measured_batches
from etude.core.phase_draws import data_of, rows_of
from etude.core.phase_protocols import HoldsOut
from etude.core.task import Task
from etude.models.symbolic.grid_transformer import GridTransformer
from etude.models.symbolic.growing import Grows
from etude.models.symbolic.progressive import ProgressiveTransformer
from etude.models.symbolic.transformer import Transformer

log = logging.getLogger(__name__)

MEASURED = 32  # pieces of a phase, or fewer where it has fewer, from whose loss is decided whether the network grows


def check_growing(task: Task, model: nn.Module) -> None:
    """Checks that a network that grows can do so in this run. Raises: ValueError if not."""
    if not isinstance(model, Grows):
        return
    who, run = type(model).__name__, task.trainer
    if len(task.phases.sequence) < 2 and model.parts.newest == 0:
        raise ValueError(
            f"{who} grows between the phases of a run, and this run has a single phase; choose stage=genres, or model=tiny"
        )
    for technique in task.composition.techniques:
        if technique.acts_on_layers:
            raise ValueError(
                f"technique {technique.name} acts on the layers with which a run begins, and {who} trains those of its latest "
                f"phase alone; remove {technique.name} from technique=[...], or choose model=tiny"
            )
    if run.world_size > 1:
        raise ValueError(f"{who} grows on one device; set trainer.devices=1")
    if model.threshold is not None and not isinstance(data_of(run), HoldsOut):
        raise ValueError(
            f"{who} measures pieces of a phase before it grows, which the data ({type(data_of(run)).__name__}) do not offer; "
            "choose model=progressive"
        )


def for_labels(model: nn.Module, labels: Mapping[str, Any] | None) -> AbstractContextManager[None]:
    """Returns a context in which the network computes with the part of the genre among `labels`; the newest without one."""
    genre = (labels or {}).get("genre")
    if not isinstance(model, Grows) or genre is None:
        return nullcontext()
    if model.parts.newest and not model.parts.knows(str(genre)):
        log.warning(f"genre={genre} names no phase of this model's training, so its newest weights are used")
    return model.parts.reading(model.parts.of_genre(str(genre)))


class GrowingTask(Task):
    """A task whose network, `model`, may be one that grows between the phases of a run."""

    model: nn.Module

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        """Those that are trained, first to last: in a progressive network those of the newest column."""
        network = self.model
        if isinstance(network, ProgressiveTransformer) and len(network.columns):
            network = network.columns[-1]
        return tuple(network.blocks) if isinstance(network, Transformer | GridTransformer) else ()

    @property
    def can_add_modules(self) -> bool:
        """No: a phase's options can't, since a network that grows decides it by itself."""
        return False

    def modules_of_phase(self) -> Mapping[str, Any]:
        """Returns what `add_modules` gets when a phase begins; {} for a network that does not grow."""
        model = self.model
        if not isinstance(model, Grows):
            return {}
        phase, after = self.phase, self.phases.sequence[self.phases.index - 1]
        grown, why = True, ""
        if model.threshold is not None:
            loss = _loss_on(self)
            grown, why = loss > model.threshold, f", its loss is {loss:.3f} nats per token, the threshold {model.threshold:g}"
        told = "gets weights of its own" if grown else "goes on with the newest"
        log.warning(f"{type(model).__name__}: {phase.name} {told}{why}")
        return {"phase": phase.name, "after": after.name, "grown": grown}

    def add_modules(self, **options: Any) -> None:
        """Lets the network grow if `grown`, and freezes all but its newest part. phase: that begins; after: the one before.

        Raises: ValueError if the network can't grow, since a checkpoint of another one is loaded.
        """
        model, phase = self.model, options["phase"]
        if not isinstance(model, Grows):
            raise ValueError(
                f"the network of this checkpoint grew when {phase} began, which {type(model).__name__} can't; set the model= of "
                "its run, progressive or expandable"
            )
        if options["grown"]:
            model.grow()
        model.parts.begin(phase, after=options["after"], grown=options["grown"])
        self.phases.hold(self, [f"model.{name}" for name in model.frozen_names()])

    def recalled(self, phase: int) -> AbstractContextManager[None]:
        """Returns a context in which the network computes with the part of a phase of this run, counted from 0."""
        if not isinstance(self.model, Grows):
            return nullcontext()
        return self.model.parts.reading(self.model.parts.of_phase(self.phases.names[phase]))

    def by_genre(self, genres: Iterable[str]) -> list[tuple[AbstractContextManager[None], set[str]]]:
        """Returns the genres grouped by the part of the network that reads them, and a context in which it does."""
        model = self.model
        if not isinstance(model, Grows):
            return [(nullcontext(), set(genres))]
        found: dict[int, set[str]] = {}
        for genre in genres:
            found.setdefault(model.parts.of_genre(genre), set()).add(genre)
        return [(model.parts.reading(number), found[number]) for number in sorted(found)]


def _loss_on(task: Task) -> float:
    """Returns the mean loss in nats per token over some training pieces of the present phase, evenly spread, without dropout."""
    data: Any = data_of(task.trainer)
    columns = data.held_out("train")
    rows = rows_of(task.phase, columns)
    if "tokens" in columns:
        rows &= columns["tokens"] > 0
    found = np.flatnonzero(rows)
    chosen = np.zeros(len(rows), bool)
    chosen[found[np.linspace(0, len(found) - 1, min(MEASURED, len(found))).round().astype(int)]] = True
    total = count = 0.0
    for _, measures in measured_batches(task, data.loader_of("train", chosen)):
        one = next(iter(measures.values()))
        total, count = total + float(one.mean) * float(one.count), count + float(one.count)
    return total / count
