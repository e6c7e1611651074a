"""Measures a task on held-out batches; the same code serves validation, evaluation, sweeps and robustness tests."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from etude.core.batch import Batch


class Measure(NamedTuple):
    """Describes a metric of a task: its name (logged as `val/NAME`), its unit, and whether higher values are better."""

    name: str
    unit: str
    higher_is_better: bool = False


@dataclass(frozen=True)
class Measured:
    """The value of one metric on one batch.

    mean: scalar. count: scalar, the number of values in the mean (such as tokens); a mean over batches is weighted by it.
    values: the single values, of any shape; counted: of the same shape, whether each is part of the mean. None if the metric is
        not a mean of single values.
    """

    mean: Tensor
    count: Tensor
    values: Tensor | None = None
    counted: Tensor | None = None


class Measurable(pl.LightningModule):
    """A LightningModule that defines its metrics in `measures` and `measure`, and logs them in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.validation_means = nn.ModuleDict()  # by the name of the metric
        self.latest_terms: dict[str, Tensor | float] = {}  # of this epoch, by the name under which they are logged

    def measures(self) -> tuple[Measure, ...]:
        """The metrics of this task, the main one first; empty if it has no validation."""
        return ()

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns the value of each metric on a batch, by name; called without gradients and in evaluation mode."""
        raise TypeError(f"{type(self).__name__} must define measure(batch)")

    @property
    def logged_metrics(self) -> tuple[str, ...]:
        """The names under which validation logs the metrics, the main one first."""
        return tuple(f"val/{measure.name}" for measure in self.measures())

    def create_validation_means(self) -> None:
        """Creates the running mean of each metric; before the first is logged, since Lightning then collects all of them."""
        for measure in self.measures():
            if measure.name not in self.validation_means:
                self.validation_means[measure.name] = MeanMetric()

    def log_terms(self, loss: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Logs the loss and its terms; one that a batch lacks keeps its latest value of the epoch, also after resuming."""
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.latest_terms |= {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(self.latest_terms)

    def logged_terms(self) -> dict[str, float]:
        """The latest value of each term in this epoch, for the checkpoint."""
        return {name: float(value) for name, value in self.latest_terms.items()}

    def on_train_epoch_start(self) -> None:  # and not at the end of one: a run that goes on from there would not forget them
        self.latest_terms = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not self.measures():
            return
        for name, found in self.measure(batch).items():
            mean: Any = self.validation_means[name]
            mean.update(found.mean, found.count)
            self.log(f"val/{name}", mean, prog_bar=True, batch_size=1)


@runtime_checkable
class MeasuresSets(Protocol):
    """A task some of whose measures of a set are not means over its batches, such as a distance between distributions."""

    def measure_set(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns each measure over all batches, which are on the task's device, by name; without those that mean nothing here.

        Called without gradients and in evaluation mode.
        """
        ...


Condition = Callable[[Any, Batch], Batch]


class Measures(Protocol):
    """What a measurement needs of a task."""

    training: bool

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Enters training mode, or evaluation mode."""
        ...

    def measure(self, batch: Batch) -> Mapping[str, Measured]:
        """Each of its measures on a batch, by name."""
        ...


def measured_batches(
    task: Measures, batches: Iterable[Batch], *, condition: Condition | None = None
) -> Iterator[tuple[Batch, Mapping[str, Measured]]]:
    """Yields each batch, on the task's device, with the result of `task.measure`, computed in evaluation mode.

    Args:
        condition: called with (task, batch), returns the batch to measure instead, such as one with an adversarial perturbation.
            It may compute gradients of inputs or weights; values that it adds to `.grad` are not removed.
    """
    was_training = task.training
    task.train(False)
    try:
        for batch in batches:
            batch = _on_device(batch, task.device)
            if condition is not None:
                with torch.inference_mode(False), torch.enable_grad():
                    batch = condition(task, batch)
            # not in inference mode with a condition: autograd can't use its tensors later
            with torch.inference_mode(condition is None), torch.no_grad():
                found = task.measure(batch)
            yield batch, found
    finally:
        task.train(was_training)


def measured_set(task: Measures, batches: Iterable[Batch]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns each measure over all batches by name, and the number of values it is a mean of, 0 where it is none.

    A mean is weighted by `Measured.count`, in double precision, and not a number where nothing was counted.
    """
    if isinstance(task, MeasuresSets):
        was_training = task.training
        task.train(False)
        try:
            with torch.inference_mode(), torch.no_grad():
                return task.measure_set(_on_device(batch, task.device) for batch in batches), {}
        finally:
            task.train(was_training)
    return _means(measured_batches(task, batches))


def _means(measured: Iterable[tuple[Any, Mapping[str, Measured]]]) -> tuple[dict[str, float], dict[str, float]]:
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for _, found in measured:
        for name, one in found.items():
            sums[name] = sums.get(name, 0.0) + float(one.mean) * float(one.count)
            counts[name] = counts.get(name, 0.0) + float(one.count)
    return {name: sums[name] / counts[name] if counts[name] else float("nan") for name in sums}, counts


def _on_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def measure_all(task: Measures, batches: Iterable[Batch], *, condition: Condition | None = None) -> dict[str, float]:
    """Returns the mean of each metric over all batches, weighted by `Measured.count`, in double precision.

    Raises: ValueError if there is no data to measure on.
    """
    means, counts = _means(measured_batches(task, batches, condition=condition))
    if empty := [name for name, count in counts.items() if not count]:
        raise ValueError(f"there are no held-out data to measure {', '.join(empty)} on; give data.split a larger share for them")
    if not counts:
        raise ValueError("there are no held-out data to measure on; give data.split a larger share for them")
    return means
