"""Batches of segments of audio: at random positions for training, each segment once for evaluation.

Shapes: s styles, b rows of a batch, m mel bands, f frames and n samples of a segment, p instruments.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from etude.audio.mel import MelContract
from etude.data.audio.build import UNIT, clip_path
from etude.data.audio.notes import PieceNotes
from etude.data.audio.splits import Piece
from etude.data.randomness import uniform
from etude.data.scores.packing import Rule
from etude.music.roll import KINDS, PITCHES

TRIES = 4  # positions that are tried until a segment is not silent
QUIET = math.log(1e-3)  # a segment is silent if no log mel is above this
NATS_PER_DECIBEL = math.log(10) / 20
MAPPED = 16_384  # files that are memory-mapped at a time; Linux allows 65,530 mappings
EvalRow = tuple[tuple[int, int] | None, ...]  # for each style: piece, first frame; None if it has none in this row


class Clips:
    """Reads pieces from the clip cache; files are memory-mapped at first use, so only the requested parts are read."""

    def __init__(self, folder: Path, contract: MelContract, pieces: Sequence[Piece]):
        self.folder, self.contract, self.pieces = folder, contract, list(pieces)
        self._mels: dict[int, np.ndarray] = {}
        self._samples: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.pieces)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mels": {}, "_samples": {}}  # worker processes map the files themselves

    def mel_fm(self, piece: int) -> np.ndarray:
        """Returns the log mels of a piece, float16 [f, m], as a view of the file."""
        if piece not in self._mels:
            self._make_room()
            entry = self.pieces[piece]
            mapped = np.memmap(clip_path(self.folder, entry.key, "mel"), np.float16, "r")
            self._mels[piece] = np.asarray(mapped).reshape(-1, self.contract.n_mels)[entry.start : entry.stop]
        return self._mels[piece]

    def samples_n(self, piece: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the samples of frames `start` to `stop` of a piece, int16 [n]; the last frame of a clip may be incomplete."""
        if piece not in self._samples:
            self._make_room()
            entry, hop = self.pieces[piece], self.contract.hop_length
            mapped = np.memmap(clip_path(self.folder, entry.key, "pcm"), np.int16, "r")
            self._samples[piece] = np.asarray(mapped)[entry.start * hop : entry.stop * hop]
        hop = self.contract.hop_length
        return self._samples[piece][start * hop : None if stop is None else stop * hop]

    def _make_room(self) -> None:
        if len(self._mels) + len(self._samples) >= MAPPED // 4:  # each style has its own `Clips`
            self._mels.clear()
            self._samples.clear()


