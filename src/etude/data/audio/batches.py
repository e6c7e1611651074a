"""Pieces to batches of segments, for training at random places, for evaluation once each.

Shapes: s styles, b rows of a batch, m mel bands, f frames of a segment, n samples of it.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from etude.audio.mel import MelContract
from etude.data.audio.build import UNIT, clip_path
from etude.data.audio.splits import Piece
from etude.data.randomness import uniform

TRIES = 4  # places that a draw looks at until it finds one that sounds
QUIET = math.log(1e-3)  # a log mel below which nothing is heard
NEPER = math.log(10) / 20  # nats a decibel
MAPPED = 16_384  # files mapped at a time; systems allow 65,530
EvalRow = tuple[tuple[int, int], ...]  # for each style: piece, first frame


class Clips:
    """Reads pieces from the clip cache; files are mapped when first used, and nothing but what is asked for is read."""

    def __init__(self, folder: Path, contract: MelContract, pieces: Sequence[Piece]):
        self.folder, self.contract, self.pieces = folder, contract, list(pieces)
        self._mels: dict[int, np.ndarray] = {}
        self._samples: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.pieces)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mels": {}, "_samples": {}}  # workers map the files themselves

    def mel_fm(self, piece: int) -> np.ndarray:
        """The log mels of a piece, float16 [f, m], a view of the file."""
        if piece not in self._mels:
            self._make_room()
            entry = self.pieces[piece]
            mapped = np.memmap(clip_path(self.folder, entry.key, "mel"), np.float16, "r")
            self._mels[piece] = np.asarray(mapped).reshape(-1, self.contract.n_mels)[entry.start : entry.stop]
        return self._mels[piece]

    def samples_n(self, piece: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The samples of frames `start` to `stop` of a piece, int16 [n]; the last frame of a clip may be cut short."""
        if piece not in self._samples:
            self._make_room()
            entry, hop = self.pieces[piece], self.contract.hop_length
            mapped = np.memmap(clip_path(self.folder, entry.key, "pcm"), np.int16, "r")
            self._samples[piece] = np.asarray(mapped)[entry.start * hop : entry.stop * hop]
        hop = self.contract.hop_length
        return self._samples[piece][start * hop : None if stop is None else stop * hop]

    def _make_room(self) -> None:
        if len(self._mels) + len(self._samples) >= MAPPED // 4:  # several styles, each with its own
            self._mels.clear()
            self._samples.clear()


