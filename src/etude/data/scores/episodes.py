"""Episodes of few-shot learning: N classes, K pieces of each to learn from and some to be asked about; they resume exactly."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from etude.data.labels import refuse_augmented
from etude.data.scores.batches import PackedRows
from etude.data.scores.documents import Augmentation, Documents
from etude.data.scores.module import MusicDataModule
from etude.data.scores.packing import (
    CONTROLS,
    EMPTY_PLAN,
    FINAL,
    NUMBER,
    PIECE,
    STOP,
    VARIATION,
    Rule,
    last_bar,
    slots,
)  # fmt: skip
from etude.tokens.tokenizer import Tokenizer
from etude.wording import counted

EPISODES = {"train": 21, "val": 22, "test": 23}  # keys that make the draws of the splits different
LEAST_CHANCE = 1e-12  # of a piece that no rule admits: it is drawn only where its class has too few others
Members = Mapping[str, Mapping[str, np.ndarray]]  # column -> class -> places of its pieces in the view


class EpisodeRow(NamedTuple):
    """One piece of an episode: its plan [1, 12], number of the episode in the batch, way, and whether it is asked about."""

    plan: np.ndarray
    episode: int
    way: int
    query: int


class EpisodeRows(PackedRows):
    """Batches of episodes: one piece in each row, and three more entries, int64 [B, T], -1 for padding.

    episode: number of the episode in the batch. way: class within the episode, 0 to N - 1. query: 1 if the piece is asked
    about, 0 if it belongs to the support, from which the model learns.
    """

    def __getitems__(self, rows: Sequence[EpisodeRow]) -> dict[str, Tensor]:  # type: ignore[override]
        batch = super().__getitems__([row.plan for row in rows])
        padding = batch["documents"] < 0
        for name, values in (
            ("episode", [row.episode for row in rows]),
            ("way", [row.way for row in rows]),
            ("query", [row.query for row in rows]),
        ):  # fmt: skip
            batch[name] = torch.tensor(values)[:, None].expand_as(padding).masked_fill(padding, -1)
        return batch


@dataclass
class EpisodePlanner:
    """Draws episodes; episode `number` is a function of the seed, the number and the rules.

    documents: the pieces of a split.
    members: the pieces of each class, by column of labels; an episode has classes of one column, each column as often.
    ways, shots, queries: classes of an episode, and pieces of each to learn from and to be asked about.
    max_len: tokens of a row; longer pieces end at a bar. key: of the draws.
    rules: see `MusicDataModule.admit`. A class offers the pieces that they admit; where these are too few, others fill it up.
    """

    documents: Documents
    members: Members
    ways: int
    shots: int
    queries: int
    max_len: int
    key: tuple[int, ...]
    rules: dict[str, Rule] = field(default_factory=dict)

    def rows(self, number: int, *, episode: int = 0, draw: int = 0) -> list[EpisodeRow]:
        """Returns the rows of an episode, the support first, in random order. draw: the number of the batch, for the rules."""
        rng = np.random.default_rng([*self.key, number])
        columns = sorted(self.members)
        classes = self.members[columns[int(rng.integers(len(columns)))]]
        names = sorted(classes)
        chosen = [names[i] for i in rng.permutation(len(names))[: self.ways].tolist()]
        parts: tuple[list[EpisodeRow], list[EpisodeRow]] = ([], [])
        for way, name in enumerate(chosen):
            pieces = self._drawn(classes[name], rng, draw)
            for place, plan in enumerate(self._plans(pieces, number)):
                query = int(place >= self.shots)
                parts[query].append(EpisodeRow(plan[None], episode, way, query))
        return [part[i] for part in parts for i in rng.permutation(len(part)).tolist()]

    def _drawn(self, pieces: np.ndarray, rng: np.random.Generator, draw: int) -> np.ndarray:
        """Returns distinct pieces, by the chances that the rules give them (Gumbel top-k)."""
        chance = np.ones(len(pieces))
        for name in sorted(self.rules):
            chance = chance * self.rules[name](np.asarray(self.documents.view.table["row"][pieces], np.int64), draw)
        order = np.argsort(-(np.log(chance.clip(LEAST_CHANCE)) + rng.gumbel(size=len(pieces))), kind="stable")
        drawn: np.ndarray = pieces[order[: self.shots + self.queries]]
        return drawn

    def _plans(self, pieces: np.ndarray, number: int) -> np.ndarray:
        plans = np.zeros((len(pieces), EMPTY_PLAN.shape[1]), np.int64)
        variations = self.documents.variations(np.full(len(pieces), number), pieces)
        plans[:, NUMBER], plans[:, PIECE], plans[:, FINAL], plans[:, VARIATION:] = number, pieces, 1, variations
        plans[:, STOP] = self.documents.lengths(pieces, variations)
        plans[:, CONTROLS] = self.documents.num_controls(variations)
        for at in np.flatnonzero(slots(plans) > self.max_len).tolist():
            room = self.max_len - int(plans[at, CONTROLS])
            if room < 1:
                raise ValueError(f"max_len={self.max_len} leaves no room for music after the controls; set data.max_len higher")
            plans[at, STOP] = last_bar(self.documents.bars(int(pieces[at]), variations[at]), room)
            plans[at, FINAL] = 0
        return plans


class EpisodeSampler(torch.utils.data.Sampler[list[EpisodeRow]]):
    """Yields batches of `batch_size` episodes, an epoch is a fixed number of batches; its state resumes within an epoch.

    rank, world: of every `world * batch_size` episodes, episode e goes to rank e mod world.
    endless: the next epoch goes on with other episodes; False repeats the same ones, for validation.
    """

    def __init__(
        self, planner: EpisodePlanner, *, batch_size: int, num_batches: int, rank: int = 0, world: int = 1, endless: bool = True
    ):
        self.planner, self.batch_size, self.num_batches, self.rank, self.world = planner, batch_size, num_batches, rank, world
        self.endless = endless
        self.drawn = 0  # batches of the current epoch
        self.number = 0  # batches since the start of the run
        self._resumed = False

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[EpisodeRow]]:
        if not self._resumed or self.drawn >= self.num_batches:
            self.drawn = 0
        self._resumed = False
        while self.drawn < self.num_batches:
            number = self.number if self.endless else self.drawn
            first = number * self.batch_size * self.world + self.rank
            rows = [
                row
                for episode in range(self.batch_size)
                for row in self.planner.rows(first + episode * self.world, episode=episode, draw=number)
            ]
            self.drawn, self.number = self.drawn + 1, self.number + 1
            yield rows

    def state_dict(self) -> dict[str, int]:
        """The position; it is the same on every rank."""
        return {"drawn": self.drawn, "total": self.number}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues from a `state_dict`, in the middle of its epoch."""
        self.drawn, self.number, self._resumed = int(state["drawn"]), int(state["total"]), True


