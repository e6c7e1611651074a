"""Plan which documents make up each row: a shuffled best-fit packing that needs the lengths of documents only.

A plan is an int64 array [documents, 12]: pass, piece, start and stop of its body tokens, whether they end the piece, the
first token that counts for the loss, number of controls, and the variation of the piece. Training packs one pass after the
other without end, and rows may join two passes; evaluation packs all pieces once, in order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from etude.data.randomness import key, permute, uniform
from etude.data.scores.documents import NUM_VARIED, Documents

NUMBER, PIECE, START, STOP, FINAL, COUNTED, CONTROLS, VARIATION = range(8)  # columns of a plan; then those of a variation
EMPTY_PLAN = np.empty((0, VARIATION + NUM_VARIED), np.int64)
Rule = Callable[[np.ndarray, int], np.ndarray]
BLOCK = 128  # pieces whose documents are computed at a time
BUFFER = 256  # largest number of waiting documents: more give less padding, but mix the passes more
MIN_BUFFER = 32
REST_AFTER = 64  # the rest of a cut document waits behind so many others, so that a batch is not full of one piece
ADMISSION = 7  # key that makes the random numbers of admission different from those of augmentation
MAX_WASTE = 0.01  # share of a row that may stay empty before a document is cut at a bar to fill it
GOOD_WASTE = 0.002  # share at which the search for a better cut stops
CANDIDATES = 16  # the oldest documents, which are considered for cutting
PARTNERS = 64  # whole documents that are considered to precede a cut one
MIN_PART = 0.05  # smallest part of a document that is cut off, as a share of a row


def slots(plan: np.ndarray) -> np.ndarray:
    """Returns the number of input tokens of each document in a row.

    That is one less than its number of ids (BOS or CONT, controls, body, and EOS at the end of a piece), since the last one
    is only a target.
    """
    taken: np.ndarray = plan[:, CONTROLS] + plan[:, STOP] - plan[:, START] + plan[:, FINAL]
    return taken


@dataclass
class Packer:
    """Plans rows of `max_len` tokens.

    documents: the pieces.
    max_len: input tokens of a row.
    shuffle: shuffle by (seed, pass) and continue without end; False packs all pieces once, in order.
    overlap: for pieces longer than a row, the share of each window after the first that repeats the previous window as
        context; 0 for training.
    number, position: the current pass and the position in it.
    waiting: documents that are not packed yet.
    rules: name -> rule that admits pieces to training, see `MusicDataModule.admit`; probabilities of several rules are
        multiplied. A piece that is not admitted is skipped in this pass, and a waiting document is removed when its piece is
        no longer admitted.
    draw: the number of the batch that is drawn, for the rules.
    """

    documents: Documents
    max_len: int
    shuffle: bool = True
    overlap: float = 0.0
    number: int = 0
    position: int = 0
    waiting: np.ndarray = field(default_factory=EMPTY_PLAN.copy)
    rules: dict[str, Rule] = field(default_factory=dict)
    draw: int = 0
    _checked: int = field(default=-1, init=False)  # the batch for which the waiting documents were filtered

    def state_dict(self) -> dict[str, object]:
        """The state of packing: the pass, the position in it, and the waiting documents."""
        return {"number": self.number, "position": self.position, "waiting": torch.tensor(self.waiting)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continues from a `state_dict`."""
        self.number, self.position = int(state["number"]), int(state["position"])  # type: ignore[call-overload]
        waiting = np.asarray(state["waiting"].tolist(), np.int64)  # type: ignore[attr-defined]
        waiting = waiting.reshape(len(waiting), -1) if len(waiting) else EMPTY_PLAN.copy()
        missing = EMPTY_PLAN.shape[1] - waiting.shape[1]  # 1 in checkpoints from before infilling: no holes
        self.waiting = np.pad(waiting, ((0, 0), (0, missing)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields rows, each a plan whose slots add up to at most `max_len`; without end if shuffled."""
        while True:
            if self.rules and self.draw != self._checked:
                self.waiting = self.waiting[self._admitted(self.waiting[:, PIECE], self.waiting[:, NUMBER])]
                self._checked = self.draw
            while len(self.waiting) < self._buffer and self._refill():
                pass
            if len(self.waiting) == 0:
                return
            yield self._row()

    @property
    def _buffer(self) -> int:
        """Number of waiting documents: at most half a pass, so that passes do not mix; small with rules, which may change."""
        if self.rules:
            return MIN_BUFFER
        return min(BUFFER, max(MIN_BUFFER, len(self.documents.view) // 2))

    def _refill(self) -> bool:
        """Adds the documents of the next block of pieces to those waiting; returns False if there are no more pieces."""
        size = len(self.documents.view)
        if self.position >= size:
            if not self.shuffle or size == 0:
                return False
            self.number, self.position = self.number + 1, 0
        pieces = self._next_pieces(size)
        if len(pieces) == 0:
            return True
        passes = np.full(len(pieces), self.number)
        variations = self.documents.variations(passes, pieces)
        whole = np.zeros((len(pieces), EMPTY_PLAN.shape[1]), np.int64)
        whole[:, NUMBER], whole[:, PIECE], whole[:, FINAL], whole[:, VARIATION:] = passes, pieces, 1, variations
        whole[:, STOP] = self.documents.lengths(pieces, variations)
        whole[:, CONTROLS] = self.documents.num_controls(variations)
        if (whole[:, CONTROLS] + 1).max() >= self.max_len:
            raise ValueError(f"max_len={self.max_len} leaves no room for music after the controls; set data.max_len higher")
        short = self.shuffle | (slots(whole) <= self.max_len)  # training cuts long pieces as it fills rows
        parts = [row[None] if fits else self._windows(row) for row, fits in zip(whole, short, strict=True)]
        self.waiting = np.concatenate([self.waiting, *parts])
        return True

    def _next_pieces(self, size: int) -> np.ndarray:
        """Returns the admitted pieces of the next block that has any.

        Raises: ValueError if the rules admit no piece in many passes.
        """
        skipped = 0
        while True:
            block = np.arange(self.position, min(self.position + (BLOCK if not self.rules else MIN_BUFFER), size))
            self.position += len(block)
            if not self.shuffle:  # rules say which pieces are evaluated
                return block[self._admitted(block, np.zeros_like(block))] if self.rules else block
            pieces = permute(block, size=size, seed=self.documents.seed, number=self.number)
            if self.rules:
                pieces = pieces[self._admitted(pieces, np.full(len(pieces), self.number))]
            if len(pieces):
                return pieces
            skipped += len(block)
            if skipped > 100 * size:
                raise ValueError(
                    f"{' and '.join(sorted(self.rules))} admit no training piece to batch {self.draw}; let one of them admit more"
                )
            if self.position >= size:
                self.number, self.position = self.number + 1, 0

    def _admitted(self, pieces: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """Returns which pieces the rules admit to the current batch, bool [n]; in one pass it depends on the probability only."""
        rows = np.asarray(self.documents.view.table["row"][pieces], np.int64)
        chance = np.ones(len(pieces))
        for name in sorted(self.rules):
            chance = chance * self.rules[name](rows, self.draw)
        seed = key(self.documents.seed, ADMISSION)
        admitted: np.ndarray = uniform(int(seed), passes, pieces, 1)[:, 0] < chance
        return admitted

    def _windows(self, whole: np.ndarray) -> np.ndarray:
        """Cuts a piece longer than a row into windows at bars, which overlap by their context; each token counts once."""
        room = self.max_len - int(whole[CONTROLS]) - 1  # one for EOS
        bars = self._bars(whole)
        rows: list[np.ndarray] = []
        counted = 0
        while counted < whole[STOP]:
            start = _cut(bars, counted - int(room * self.overlap), counted) if counted and self.overlap else counted
            stop = min(int(whole[STOP]), start + room)
            if stop < whole[STOP]:
                stop = _cut(bars, counted + 1, stop, last=True)
            rows.append(whole.copy())
            rows[-1][[START, STOP, FINAL, COUNTED]] = start, stop, int(stop == whole[STOP]), counted
            counted = stop
        return np.stack(rows)

    def _bars(self, document: np.ndarray) -> np.ndarray:
        return self.documents.bars(int(document[PIECE]), document[VARIATION:])

    def _row(self) -> np.ndarray:
        """Chooses waiting documents for a row: first the oldest, then those that fill the row best."""
        sizes = slots(self.waiting)
        free = np.ones(len(sizes), bool)
        chosen: list[int] = []
        room, forced = self.max_len, bool(sizes[0] > self.max_len)
        if not forced:
            chosen, room = [0], room - int(sizes[0])
            free[0] = False
        longest = int(sizes[sizes <= self.max_len].max(initial=1))
        part = None
        while part is None:
            fitting = np.flatnonzero(free & (sizes <= room))
            picks = fitting[:1].tolist() if room >= 3 * longest else _best(sizes, fitting, room)
            waste = room - int(sizes[picks].sum())
            if self.shuffle and (forced or (waste > MAX_WASTE * self.max_len and room < 3 * longest)):
                part = self._cut_to_fill(sizes, free, room, forced, waste)
                if part is not None:
                    picks = part[2]
            if not picks:
                break
            chosen += picks
            free[picks] = False
            room -= int(sizes[picks].sum())
        return self._take(chosen, free, part)

    def _take(self, chosen: list[int], free: np.ndarray, part: tuple[int, int, list[int]] | None) -> np.ndarray:
        """Removes the chosen documents from those waiting; the rest of a cut document is put back further behind."""
        plan = self.waiting[chosen]
        if part is None:
            self.waiting = self.waiting[free]
            return plan
        which, at, _ = part
        first, rest = self.waiting[which].copy(), self.waiting[which].copy()
        first[STOP], first[FINAL] = at, 0
        rest[START] = rest[COUNTED] = at
        free[which] = False
        left = self.waiting[free]
        self.waiting = np.concatenate([left[:REST_AFTER], rest[None], left[REST_AFTER:]])
        return np.concatenate([plan, first[None]])

    def _cut_to_fill(
        self, sizes: np.ndarray, free: np.ndarray, room: int, forced: bool, waste: int
    ) -> tuple[int, int, list[int]] | None:
        """Returns the document to cut, the token at which to cut it, and a whole document before it, that fill `room` best.

        forced: the oldest document is longer than a row and must be cut.
        waste: tokens that stay empty without cutting; None is returned if cutting is not better.
        """
        whole = np.flatnonzero(free & (sizes <= room))[:PARTNERS]
        rooms = room - np.concatenate([[0], sizes[whole]])
        least = max(1, int(MIN_PART * self.max_len))
        best, answer = (self.max_len if forced else waste), None
        for index in [0] if forced else np.flatnonzero(free)[:CANDIDATES].tolist():
            if best <= GOOD_WASTE * self.max_len:
                break
            document = self.waiting[index]
            bars = self._bars(document)
            bars = bars[(bars > document[START]) & (bars < document[STOP])]
            controls = int(document[CONTROLS])
            fills = np.concatenate([[0], bars - document[START] + controls])
            at = np.searchsorted(fills, rooms, side="right") - 1
            left = np.where(fills[at] >= least, rooms - fills[at], self.max_len)
            left[1:][whole == index] = self.max_len
            choice = int(np.argmin(left))
            if left[choice] < best:
                best = int(left[choice])
                answer = (index, int(bars[at[choice] - 1]), [] if choice == 0 else [int(whole[choice - 1])])
        if forced and answer is None:  # its bars are longer than a row
            document = self.waiting[0]
            answer = (0, int(document[START] + room - document[CONTROLS]), [])
        return answer


def last_bar(bars: np.ndarray, room: int) -> int:
    """Returns the last start of a bar, above 0, that leaves at most `room` tokens before it; `room` if there is none."""
    return _cut(bars, 1, room, last=True)


def _cut(bars: np.ndarray, low: int, high: int, *, last: bool = False) -> int:
    """Returns the first (or last) bar start in [low, high]; `high` if there is none."""
    inside = bars[(bars >= low) & (bars <= high)]
    return int(inside[-1 if last else 0]) if len(inside) else high


def _best(sizes: np.ndarray, fitting: np.ndarray, room: int) -> list[int]:
    """Returns the document or pair of `fitting` documents that fills `room` best, the oldest of equal ones; [] for none."""
    if len(fitting) == 0:
        return []
    order = fitting[np.argsort(sizes[fitting], kind="stable")]
    ranked = sizes[order]
    partner = np.searchsorted(ranked, room - ranked, side="right") - 1
    valid = partner > np.arange(len(ranked))
    single = int(ranked[-1])
    if not valid.any():
        return [int(order[np.searchsorted(ranked, single)])]
    sums = np.where(valid, ranked + ranked[np.maximum(partner, 0)], -1)
    first = int(np.argmax(sums))
    if single >= sums[first]:
        return [int(order[np.searchsorted(ranked, single)])]
    return [int(order[first]), int(order[partner[first]])]
