"""How good a task is on held-out batches: one measure for validation, evaluation, sweeps and conditions such as an attack."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from etude.core.batch import Batch


class Measure(NamedTuple):
    """What a task measures: its name, which validation logs as `val/NAME`, its unit, and which way is better."""

    name: str
    unit: str
    higher_is_better: bool = False


@dataclass(frozen=True)
class Measured:
    """One measure of one batch.

    mean: scalar, over what was counted. count: scalar, how much that was; a mean over batches is weighted by it.
    values, counted: the single values, of any one shape, and whether each counts; None where the mean is not over such.
    """

    mean: Tensor
    count: Tensor
    values: Tensor | None = None
    counted: Tensor | None = None


class Measurable(pl.LightningModule):
    """A module that says what it measures on a batch; validation logs that, and `measured_batches` serves everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.validation_means = nn.ModuleDict()  # of each of `measures`

    def measures(self) -> tuple[Measure, ...]:
        """What validation measures, the main one first; none where there is no validation."""
        return ()

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns each of `measures` on a batch, by name; called without gradients and in evaluation mode."""
        raise TypeError(f"{type(self).__name__} must define measure(batch)")

    @property
    def logged_metrics(self) -> tuple[str, ...]:
        """Names of what validation logs, the main one first."""
        return tuple(f"val/{measure.name}" for measure in self.measures())

    def create_validation_means(self) -> None:
        """Makes a running mean for each measure; before the first is logged, when Lightning looks for all metrics."""
        for measure in self.measures():
            if measure.name not in self.validation_means:
                self.validation_means[measure.name] = MeanMetric()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not self.measures():
            return
        for name, found in self.measure(batch).items():
            mean: Any = self.validation_means[name]
            mean.update(found.mean, found.count)
            self.log(f"val/{name}", mean, prog_bar=True, batch_size=1)


Condition = Callable[[Any, Batch], Batch]


def measured_batches(
    task: Measurable, batches: Iterable[Batch], *, condition: Condition | None = None
) -> Iterator[tuple[Batch, Mapping[str, Measured]]]:
    """Yields each batch, on the task's device, with what `task.measure` says of it, the task in evaluation mode.

    Args:
        condition: called with (task, batch), gives the batch to measure in its place, such as one that was attacked. It may
            ask for gradients, of inputs or of weights; what it leaves in `.grad` is its own affair.
    """
    was_training = task.training
    task.train(False)
    try:
        for batch in batches:
            batch = {name: value.to(task.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            if condition is not None:
                with torch.inference_mode(False), torch.enable_grad():
                    batch = condition(task, batch)
            # a tensor of inference mode could not take part in a condition's gradients later
            with torch.inference_mode(condition is None), torch.no_grad():
                found = task.measure(batch)
            yield batch, found
    finally:
        task.train(was_training)


def measure_all(task: Measurable, batches: Iterable[Batch], *, condition: Condition | None = None) -> dict[str, float]:
    """Returns the mean of each measure over all batches, weighted by what each batch counted, in double precision.

    Raises: ValueError where there is nothing to count.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for _, found in measured_batches(task, batches, condition=condition):
        for name, one in found.items():
            sums[name] = sums.get(name, 0.0) + float(one.mean) * float(one.count)
            counts[name] = counts.get(name, 0.0) + float(one.count)
    if empty := [name for name, count in counts.items() if not count]:
        raise ValueError(f"there is nothing held out to measure {', '.join(empty)} on; give data.split another share")
    if not counts:
        raise ValueError("there is nothing held out to measure; give data.split another share")
    return {name: sums[name] / counts[name] for name in sums}
