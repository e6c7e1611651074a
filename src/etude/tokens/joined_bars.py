"""Whole bars of documents, rearranged or joined with bars of others, as sequences that the scheme could have written.

In REMI a note names its program, and music its tempo, only where they change. So a bar that follows another one than before gets
the programs that its notes have, and a document's own bar its tempo: rearranged music keeps its instruments and tempos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from etude.music.theory import Key, key_correlations
from etude.tokens.infilling import Bars
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_timeline import last
from etude.tokens.miditok_vocabulary import DURATION, PART, PITCH, PITCH_DRUM, POSITION, PROGRAM, TEMPO, TokenTable
from etude.tokens.row_documents import RowDocument
from etude.tokens.satb import SatbGrid
from etude.tokens.tokenizer import MODES, SPECIALS, Tokenizer

NEAREST_OCTAVE = (0, -12, 12)


def can_join(tokenizer: Tokenizer) -> bool:
    """Returns whether bars of this tokenizer can be joined: on the grid, or of REMI without a plan of the bars in front."""
    if isinstance(tokenizer, MidiTokTokenizer):
        return tokenizer.scheme == "REMI" and not tokenizer.can_plan
    return isinstance(tokenizer, SatbGrid)


@dataclass(frozen=True)
class BarredDocument:
    """A document of whole bars.

    head: BOS or CONT and its controls. body: base ids. tail: EOS, or nothing. starts: where bars begin in the body, and its end.
    first: the first bar that may move. The bar before it holds the opening tempo, or notes of which a window that begins inside
        its piece does not tell the program.
    """

    head: np.ndarray
    body: np.ndarray
    tail: np.ndarray
    starts: np.ndarray
    first: int
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def last(self) -> int:
        """The last bar, which does not move: it is the ending of the piece, or not complete."""
        return len(self) - 1

    @cached_property
    def bars(self) -> Bars:
        """Its bars and the programs of their notes; for REMI."""
        return Bars(self.body, _table(self.tokenizer))

    @cached_property
    def key(self) -> Key:
        """The key whose profile correlates best with the durations of its pitch classes, as `estimate_key`."""
        best = int(np.argmax(key_correlations(self._pitch_classes()).round(9)))
        return Key(best % 12, MODES[best // 12])

    def _pitch_classes(self) -> np.ndarray:
        if isinstance(self.tokenizer, SatbGrid):
            pitches = self.tokenizer.decode_frames(self.body).flatten()
            return np.bincount(pitches[pitches >= 0] % 12, minlength=12).astype(float)
        table, kind = _table(self.tokenizer), self.bars.kind
        notes = np.flatnonzero(kind == PITCH)
        lengths = np.append(table.units[self.body], [0, 0])[notes + 2] * (np.append(kind, [0, 0])[notes + 2] == DURATION)
        return np.bincount(self.bars.number[notes] % 12, lengths, minlength=12)


def barred(document: RowDocument, tokenizer: Tokenizer) -> BarredDocument | None:
    """Returns a document with its bars; None if it has a hole, does not begin with a bar, or no bar of it can move.

    Raises:
        ValueError: bars of this tokenizer can't be joined.
    """
    if not can_join(tokenizer):
        raise ValueError(f"bars of {type(tokenizer).__name__} of these options can't be joined; set tokenizer=remi")
    if not document.plain:
        return None
    place = np.flatnonzero(document.ids >= tokenizer.first_body)
    if not len(place):
        return None
    head, body, tail = np.split(document.ids, [place[0], place[-1] + 1])
    body = tokenizer.expand(body)
    grid = isinstance(tokenizer, SatbGrid)
    starts = np.append(tokenizer.bar_starts(body), len(body)) if grid else Bars(body, _table(tokenizer)).starts
    if len(starts) < 2 or starts[0] != 0:
        return None
    first = 1
    if isinstance(tokenizer, MidiTokTokenizer):
        named = np.flatnonzero(tokenizer.table.kind[body] == PROGRAM)
        first = max(1, int(np.searchsorted(starts[:-1], named[0], side="right"))) if len(named) else len(starts)
    found = BarredDocument(head, body, tail, starts.astype(np.int64), first, tokenizer)
    return found if found.last > found.first else None


def joined(document: BarredDocument, passages: Sequence[tuple[BarredDocument, int, int]]) -> np.ndarray:
    """Returns the sequence of a document whose bars are now those of the passages, ids of the model, int64.

    Tempo changes in bars of other documents are left out, so that the tempo stays the document's own; its own bars keep theirs.

    Args:
        passages: (document, first bar, last bar + 1) each; the first is of `document`, from bar 0 to its bar `first` or later.
    """
    tokenizer = document.tokenizer
    if isinstance(tokenizer, SatbGrid):
        parts = [source.body[source.starts[begin] : source.starts[end]] for source, begin, end in passages]
    else:
        assert isinstance(tokenizer, MidiTokTokenizer)
        opening = int(document.starts[passages[0][2]])
        writer = _Writer(tokenizer.table, tokenizer.program_changes)
        writer.written, writer.tempo = document.bars.owner[opening - 1], _tempos(document.bars)[opening]
        for source, begin, end in passages[1:]:
            tempos = _tempos(source.bars) if source is document else None
            for bar in range(begin, end):
                writer.copy(source.bars, bar, tempos)
        parts = [document.body[:opening], np.array(writer.out, np.int64)]
    body = np.concatenate(parts)
    return np.concatenate([document.head, tokenizer.compress(body.astype(np.int32)), document.tail]).astype(np.int64)


def _tempos(bars: Bars) -> list[int]:
    """Returns the token of the tempo before each token, and after the last; -1 where none was named."""
    return [-1, *last(bars.ids, bars.kind == TEMPO, -1).tolist()]


class _Writer:
    """Writes bars so that each note has its program, which is named only where it changes if `program_changes`."""

    def __init__(self, table: TokenTable, program_changes: bool) -> None:
        self._program_changes = program_changes
        self._programs = {int(table.number[i]): int(i) for i in table.of_kind[PROGRAM]}
        self._parts = {int(table.number[i]): int(i) for i in table.of_kind[PART]}
        (self._downbeat,) = (int(i) for i in table.of_kind[POSITION] if table.number[i] == 0)
        self.written: tuple[int, int] | None = None
        self.tempo = -1  # the token that was written last
        self.out: list[int] = []

    def copy(self, bars: Bars, bar: int, tempos: Sequence[int] | None) -> None:
        """Writes a bar. tempos: what `_tempos` returns, which it is to keep; None leaves out its tempos."""
        first, stop = int(bars.starts[bar]), int(bars.starts[bar + 1])
        due = -1 if tempos is None else tempos[first]
        moments = first + np.flatnonzero(bars.kind[first:stop] == POSITION)
        for begin, end in pairwise([first, *moments.tolist(), stop]):
            ids, kinds = bars.ids[begin:end].tolist(), bars.kind[begin:end].tolist()
            if kinds[0] != POSITION:  # the bar and its metre
                self.out += ids
                continue
            position = ids[:1]
            if position[0] != self._downbeat:
                self._set([self._downbeat], due)
                due = -1
            own = [token for token, kind in zip(ids, kinds, strict=True) if kind == TEMPO and tempos is not None]
            position = [] if self._set(position, own[0] if own else due) else position
            due = -1
            for i, token, kind in zip(range(begin, end), ids, kinds, strict=True):
                if kind not in (POSITION, PROGRAM, PART, TEMPO):
                    named = self._named(bars.owner[i]) if kind in (PITCH, PITCH_DRUM) else []
                    self.out += [*position, *named, token]
                    position = []
        self._set([self._downbeat], due)

    def _set(self, position: Sequence[int], tempo: int) -> bool:
        """Writes a tempo at a position if it is another one than before (-1 is none); returns whether it did."""
        if tempo in (-1, self.tempo):
            return False
        self.out += [*position, tempo]
        self.tempo = tempo
        return True

    def _named(self, owner: tuple[int, int]) -> list[int]:
        if self._program_changes and owner == self.written:
            return []
        self.written = owner
        program, part = owner
        return [self._programs[program], *([self._parts[part]] if part else [])]


def with_length(ids: np.ndarray, tokenizer: Tokenizer, *, change: int, whole: int | None = None) -> np.ndarray:
    """Returns a sequence whose control of its length, if it has one, fits its bars.

    change: so many bars more than the control says (fewer below 0). whole: the number of its bars, if it is a whole piece.
    """
    found = ids.copy()
    for place in np.flatnonzero(ids < tokenizer.first_body).tolist():
        name, _, value = tokenizer.vocab[int(ids[place])].partition(":")
        if name == "bars":
            (found[place],) = tokenizer.controls({"num_bars": max(1, int(value) + change) if whole is None else whole})
    return found


def without_controls(ids: np.ndarray, tokenizer: Tokenizer, names: Sequence[str]) -> np.ndarray:
    """Returns a sequence without its controls of these names, such as "genre"."""
    named = [tokenizer.vocab[i].partition(":")[0] if len(SPECIALS) <= i < tokenizer.first_body else "" for i in ids.tolist()]
    return ids[[name not in names for name in named]]


def shift_to(key: Key, other: Key) -> int:
    """Returns the semitones, -5 to 6, that give music in `other` the key signature of `key`: A minor goes with C major."""
    mine, its = (each.tonic + (3 if each.mode == "minor" else 0) for each in (key, other))
    return (mine - its + 5) % 12 - 5


def transposed(document: BarredDocument, key: Key) -> BarredDocument | None:
    """Returns a document in the key signature of `key`, an octave off where the range demands it; None where nothing fits."""
    shift = shift_to(key, document.key)
    for octave in NEAREST_OCTAVE:
        body = document.tokenizer.transposition(shift + octave)[document.body]
        if (body >= 0).all():
            return BarredDocument(document.head, body, document.tail, document.starts, document.first, document.tokenizer)
    return None


def programs_of(document: BarredDocument, bars: Sequence[int]) -> frozenset[int]:
    """Returns the programs that begin a note in these bars of a document of REMI; of the grid, none."""
    if isinstance(document.tokenizer, SatbGrid):
        return frozenset()
    return frozenset(program for bar in bars for program, _ in document.bars.owners[bar])


def _table(tokenizer: Tokenizer) -> TokenTable:
    assert isinstance(tokenizer, MidiTokTokenizer)
    return tokenizer.table