class _Segments(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The base of training and evaluation segments: the clips of each style, and writing a segment into a batch."""

    def __init__(
        self,
        clips: Sequence[Clips],
        *,
        segment: int,
        waveform: bool,
        labels: Sequence[Mapping[str, np.ndarray]] | None = None,
        onsets: Sequence[Sequence[np.ndarray]] | None = None,
        notes: Sequence[PieceNotes] | None = None,
    ):
        self.clips, self.segment, self.waveform = list(clips), segment, waveform
        self.onsets = onsets  # for each style and piece: whether a note begins in each frame, bool [f]; None for no such entry
        self.notes = None if notes is None else list(notes)  # of each style
        self.labels = list(labels or [{} for _ in clips])  # for each style: name -> class of each piece, int64 [n]
        self.first_rows = np.cumsum([0, *(len(each) for each in self.clips)])  # of each style, in the manifest of the split
        self.contract = self.clips[0].contract

    def _empty(self, rows: int) -> dict[str, np.ndarray]:
        shape = (len(self.clips), rows)
        arrays = {"mel": np.empty((*shape, self.segment, self.contract.n_mels), np.float32)}
        if self.waveform:
            arrays["samples"] = np.zeros((*shape, self.segment * self.contract.hop_length), np.float32)
        if self.onsets is not None:
            arrays["onsets"] = np.zeros((*shape, self.segment), np.float32)
        if self.notes is not None:
            sizes = (len(KINDS), len(self.notes[0].instruments), PITCHES, self.segment)
            arrays |= {"roll": np.empty((*shape, *sizes), np.float32), "stop": np.empty((*shape, self.segment), np.float32)}
        known = [f"label_{name}" for name in self.labels[0]]
        return arrays | {name: np.full(shape, -1, np.int64) for name in (["piece", *known] if known else [])}

    def _write(self, arrays: dict[str, np.ndarray], style: int, row: int, piece: int, start: int, gain_db: float = 0.0) -> None:
        stop = start + self.segment
        for name, classes in self.labels[style].items():
            arrays[f"label_{name}"][style, row] = classes[piece]
            arrays["piece"][style, row] = self.first_rows[style] + piece
        if self.onsets is not None:
            arrays["onsets"][style, row] = self.onsets[style][piece][start:stop]
        mel_fm = arrays["mel"][style, row]
        known_fm = self.clips[style].mel_fm(piece)[start:stop]
        mel_fm[: len(known_fm)], mel_fm[len(known_fm) :] = known_fm, math.log(self.contract.floor)
        if self.notes is not None:
            self.notes[style].write(arrays["roll"][style, row], arrays["stop"][style, row], piece, start)
        if gain_db:
            np.maximum(mel_fm + np.float32(gain_db * NATS_PER_DECIBEL), np.float32(math.log(self.contract.floor)), out=mel_fm)
        if self.waveform:
            samples_n = self.clips[style].samples_n(piece, start, stop)
            arrays["samples"][style, row, : len(samples_n)] = samples_n * np.float32(10 ** (gain_db / 20) / UNIT)
            arrays["samples"][style, row, len(samples_n) :] = 0

    def _batch(self, arrays: dict[str, np.ndarray], present: Sequence[int]) -> dict[str, Tensor]:
        """Returns the batch of the styles that are present; it names them if some are missing."""
        if len(present) == len(self.clips):
            return self._tensors(arrays)
        style_sb = torch.tensor(present)[:, None].repeat(1, arrays["mel"].shape[1])
        return {**self._tensors({name: array[list(present)] for name, array in arrays.items()}), "style": style_sb}

    def _tensors(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        mel_sbmf = self.contract.normalise(torch.from_numpy(arrays["mel"])).transpose(2, 3).contiguous()
        batch = {
            "mel": mel_sbmf,
            **{name: torch.from_numpy(array) for name, array in arrays.items() if name.startswith(("label_", "piece"))},
        }
        more = ("samples", "onsets", "roll", "stop")
        return batch | {name: torch.from_numpy(arrays[name]) for name in more if name in arrays}


class RestrictedDraws(NamedTuple):
    """The draw numbers of a batch and, for each style, the probability with which each piece is admitted."""

    draws: list[int]
    chances: list[np.ndarray]


def chances_of(rules: Mapping[str, Rule], selective: Set[str], counts: Mapping[str, int], number: int) -> list[np.ndarray]:
    """Returns for each style the probability with which each of its training pieces is admitted to batch `number`.

    rules: by name, see `CorpusDataModule.admit`. selective: names of those that may leave a style out. counts: style -> pieces.
    Raises: ValueError for a style without an admitted piece that no rule may leave out.
    """
    first, chances = 0, []
    for style, count in counts.items():
        rows = np.arange(first, first + count)
        first += count
        each = {name: rule(rows, number) for name, rule in rules.items()}
        chances.append(np.prod(list(each.values()), axis=0))
        if not chances[-1].any() and all(each[name].any() for name in selective & each.keys()):
            names = " and ".join(sorted(rules))
            raise ValueError(f"{names} admit no training piece of {style} to batch {number}; widen what they take")
    return chances


class RandomSegments(_Segments):
    """Segments at random positions, as a dataset that is indexed with a list of draw numbers and returns a batch.

    A batch holds "mel": float32 [s, b, m, f], with `waveform` "samples": float32 [s, b, n], with `notes` "roll": float32
    [s, b, 2, p, 128, f] and "stop": float32 [s, b, f], and for each of `labels` "label_*": int64 [s, b], -1 where a piece has no
    label, beside "piece": int64 [s, b], its row in the split's columns. Styles without an admitted piece are missing; the batch
    then also holds "style": int64 [s, b], the index of each row's style. With `notes` a segment may reach beyond the end of the
    music: the mel is then silent and "stop" is 1.

    Row r is draw number draws[r] of each style and depends on (seed, style, draw number) alone. All positions in all pieces
    are equally likely, except that a silent segment is drawn again, a few times.

    gain_db: [lowest, highest] random change of loudness in decibels; None for no change.
    """

    def __init__(
        self,
        clips: Sequence[Clips],
        *,
        styles: Sequence[str],
        seed: int,
        segment: int,
        gain_db: tuple[float, float] | None,
        waveform: bool,
        labels: Sequence[Mapping[str, np.ndarray]] | None = None,
        onsets: Sequence[Sequence[np.ndarray]] | None = None,
        notes: Sequence[PieceNotes] | None = None,
    ):
        super().__init__(clips, segment=segment, waveform=waveform, labels=labels, onsets=onsets, notes=notes)
        self.seed, self.gain_db = seed, gain_db
        self._names = np.array([int(hashlib.sha256(name.encode()).hexdigest()[:15], 16) for name in styles], np.uint64)
        room = [[0] * len(clip) if notes is None else notes[style].room(segment) for style, clip in enumerate(clips)]
        self._ends = [
            np.cumsum([piece.frames + more - segment + 1 for piece, more in zip(clip.pieces, rooms, strict=True)])
            for clip, rooms in zip(clips, room, strict=True)
        ]

    def __getitems__(self, draws: Sequence[int] | RestrictedDraws) -> dict[str, Tensor]:
        draws, chances = (draws.draws, draws.chances) if isinstance(draws, RestrictedDraws) else (draws, [None] * len(self.clips))
        arrays = self._empty(len(draws))
        numbers = np.asarray(draws, np.uint64)
        present = [style for style, chance in enumerate(chances) if chance is None or chance.any()]
        for style in present:
            ends = self._ends[style]
            chance = uniform(self.seed, np.full(len(numbers), self._names[style]), numbers, TRIES + 1)
            pieces, starts = _positions(chance[:, :TRIES], ends, chances[style])
            for row in range(len(numbers)):
                gain = 0.0 if self.gain_db is None else self.gain_db[0] + chance[row, TRIES] * (self.gain_db[1] - self.gain_db[0])
                for piece, start in zip(pieces[row].tolist(), starts[row].tolist(), strict=True):
                    self._write(arrays, style, row, piece, start, gain)
                    if arrays["mel"][style, row].max() > QUIET:
                        break
        return self._batch(arrays, present)


def _positions(chance: np.ndarray, ends: np.ndarray, admitted: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Maps numbers in [0, 1) to pieces and first frames: each position has the probability with which its piece is admitted.

    ends: cumulative number of positions of the pieces. admitted: [pieces] in [0, 1], None for 1.
    """
    if admitted is None or (admitted == 1).all():
        places = (chance * ends[-1]).astype(np.int64)
        pieces = np.searchsorted(ends, places, side="right")
        return pieces, places - np.where(pieces > 0, ends[pieces - 1], 0)
    sizes = np.diff(ends, prepend=0)
    weighted = np.cumsum(sizes * admitted)
    places = chance * weighted[-1]
    last = int(np.flatnonzero(admitted)[-1])
    pieces = np.minimum(np.searchsorted(weighted, places, side="right"), last)
    starts = (places - np.where(pieces > 0, weighted[pieces - 1], 0)) / admitted[pieces]
    return pieces, np.minimum(starts.astype(np.int64), sizes[pieces] - 1)


class FixedSegments(_Segments):
    """Segments at given positions: indexed with a list of `EvalRow`, it returns batches like `RandomSegments`.

    The same styles are missing in all rows of a batch.
    """

    def __getitems__(self, rows: Sequence[EvalRow]) -> dict[str, Tensor]:
        arrays = self._empty(len(rows))
        for number, row in enumerate(rows):
            for style, place in enumerate(row):
                if place is not None:
                    self._write(arrays, style, number, *place)
        return self._batch(arrays, [style for style, place in enumerate(rows[0]) if place is not None])


class DrawSampler(torch.utils.data.Sampler[Any]):
    """Yields the draw numbers of one batch at a time, without end; an epoch is a fixed number of batches.

    batch_size: draws for each rank.
    num_batches: batches of an epoch.
    rank, world: draw d goes to rank d mod world.
    admission: returns, for the number of a batch, the probabilities with which each style's pieces are admitted; called in
        the main process, where techniques have their state. None admits all.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        num_batches: int,
        rank: int = 0,
        world: int = 1,
        admission: Callable[[int], list[np.ndarray]] | None = None,
    ):
        self.batch_size, self.num_batches, self.rank, self.world = batch_size, num_batches, rank, world
        self.admission = admission
        self.first = 0  # first draw of the next batch, over all ranks
        self.drawn = 0  # batches of the current epoch
        self.number = 0  # batches since the start of the run
        self._resumed = False

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        if not self._resumed or self.drawn >= self.num_batches:
            self.drawn = 0
        self._resumed = False
        while self.drawn < self.num_batches:
            stop = self.first + self.batch_size * self.world
            batch = list(range(self.first + self.rank, stop, self.world))
            number = self.number
            self.first, self.drawn, self.number = stop, self.drawn + 1, self.number + 1
            yield batch if self.admission is None else RestrictedDraws(batch, self.admission(number))

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream; it is the same on every rank, so the number of ranks may change on resuming."""
        return {"first": self.first, "drawn": self.drawn, "number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict`, in the middle of its epoch."""
        self.first, self.drawn, self._resumed = int(state["first"]), int(state["drawn"]), True
        self.number = int(state["number"]) if "number" in state else self.first // (self.batch_size * self.world)
