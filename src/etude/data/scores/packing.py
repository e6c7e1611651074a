"""Which documents make up each row: an endless, shuffled, best-fit packing that needs lengths, not tokens.

A plan is an int64 array [documents, 11]: pass, piece, its body tokens from start to stop, whether they end the piece,
the first of them that is counted, number of controls, and the piece's variation. Training packs pass after pass without
a seam; evaluation goes through the pieces once, in order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from etude.data.randomness import key, permute, uniform
from etude.data.scores.documents import Documents

NUMBER, PIECE, START, STOP, FINAL, COUNTED, CONTROLS, VARIATION = range(8)  # columns of a plan; the last is four wide
NOTHING = np.empty((0, VARIATION + 4), np.int64)
Rule = Callable[[np.ndarray, int], np.ndarray]
BLOCK = 128  # pieces whose documents are worked out at once
BUFFER = 256  # documents that wait to be packed, at most: the more, the less padding, the less each pass is a pass
LEAST_BUFFER = 32
REST_AFTER = 64  # documents before which the rest of a cut one waits, so that a batch does not hold one piece alone
ADMISSION = 7  # sets the draws of admission apart from those of augmentation
MAX_WASTE = 0.01  # share of a row that may stay empty before a document is cut at a bar to fill it
GOOD_WASTE = 0.002  # share at which the search for a better cut ends
CANDIDATES = 16  # documents that are considered for cutting, the oldest
PARTNERS = 64  # whole documents that are considered to go with a cut one
MIN_PART = 0.05  # share of a row below which no part of a document is cut off


def slots(plan: np.ndarray) -> np.ndarray:
    """Tokens that each document takes in a row: controls, body, and one at the end of a piece.

    One fewer than its ids, since the last is only a target: BOS and the first tokens, or CONT and the first tokens.
    """
    taken: np.ndarray = plan[:, CONTROLS] + plan[:, STOP] - plan[:, START] + plan[:, FINAL]
    return taken


@dataclass
class Packer:
    """Plans rows of `max_len` tokens.

    documents: the pieces. shuffle: order by (seed, pass) and go on for ever; else in order, once.
    overlap: where a piece is longer than a row, windows after the first begin with so large a share of tokens that
        were counted before, as context; 0 for training.
    rules: who admits pieces to training and how, see `MusicDataModule.admit`; of several, the probabilities multiply. A
        piece that is not admitted is passed over in this pass, and one that waits leaves when it is admitted no more. draw: the
        batch that is drawn, for the rules.
    """

    documents: Documents
    max_len: int
    shuffle: bool = True
    overlap: float = 0.0
    number: int = 0
    position: int = 0
    waiting: np.ndarray = field(default_factory=NOTHING.copy)
    rules: dict[str, Rule] = field(default_factory=dict)
    draw: int = 0
    _checked: int = field(default=-1, init=False)  # the batch for which the waiting documents were looked through

    def state_dict(self) -> dict[str, object]:
        """Where the packing stands: pass, position in it, and the documents that wait."""
        return {"number": self.number, "position": self.position, "waiting": torch.tensor(self.waiting)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Goes on from a `state_dict`."""
        self.number, self.position = int(state["number"]), int(state["position"])  # type: ignore[call-overload]
        self.waiting = np.array(state["waiting"].tolist(), np.int64).reshape(-1, NOTHING.shape[1])  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Rows, each a plan whose slots add up to at most `max_len`; ends only without shuffling."""
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
        """Half a pass at most, so that one piece does not wait in several passes at once; short under rules, which change."""
        if self.rules:
            return LEAST_BUFFER
        return min(BUFFER, max(LEAST_BUFFER, len(self.documents.view) // 2))

    def _refill(self) -> bool:
        """Adds the documents of the next block of pieces; False at the end of the pieces."""
        size = len(self.documents.view)
        if self.position >= size:
            if not self.shuffle or size == 0:
                return False
            self.number, self.position = self.number + 1, 0
        pieces = self._next_pieces(size)
        passes = np.full(len(pieces), self.number)
        variations = self.documents.variations(passes, pieces)
        whole = np.zeros((len(pieces), NOTHING.shape[1]), np.int64)
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
        """The next block of the pass that holds a piece which the rules admit.

        Raises: ValueError where a whole pass holds none.
        """
        passed_over = 0
        while True:
            block = np.arange(self.position, min(self.position + (BLOCK if not self.rules else LEAST_BUFFER), size))
            self.position += len(block)
            if not self.shuffle:
                return block
            pieces = permute(block, size=size, seed=self.documents.seed, number=self.number)
            if self.rules:
                pieces = pieces[self._admitted(pieces, np.full(len(pieces), self.number))]
            if len(pieces):
                return pieces
            passed_over += len(block)
            if passed_over > 100 * size:
                raise ValueError(
                    f"{' and '.join(sorted(self.rules))} admit no training piece to batch {self.draw}; let one of them admit more"
                )
            if self.position >= size:
                self.number, self.position = self.number + 1, 0

    def _admitted(self, pieces: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """Which pieces the rules admit to the batch that is drawn, bool [n]; for one chance always the same in one pass."""
        rows = np.asarray(self.documents.view.table["row"][pieces], np.int64)
        chance = np.ones(len(pieces))
        for name in sorted(self.rules):
            chance = chance * self.rules[name](rows, self.draw)
        seed = key(self.documents.seed, ADMISSION)
        admitted: np.ndarray = uniform(int(seed), passes, pieces, 1)[:, 0] < chance
        return admitted

    def _windows(self, whole: np.ndarray) -> np.ndarray:
        """A piece longer than a row as windows that begin at bars, are counted once, and overlap by their context."""
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
        """Takes documents off the waiting ones: the oldest first, then what fills the row best."""
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
        """Removes what was chosen; of a document that is cut, the rest waits further back."""
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
        """Which document to cut, at which token, and which whole one goes before it, so that `room` is filled best.

        forced: the oldest document is longer than a row and must be cut. waste: what leaving all whole would leave
            empty; None is returned where cutting is no better.
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


def _cut(bars: np.ndarray, low: int, high: int, *, last: bool = False) -> int:
    """The first (or last) bar start in [low, high]; where there is none, `high`."""
    inside = bars[(bars >= low) & (bars <= high)]
    return int(inside[-1 if last else 0]) if len(inside) else high


def _best(sizes: np.ndarray, fitting: np.ndarray, room: int) -> list[int]:
    """The document, or the pair, of those `fitting` that fills `room` best; the oldest among equals; [] for none."""
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
