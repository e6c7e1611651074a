"""Held-out examples one by one, and a classifier as a function of their continuous inputs.

Shapes: n examples, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from etude.attacks.budget import Budget, within_snr
from etude.core.alone import alone
from etude.core.batch import Batch, num_examples, take
from etude.core.class_protocols import ClassifiesInputs
from etude.core.task import frozen

NO_LABEL = -1
CHUNK = 32  # examples that are attacked at once


def check_classifier(task: Any) -> None:
    """Raises ValueError for a task that does not classify continuous inputs, such as a language model."""
    if not isinstance(task, ClassifiesInputs):
        raise ValueError(
            f"robustness= attacks classifiers of continuous inputs (mels, embeddings), and ckpt holds a {type(task).__name__}; "
            "give a run of task=classifier or task=grader, or leave robustness= out"
        )
    try:
        task.inputs({})  # a network without continuous inputs says so before it looks at the batch
    except ValueError as error:
        raise ValueError(f"robustness= can't change the inputs of this {type(task).__name__}: {error}") from error
    except KeyError:
        pass


def held_out(task: Any, datamodule: Any, *, split: str, num: int | None, seed: int) -> list[Batch]:
    """Returns batches of up to `CHUNK` examples of a split that have a label for some head; `num` of them, drawn by the seed.

    Raises: ValueError for another split, a number below 1, or no example with a label.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split={split} is not held out; choose val or test")
    if num is not None and num < 1:
        raise ValueError(f"num_examples={num} must be at least 1, or null for all")
    loader = datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()
    parts = []
    for batch in loader:
        part = alone(task, {name: value.to(task.device) for name, value in batch.items() if isinstance(value, Tensor)})
        known = torch.stack([task.documents(part, f"label_{head}") != NO_LABEL for head in task.labels]).any(0)
        if known.any():
            parts.append(take(part, known.nonzero()[:, 0], of=task))
    sizes = [num_examples(part, of=task) for part in parts]
    if not sizes:
        raise ValueError(f"no example of the {split} split has a label that the classifier knows; choose another split")
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))[:num].sort().values
    found, start = [], 0
    for part, size in zip(parts, sizes, strict=True):
        mine = order[(order >= start) & (order < start + size)] - start
        found += [take(part, rows, of=task) for rows in torch.split(mine, CHUNK) if len(rows)]
        start += size
    return found


class Victim:
    """One head of a classifier on a batch of examples that stand alone, as a function of their inputs.

    values: inputs [n, ...]. true: classes [n]. counted: 1 where inputs are real, 0 in padding; None if all are. right: whether
    the unchanged inputs are classified right, bool [n]. Examples without a label for the head are left out.
    """

    def __init__(self, task: Any, batch: Batch, head: str) -> None:
        known = (task.documents(batch, f"label_{head}") != NO_LABEL).nonzero()[:, 0]
        self.task, self.head, self.batch = task, head, take(batch, known, of=task)
        self.true: Tensor = task.documents(self.batch, f"label_{head}")
        with torch.no_grad():
            ((self.name, own),) = task.inputs(self.batch).items()
        self.axis = task.example_axis or 0
        self.values = own.detach().flatten(0, self.axis)
        self.counted = (self.batch["documents"] >= 0)[..., None].to(self.values) if "documents" in self.batch else None
        with torch.no_grad():
            self.right = self.logits_of(self.everything)(self.values).argmax(1) == self.true

    @property
    def everything(self) -> Tensor:
        """The rows of all examples."""
        return torch.arange(len(self.true))

    def logits_of(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """Returns the function from inputs [k, ...] of these examples to the head's logits [k, c]."""
        part = take(self.batch, rows, of=self.task)

        def logits(values: Tensor) -> Tensor:
            given = values.reshape(*[1] * self.axis, *values.shape)
            found: Tensor = self.task.class_logits(self.task.with_inputs(part, {self.name: given}))[self.head]
            return found.float()

        return logits

    def budget(self, snr_db: float, norm: str) -> Budget:
        """Returns the budget of all examples, see `within_snr`."""
        return within_snr(self.values, snr_db, norm=norm, counted=self.counted)


def victims(task: Any, batches: Sequence[Batch], head: str) -> list[Victim]:
    """Returns one head of a classifier on the examples of each batch. Raises: ValueError if none has a label for the head."""
    found = [victim for victim in (Victim(task, batch, head) for batch in batches) if len(victim.true)]
    if not found:
        raise no_example(head)
    return found


def no_example(head: str) -> ValueError:
    """Returns the error for a head without any example."""
    return ValueError(f"no held-out example has a {head} that the classifier knows; choose other heads or another split")


def heads_of(task: Any, heads: Sequence[str] | None) -> list[str]:
    """Returns the heads that are attacked. Raises: ValueError for none, or one that the classifier lacks."""
    chosen = list(task.labels) if heads is None else list(heads)
    if not chosen:
        raise ValueError(f"robustness.heads is empty; leave it out for all, or name some of {', '.join(task.labels)}")
    if unknown := sorted(set(chosen) - set(task.labels)):
        raise ValueError(f"robustness.heads names {unknown[0]}; this classifier has {', '.join(task.labels)}")
    return chosen


@contextmanager
def attacked(task: Any) -> Iterator[None]:
    """Within this context the task is in evaluation mode and its weights get no gradients, which halves an attack's cost."""
    was_training = task.training
    task.train(False)
    try:
        with torch.inference_mode(False), torch.enable_grad(), frozen(task):
            yield
    finally:
        task.train(was_training)