class _Segments(torch.utils.data.Dataset[dict[str, Tensor]]):
    """What training and evaluation share: clips of each style, and how a segment gets into a batch."""

    def __init__(
        self,
        clips: Sequence[Clips],
        *,
        segment: int,
        waveform: bool,
        labels: Sequence[Mapping[str, np.ndarray]] | None = None,
    ):
        self.clips, self.segment, self.waveform = list(clips), segment, waveform
        self.labels = list(labels or [{} for _ in clips])  # of each style's pieces: class int64 [n], by name
        self.contract = self.clips[0].contract

    def _empty(self, rows: int) -> dict[str, np.ndarray]:
        shape = (len(self.clips), rows)
        arrays = {"mel": np.empty((*shape, self.segment, self.contract.n_mels), np.float32)}
        if self.waveform:
            arrays["samples"] = np.zeros((*shape, self.segment * self.contract.hop_length), np.float32)
        return arrays | {f"label_{name}": np.full(shape, -1, np.int64) for name in self.labels[0]}

    def _write(self, arrays: dict[str, np.ndarray], style: int, row: int, piece: int, start: int, gain_db: float = 0.0) -> None:
        stop = start + self.segment
        for name, classes in self.labels[style].items():
            arrays[f"label_{name}"][style, row] = classes[piece]
        mel_fm = arrays["mel"][style, row]
        mel_fm[:] = self.clips[style].mel_fm(piece)[start:stop]
        if gain_db:
            np.maximum(mel_fm + np.float32(gain_db * NEPER), np.float32(math.log(self.contract.floor)), out=mel_fm)
        if self.waveform:
            samples_n = self.clips[style].samples_n(piece, start, stop)
            arrays["samples"][style, row, : len(samples_n)] = samples_n * np.float32(10 ** (gain_db / 20) / UNIT)

    def _tensors(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        mel_sbmf = self.contract.normalise(torch.from_numpy(arrays["mel"])).transpose(2, 3).contiguous()
        batch = {
            "mel": mel_sbmf,
            **{name: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("label_")},
        }
        if self.waveform:
            batch["samples"] = torch.from_numpy(arrays["samples"])
        return batch


class Chosen(NamedTuple):
    """Draw numbers of a batch and, for each style, the chance with which each of its pieces is admitted."""

    draws: list[int]
    chances: list[np.ndarray]


class RandomSegments(_Segments):
    """Segments at random places. Indexed with a list of draw numbers it gives {"mel": float32 [s, b, m, f], and with
    `waveform` "samples": float32 [s, b, n], and for each of `labels` "label_*": int64 [s, b], -1 where a piece has none};
    of styles of which no piece is admitted nothing, and then the number of each row's style as "style": int64 [s, b].

    Row r is draw number draws[r] of each style, a function of (seed, style, draw number) alone: every place in every
    piece is as likely as any other, but that a silent one is drawn again, a few times.

    gain_db: [lowest, highest] change of loudness in decibels, drawn with the place; None for none.
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
    ):
        super().__init__(clips, segment=segment, waveform=waveform, labels=labels)
        self.seed, self.gain_db = seed, gain_db
        self._names = np.array([int(hashlib.sha256(name.encode()).hexdigest()[:15], 16) for name in styles], np.uint64)
        self._ends = [np.cumsum([piece.frames - segment + 1 for piece in clip.pieces]) for clip in clips]

    def __getitems__(self, draws: Sequence[int] | Chosen) -> dict[str, Tensor]:
        draws, chances = (draws.draws, draws.chances) if isinstance(draws, Chosen) else (draws, [None] * len(self.clips))
        arrays = self._empty(len(draws))
        numbers = np.asarray(draws, np.uint64)
        present = [style for style, chance in enumerate(chances) if chance is None or chance.any()]
        for style in present:
            ends = self._ends[style]
            chance = uniform(self.seed, np.full(len(numbers), self._names[style]), numbers, TRIES + 1)
            pieces, starts = _places(chance[:, :TRIES], ends, chances[style])
            for row in range(len(numbers)):
                gain = 0.0 if self.gain_db is None else self.gain_db[0] + chance[row, TRIES] * (self.gain_db[1] - self.gain_db[0])
                for piece, start in zip(pieces[row].tolist(), starts[row].tolist(), strict=True):
                    self._write(arrays, style, row, piece, start, gain)
                    if arrays["mel"][style, row].max() > QUIET:
                        break
        if len(present) == len(self.clips):
            return self._tensors(arrays)
        style_sb = torch.tensor(present)[:, None].repeat(1, len(draws))
        return {**self._tensors({name: array[present] for name, array in arrays.items()}), "style": style_sb}


def _places(chance: np.ndarray, ends: np.ndarray, admitted: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The piece and the first frame for each number of [0, 1): every place as likely as its piece is admitted.

    ends: places in all pieces up to each, its own included. admitted: [pieces] in [0, 1], None for 1.
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
    """Segments at given places: indexed with a list of `EvalRow` it gives what `RandomSegments` gives."""

    def __getitems__(self, rows: Sequence[EvalRow]) -> dict[str, Tensor]:
        arrays = self._empty(len(rows))
        for number, row in enumerate(rows):
            for style, (piece, start) in enumerate(row):
                self._write(arrays, style, number, piece, start)
        return self._tensors(arrays)


class DrawSampler(torch.utils.data.Sampler[Any]):
    """Draw numbers of one batch at a time, the same number of batches each epoch, for ever; its state counts what was
    drawn by all ranks.

    batch_size: draws for each rank. num_batches: length of an epoch. rank, world: draw d goes to rank d mod world.
    admission: what gives each style's chances for a batch by its number, here where techniques know of training; None for all.
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
        self.first = 0  # draw that the next batch begins with, over all ranks
        self.drawn = 0  # batches of the epoch under way
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
            yield batch if self.admission is None else Chosen(batch, self.admission(number))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: the same on every rank, so their number may change on resuming."""
        return {"first": self.first, "drawn": self.drawn, "number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`, in the middle of its epoch."""
        self.first, self.drawn, self._resumed = int(state["first"]), int(state["drawn"]), True
        self.number = int(state["number"]) if "number" in state else self.first // (self.batch_size * self.world)


def evaluation_rows(clips: Sequence[Clips], *, segment: int, paired: bool) -> list[EvalRow]:
    """One pass over everything held out, in whole segments.

    Paired: row i is the same place of the same song in every style, as far as the shortest goes. Else the segments of
    each style, those of styles that have fewer repeated from the beginning.
    """
    if paired:
        common = [min(clip.pieces[piece].frames for clip in clips) for piece in range(len(clips[0]))]
        places = [(piece, start) for piece, frames in enumerate(common) for start in range(0, frames - segment + 1, segment)]
        return [tuple(place for _ in clips) for place in places]
    lists = [
        [(number, start) for number, piece in enumerate(clip.pieces) for start in range(0, piece.frames - segment + 1, segment)]
        for clip in clips
    ]
    if not all(lists):
        return []
    return [tuple(places[row % len(places)] for places in lists) for row in range(max(map(len, lists)))]


def evaluation_batches(rows: Sequence[EvalRow], *, batch_size: int, rank: int, world: int) -> list[list[EvalRow]]:
    """The rows of one rank in batches; every rank gets as many, the first rows again where there is nothing left."""
    mine = [rows[number % len(rows)] for number in range(rank, -(-len(rows) // world) * world, world)]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
