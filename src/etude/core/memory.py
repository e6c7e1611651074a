"""A memory of training examples: a uniform random sample of each section of training, of bounded size."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from etude.core.any_task import AnyTask
from etude.core.batch import Batch
from etude.core.examples import batches_of, example_at, keys_of, num_tokens
from etude.core.phase_draws import data_of
from etude.core.protocols import KnowsSize
from etude.wording import counted

log = logging.getLogger(__name__)


class Memory:
    """Keeps at most `size` examples: a reservoir sample of every section that has ended, and of the one under way.

    A section is a phase of training, or what the technique says. With n sections, the present one included, each has room for
    size // n examples; when one begins, the shares of the others shrink. Every piece of a section is equally likely to be kept,
    whatever the order and the number of its passes: each piece has a pseudo-random number of its own, and those with the lowest
    numbers are kept (a reservoir by random sort). A piece is kept once, as it was first seen; of a long one that is a window.
    Where batches don't say which piece an example is of, each example counts as a piece.

    Source: Vitter 1985, of which this is the variant with random keys (Efraimidis and Spirakis 2006, equal weights).

    Args:
        size: examples, at least 1.
        seed: of the choice.
    """

    def __init__(self, *, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.ended: list[list[Kept]] = []
        self.current: list[Kept] = []
        self.seen = 0  # examples of the section under way, where they have no piece

    @property
    def share(self) -> int:
        """Examples that a section may keep."""
        return self.size // (len(self.ended) + 1)

    def add(self, batch: Batch, *, of: AnyTask) -> None:
        """Considers the examples of a training batch."""
        known = {kept.key for kept in self.current}
        for piece, place in keys_of(batch, of=of):
            key = self.seen if piece is None else piece
            self.seen += piece is None
            if key in known:
                continue
            order = _number(self.seed, len(self.ended), key)
            if len(self.current) >= self.share:
                last = max(self.current, key=lambda kept: kept.order)
                if order > last.order:
                    continue
                self.current.remove(last)
                known.discard(last.key)
            self.current.append(Kept(order, key, example_at(batch, place, of=of)))
            known.add(key)

    def end_section(self) -> None:
        """Ends the section under way; does nothing if it has no example."""
        if not self.current:
            return
        self.ended.append(self.current)
        self.current, self.seen = [], 0
        self.ended = [_lowest(section, self.share) for section in self.ended]

    @property
    def num_kept(self) -> int:
        """Examples of the sections that have ended."""
        return sum(map(len, self.ended))

    def draw(self, count: int, draws: torch.Generator, *, of: AnyTask) -> list[Batch]:
        """Returns `count` examples (all, if there are fewer) of the sections that have ended, as batches on the task's device."""
        every = [kept.example for section in self.ended for kept in section]
        return _drawn(every, count, draws, of=of)

    def draw_each(self, count: int, draws: torch.Generator, *, of: AnyTask) -> list[list[Batch]]:
        """Returns for each section that has ended `count` of its examples, as `draw` does."""
        return [_drawn([kept.example for kept in section], count, draws, of=of) for section in self.ended if section]

    def told(self, name: str) -> str:
        """Says in one line what is kept."""
        tokens = sum(num_tokens(kept.example) for section in self.ended for kept in section)
        what = counted(self.num_kept, "piece or window" if tokens else "example", "pieces or windows" if tokens else "examples")
        return f"{name}: the memory holds {what}" + (f", {tokens:,} tokens" if tokens else "") + " of earlier phases"

    def state_dict(self) -> dict[str, Any]:
        """Everything, as numbers and tensors."""
        ended = [[_saved(kept) for kept in section] for section in self.ended]
        return {"ended": ended, "current": [_saved(kept) for kept in self.current], "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict`."""
        self.ended = [[Kept(**kept) for kept in section] for section in state["ended"]]
        self.current, self.seen = [Kept(**kept) for kept in state["current"]], state["seen"]


class Kept:
    """An example in a memory: its random number, its piece, and itself as a batch of one."""

    def __init__(self, order: int, key: int, example: Batch) -> None:
        self.order, self.key, self.example = order, key, example


def _saved(kept: Kept) -> dict[str, Any]:
    return {"order": kept.order, "key": kept.key, "example": dict(kept.example)}


def _number(seed: int, section: int, key: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{section}/{key}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _lowest(section: Iterable[Kept], count: int) -> list[Kept]:
    return sorted(section, key=lambda kept: kept.order)[:count]


def _drawn(examples: list[Batch], count: int, draws: torch.Generator, *, of: AnyTask) -> list[Batch]:
    order = torch.randperm(len(examples), generator=draws)[:count].sort().values
    return batches_of([examples[i] for i in order.tolist()], of=of, device=of.device)


def check_memory(task: AnyTask, name: str, option: str, size: int) -> None:
    """Checks that a memory of `size` examples can be kept for this task; for the `setup` of a technique.

    name: of the technique. option: of its size.

    Raises:
        ValueError: the size is larger than the data, batches of the task can't be taken apart, or there are several devices.
    """
    who, trainer = type(task).__name__, task.trainer
    if task.example_axis is None:
        raise ValueError(
            f"technique {name} keeps single examples, and {who} does not say which axis of its batches holds them; set "
            f"example_axis in the class, or remove {name} from technique=[...]"
        )
    if trainer.world_size > 1:
        raise ValueError(
            f"technique {name} remembers batches of {who} on one device; set trainer.devices=1, or remove {name} from "
            "technique=[...]"
        )
    data = data_of(trainer)
    if isinstance(data, KnowsSize) and size > data.num_training_pieces:
        raise ValueError(
            f"technique {name} would remember {size} pieces, and {who} has {data.num_training_pieces} to train on; set "
            f"technique.{name}.{option} to fewer"
        )
