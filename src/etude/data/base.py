"""What the datamodules of scores and of audio share: options, rules that choose pieces, labels, loaders, state."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
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
    """A corpus, which is a dataclass; `without_root` tells who names a folder what to do where the corpus has no `root`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    without_root: ClassVar[str]


SomeCorpus = TypeVar("SomeCorpus", bound=AnyCorpus)


class CorpusDataModule(pl.LightningDataModule):
    """A LightningDataModule over a corpus that is prepared once, cached, and drawn from in an order that can be resumed.

    A subclass says how the data is prepared and looked at, and what its loaders hold.

    Args:
        cache_dir, batch_size, batches_per_epoch, num_workers, prepare_workers, seed, split, targets, labels_file: as the
            subclass documents them.

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
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Reads and caches what the cache lacks; Lightning calls it on one rank of each machine."""
        self.prepare()

    def setup(self, stage: str) -> None:
        """Opens the prepared data."""
        self.prepare()

    @property
    def quarantine(self) -> list[tuple[str, str, str]]:
        """(file, piece, reason) of everything that is left out."""
        raise NotImplementedError

    # --- labels ---

    def _rows(self, split: str) -> list[dict[str, Any]]:
        """What is known of each piece of a split, in the data's order."""
        raise NotImplementedError

    def labels(self, split: str, column: str) -> list[str | None]:
        """The value of a column for each piece of a split, in the order of its `pieces()`; columns of `labels_file` count, too.

        Raises: ValueError for a column that is not there or holds no names, or a `labels_file` that does not fit the data.
        """
        return self._label_table().values(split, column)

    def classes(self, split: str) -> dict[str, np.ndarray]:
        """The class of each piece of a split for each of `targets`, int64 [n]; `NO_LABEL` where it has none."""
        return self._label_table().numbers(split) if self.targets else {}

    @property
    def label_parts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """What a task that learns labels is built with: {"labels": names of the classes of each of `targets`}."""
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
        """Lets `name` choose which pieces training draws, from the next `train_dataloader` on.

        rule: called with rows of `pieces()`, int64 [n], and the number of the batch that is being drawn, counted from the
            start of the run; returns the probability, float64 [n] in [0, 1], with which each is admitted in this pass; a
            document that waits to be packed leaves when it is admitted no more. Chances of several rules multiply. A rule
            must depend on nothing else than its arguments and what a checkpoint restores; what it learns from batch n may
            count from draw n + `lookahead` on, as workers draw ahead.
        """
        self._rules[name] = rule

    @property
    def lookahead(self) -> int:
        """Batches that may have been drawn and not trained yet, at most; the same for few workers as for none."""
        return max(16, 4 * self.num_workers)

    # --- loading ---

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _batches_for(self, amount: int, *, row: int) -> int:
        """Batches of an epoch on each rank, where a pass holds `amount` tokens or frames, and a row of a batch `row`."""
        return self.batches_per_epoch or max(1, round(amount / (row * self.batch_size * self._place()[1])))

    def val_dataloader(self) -> StatefulDataLoader:
        """Everything of the validation split once, unchanged."""
        return self._evaluation("val")

    def test_dataloader(self) -> StatefulDataLoader:
        """Everything of the test split once, unchanged."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> StatefulDataLoader:
        raise NotImplementedError

    def _loader(self, rows: Dataset[Any], batches: Any) -> StatefulDataLoader:
        return StatefulDataLoader(rows, batch_sampler=batches, num_workers=self.num_workers, collate_fn=_as_it_is)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to notice that the data changed; the loaders keep their own state."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Refuses to resume on other data: the order of batches would not be the one that the checkpoint continues.

        Raises: ValueError naming both.
        """
        for name, value in self.state_dict().items():
            if state_dict[name] != value:
                raise ValueError(
                    f"the checkpoint was trained on {name} {state_dict[name]}, here it is {value}; resume with "
                    "the same files and options, or start a new run from its weights"
                )


def at_root(corpus: SomeCorpus, root: str | None) -> SomeCorpus:
    """The corpus with its files at `root`; as it is for None.

    Raises: ValueError for a corpus whose files can't be elsewhere.
    """
    if root is None:
        return corpus
    if "root" not in {field.name for field in dataclasses.fields(corpus)}:
        raise ValueError(f"root={root}: the corpus {type(corpus).__name__} {corpus.without_root}")
    return dataclasses.replace(corpus, root=root)


def checked_range(name: str, value: Sequence[Number] | None, low: float, high: float) -> tuple[Number, Number] | None:
    """`value` as (lowest, highest) within [low, high]; null means no such augmentation.

    Raises: ValueError for anything else.
    """
    if value is None:
        return None
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(f"{name}={list(value)} must be [lowest, highest] within [{low}, {high}], or null")
    return value[0], value[1]


def _as_it_is(batch: Batch) -> Batch:
    return batch
