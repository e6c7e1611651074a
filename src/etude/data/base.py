"""The base class of the data modules of scores and of audio: options, rules, labels, loaders and state."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from etude.data.labels import FILE, Labels, read_labels
from etude.data.scores.manifest import SPLITS, check_shares
from etude.data.scores.packing import Rule

Batch = dict[str, Tensor]
Number = TypeVar("Number", int, float)


class AnyCorpus(Protocol):
    """A corpus, which is a dataclass; `without_root` is the end of the error message for a corpus that has no `root`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    without_root: ClassVar[str]


SomeCorpus = TypeVar("SomeCorpus", bound=AnyCorpus)


class CorpusDataModule(pl.LightningDataModule):
    """A LightningDataModule of a corpus that is prepared once and cached; its loaders resume exactly.

    Subclasses define how the data is prepared and what the batches hold.

    Args:
        cache_dir, batch_size, batches_per_epoch, num_workers, prepare_workers, seed, split, targets, labels_file: see
            the subclass.

    Raises: ValueError for shares or a number of batches out of range.
    """

    file_column: ClassVar[str] = FILE  # of `_rows`, by which the user's CSV of labels goes

    def __init__(
        self,
        *,
        cache_dir: str,
        batch_size: int,
        batches_per_epoch: int | None,
        num_workers: int,
        prepare_workers: int | None,
        seed: int,
        split: Sequence[float],
        targets: Sequence[str],
        labels_file: str | None,
    ) -> None:
        super().__init__()
        check_shares(split, batches_per_epoch)
        self.cache_dir = Path(cache_dir)
        self.batch_size, self.batches_per_epoch, self.seed = batch_size, batches_per_epoch, seed
        self.num_workers, self.prepare_workers = num_workers, prepare_workers or os.cpu_count() or 1
        self.ratios = dict(zip(SPLITS, map(float, split), strict=False))
        self.targets, self.labels_file = tuple(targets), labels_file
        self._labels: Labels | None = None
        self._rules: dict[str, Rule] = {}

    def _check_lowest(self, **lowest: int) -> None:
        for name, low in (lowest | {"batch_size": 1, "num_workers": 0}).items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")

    # --- preparing ---

    def prepare(self) -> None:
        """Makes the data ready; safe to repeat, and to call in several processes at once."""
        raise TypeError(f"{type(self).__name__} must define prepare()")

    def prepare_data(self) -> None:
        """Prepares what is missing in the cache; Lightning calls it on one rank of each machine."""
        self.prepare()

    def setup(self, stage: str) -> None:
        """Opens the prepared data."""
        self.prepare()

    @property
    def quarantine(self) -> list[tuple[str, str, str]]:
        """(file, piece, reason) of all files and pieces that are not used."""
        raise TypeError(f"{type(self).__name__} must define quarantine")

    # --- labels ---

    def _rows(self, split: str) -> list[dict[str, Any]]:
        """Returns the columns of each piece of a split, in the order of the data."""
        raise TypeError(f"{type(self).__name__} must define _rows(split)")

    def labels(self, split: str, column: str) -> list[str | None]:
        """Returns the value of a column of the manifest or `labels_file` for each piece of a split, in the order of `pieces()`.

        Raises: ValueError for a missing column or a column of numbers, or a `labels_file` that does not fit the data.
        """
        return self._label_table().values(split, column)

    def classes(self, split: str) -> dict[str, np.ndarray]:
        """Returns the class of each piece of a split for each of `targets`, int64 [n]; `NO_LABEL` if it has none."""
        return self._label_table().numbers(split) if self.targets else {}

    def with_labels(self, split: str, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the columns of the pieces of a split with those of `targets` that they lack, such as those of `labels_file`."""
        missing = [name for name in self.targets if name not in columns]
        return columns | {name: np.array(self.labels(split, name), object) for name in missing}

    @property
    def label_parts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Arguments for a task that learns labels: {"labels": names of the classes of each of `targets`}."""
        return {"labels": self._label_table().classes} if self.targets else {}

    def _label_table(self) -> Labels:
        if self._labels is None:
            rows = {split: self._rows(split) for split in SPLITS}
            extra: dict[str, dict[str, str]] = {}
            if self.labels_file is not None:
                needed = {str(row[self.file_column]): None for split in SPLITS for row in rows[split]}
                known = {*needed, *(file for file, _, _ in self.quarantine)}
                taken = {name for split in SPLITS for row in rows[split][:1] for name in row}
                extra = read_labels(self.labels_file, known=known, needed=needed, taken=taken)
            self._labels = Labels(self.targets, rows, extra=extra, name=self.file_column)
        return self._labels

    # --- choosing ---

    def admit(self, name: str, rule: Rule) -> None:
        """Adds a rule, under a name, that chooses which pieces training draws, from the next `train_dataloader` on.

        rule: called with rows of `pieces()`, int64 [n], and the number of the batch that is being drawn, counted from the
            start of the run; returns the probability, float64 [n] in [0, 1], with which each piece is admitted in this pass.
            Probabilities of several rules are multiplied. A document that waits to be packed is removed when its piece is
            no longer admitted. A rule may depend only on its arguments and on state that a checkpoint restores. What it
            learns from batch n may have an effect only from batch n + `lookahead` on, since workers draw ahead.
        """
        self._rules[name] = rule

    @property
    def lookahead(self) -> int:
        """Largest number of batches that are drawn but not trained on yet; the same for no worker and for a few."""
        return max(16, 4 * self.num_workers)

    # --- loading ---

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _batches_for(self, amount: int, *, row: int) -> int:
        """Returns the batches of an epoch on each rank; `amount` and `row` are the tokens or frames of a pass and of a row."""
        return self.batches_per_epoch or max(1, round(amount / (row * self.batch_size * self._place()[1])))

    def val_dataloader(self) -> StatefulDataLoader:
        """All validation data once, without augmentation."""
        return self._evaluation("val")

    def test_dataloader(self) -> StatefulDataLoader:
        """All test data once, without augmentation."""
        return self._evaluation("test")

    def evaluation_loader(self, split: str) -> StatefulDataLoader:
        """All data of a split, train, val or test, once, without augmentation."""
        return self._evaluation(split)

    def _evaluation(self, split: str) -> StatefulDataLoader:
        raise TypeError(f"{type(self).__name__} must define _evaluation(split)")

    def _loader(self, rows: Dataset[Any], batches: Any) -> StatefulDataLoader:
        return ResumableLoader(rows, batch_sampler=batches, num_workers=self.num_workers, collate_fn=_as_it_is)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Identifies the data in a checkpoint, to detect changes; the loaders have their own state."""
        raise TypeError(f"{type(self).__name__} must define state_dict()")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Checks that a run resumes on the data of the checkpoint, since otherwise its batches would differ.

        Raises: ValueError that names both if they differ.
        """
        for name, value in self.state_dict().items():
            if state_dict[name] != value:
                raise ValueError(
                    f"the checkpoint was trained on {name} {state_dict[name]}, here it is {value}; resume with "
                    "the same files and options, or start a new run from its weights"
                )


class ResumableLoader(StatefulDataLoader):  # type: ignore[misc]  # torchdata has no types
    """A loader that goes on from the position of `load_state_dict` until a batch was read, however many iterators are made.

    Lightning makes two iterators where a run goes on from the end of an epoch. Reader processes of the first one have read ahead
    in the next epoch, and without this class those batches would be lost, so that training would go on with others.
    """

    _position: dict[str, Any] | None = None  # loaded, and not read from yet

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._position = state_dict

    def __iter__(self) -> Iterator[Batch]:
        if self._position is not None and self.num_workers:
            super().load_state_dict(self._position)
        return _Reading(self, super().__iter__())

    def begin(self) -> None:
        """Forgets the loaded position, since a batch is read from the current iterator."""
        self._position = None


class _Reading(Iterator[Batch]):
    """Tells the loader of the first batch that is read."""

    def __init__(self, loader: ResumableLoader, batches: Iterator[Batch]) -> None:
        self._loader, self._batches = loader, batches

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._loader.begin()
        return batch


def at_root(corpus: SomeCorpus, root: str | None) -> SomeCorpus:
    """Returns the corpus with `root` as the place of its files; unchanged for None.

    Raises: ValueError for a corpus without a root.
    """
    if root is None:
        return corpus
    if "root" not in {field.name for field in dataclasses.fields(corpus)}:
        raise ValueError(f"root={root}: the corpus {type(corpus).__name__} {corpus.without_root}")
    return dataclasses.replace(corpus, root=root)


def checked_range(name: str, value: Sequence[Number] | None, low: float, high: float) -> tuple[Number, Number] | None:
    """Returns `value` as (lowest, highest), which must be within [low, high]; None stays None.

    Raises: ValueError for any other value.
    """
    if value is None:
        return None
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(f"{name}={list(value)} must be [lowest, highest] within [{low}, {high}], or null")
    return value[0], value[1]


def _as_it_is(batch: Batch) -> Batch:
    return batch