class EpisodeModule(MusicDataModule):
    """Scores as episodes; a batch holds `batch_size` of them. Training, validation and test have classes of their own.

    Which split a class is in, the corpus must say, as `TuneFamilies` and `UnseenStyles` do: a class that occurs in several splits
    counts in the first only. Of pieces that are equal or nearly so (`group` of the manifest) one is drawn, and none that an
    earlier split has.

    Args:
        tokenizer: see `MusicDataModule`, as are `options`; of these `targets` names the columns of classes, and `max_len` the
            most tokens of a piece.
        ways, shots, queries: classes of an episode, and pieces of each class to learn from and to be asked about.
        val_episodes: of a validation, the same ones each time.
        also_train_on: more columns whose classes make episodes, in training alone (multi-task meta-learning); their classes may
            occur in all splits. None for no others.

    Raises: ValueError for a value out of range, no targets, or too few classes with enough pieces.
    """

    def __init__(
        self, *, tokenizer: Callable[..., Tokenizer], ways: int = 5, shots: int = 1, queries: int = 3, val_episodes: int = 40,
        also_train_on: Sequence[str] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer=tokenizer, **options)
        self.also_train_on = tuple(also_train_on or ())
        if double := sorted(set(self.also_train_on) & set(self.targets)):
            raise ValueError(f"data.also_train_on names {double[0]}, which data.targets has already; leave it out of one of them")
        refuse_augmented(
            self.also_train_on, "data.also_train_on", transpose=self.augmentation.transpose,
            tempo_scale=self.augmentation.tempo_scale,
        )  # fmt: skip
        self.ways, self.shots, self.queries, self.val_episodes = ways, shots, queries, val_episodes
        for name, value, low in (
            ("ways", ways, 1), ("shots", shots, 1), ("queries", queries, 1), ("val_episodes", val_episodes, 1),
        ):  # fmt: skip
            if value < low:
                raise ValueError(f"data.{name}={value} must be at least {low}")
        if not self.targets:
            raise ValueError("episodes are of classes, and data.targets names no column of them; set data.targets=[genre], say")
        self._members: dict[str, dict[str, dict[str, np.ndarray]]] = {}

    def prepare(self) -> None:
        """Prepares the data as `MusicDataModule` does, and checks that episodes can be drawn.

        Raises: ValueError as there, and if training or validation has too few classes.
        """
        ready = self._tokenizer is not None
        super().prepare()
        if not ready:
            for split in ("train", "val"):
                self.members(split, ways=self.ways, shots=self.shots, queries=self.queries, told=True)

    @property
    def parts(self) -> dict[str, Any]:
        """Arguments for building a task: those of all scores, and the number of ways."""
        return {**super().parts, "ways": self.ways}

    def members(self, split: str, *, ways: int, shots: int, queries: int, told: bool = False) -> Members:
        """Returns the classes of a split that have enough pieces, with their pieces, by column.

        told: print how many classes are left out. Raises: ValueError if a column has fewer than `ways` classes.
        """
        found: dict[str, dict[str, np.ndarray]] = {}
        for column, classes in self._all_members(split).items():
            found[column] = {name: pieces for name, pieces in classes.items() if len(pieces) >= shots + queries}
            usable = counted(len(found[column]), "class", "classes")
            few = len(classes) - len(found[column])
            if len(found[column]) < ways:
                raise ValueError(
                    f"the {split} split has {usable} of {column} with {shots + queries} different pieces "
                    f"({few} with fewer), and an episode takes {ways}; lower the ways, shots or queries (of training: data.ways, "
                    "data.shots, data.queries), or give data whose corpus splits by class, such as data=tune_families"
                )
            if few and told:
                line = (
                    f"{few} of {len(classes)} classes of {column} in the {split} split have fewer than {shots + queries} pieces"
                )
                print(f"{line} (data.shots + data.queries) and are left out", file=sys.stderr)
        return found

    def _all_members(self, split: str) -> dict[str, dict[str, np.ndarray]]:
        if split not in self._members:
            order = list(EPISODES)
            earlier = order[: order.index(split)] if split in order else []
            groups = {int(g) for each in earlier for g in self.manifest(each)["group"].to_pylist()}
            columns = (*self.targets, *(self.also_train_on if split == "train" else ()))
            self._members[split] = {column: self._of(split, column, earlier, groups) for column in columns}
        return self._members[split]

    def _of(self, split: str, column: str, earlier: Sequence[str], taken: set[int]) -> dict[str, np.ndarray]:
        """Returns the pieces of each class of a split: one of equal ones, and no class or equal piece of an earlier split."""
        labels, view = self.labels(split, column), self.view(split)
        group = self.manifest(split)["group"].to_pylist()
        known = {label for each in earlier for label in self.labels(each, column)}
        seen: set[tuple[str, int]] = set()
        pieces: dict[str, list[int]] = {}
        for place, row in enumerate(view.table["row"].tolist()):
            label = labels[row]
            if label is None or label in known or group[row] in taken or (label, group[row]) in seen:
                continue
            seen.add((label, group[row]))
            pieces.setdefault(label, []).append(place)
        return {label: np.array(places, np.int64) for label, places in pieces.items()}

    def _planner(
        self, split: str, augmentation: Augmentation, *, seed: int | None = None, ways: int | None = None,
        shots: int | None = None, queries: int | None = None,
    ) -> EpisodePlanner:  # fmt: skip
        ways, shots, queries = ways or self.ways, shots or self.shots, queries or self.queries
        seed = self.seed if seed is None else seed
        length = self.max_len if split == "train" else self.max_eval_len
        members = self.members(split, ways=ways, shots=shots, queries=queries)
        return EpisodePlanner(
            self._documents(split, augmentation), members, ways=ways, shots=shots, queries=queries, max_len=length,
            key=(seed % 2**32, EPISODES[split]),
        )  # fmt: skip

    def _rows_of(self, planner: EpisodePlanner) -> EpisodeRows:
        return EpisodeRows(planner.documents, max_len=planner.max_len, evaluation=True)

    @property
    def epoch_batches(self) -> int:
        """Batches of an epoch of training, on each rank: about one pass over the pieces."""
        return self._batches_for(self.num_training_pieces, row=self.ways * (self.shots + self.queries))

    def train_dataloader(self) -> StatefulDataLoader:
        """Episodes of training classes without end."""
        rank, world = self._place()
        planner = self._planner("train", self._training)
        planner.rules = self._rules
        sampler = EpisodeSampler(planner, batch_size=self.batch_size, num_batches=self.epoch_batches, rank=rank, world=world)
        return self._loader(self._rows_of(planner), sampler)

    def val_dataloader(self) -> StatefulDataLoader:
        """`val_episodes` episodes of validation classes, without augmentation."""
        return self._held_out("val")

    def test_dataloader(self) -> StatefulDataLoader:
        """As many episodes of test classes, without augmentation."""
        return self._held_out("test")

    def _held_out(self, split: str) -> StatefulDataLoader:
        rank, world = self._place()
        planner = self._planner(split, Augmentation())
        batches = -(-self.val_episodes // (self.batch_size * world))
        sampler = EpisodeSampler(planner, batch_size=self.batch_size, num_batches=batches, rank=rank, world=world, endless=False)
        return self._loader(self._rows_of(planner), sampler)

    def planner(self, split: str, *, seed: int, **shape: int) -> EpisodePlanner:
        """Returns what draws episodes of a split without augmentation; shape: ways, shots and queries, if others than the data's.

        Raises: ValueError if the split has too few classes with enough pieces.
        """
        return self._planner(split, Augmentation(), seed=seed, **shape)

    def batch(self, planner: EpisodePlanner, rows: Sequence[EpisodeRow]) -> dict[str, Tensor]:
        """Returns the batch of the rows of an episode."""
        return self._rows_of(planner).__getitems__(rows)
