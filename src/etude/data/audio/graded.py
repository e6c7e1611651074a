"""Batches of audio with known defects, onsets and joins, for a grader to learn from.

Each segment is made of clean audio: at times a second piece takes its place at a random frame, most have their sound changed in
ways that are no defects, then random defects of random strengths are added, then the level is set. A segment depends on its own
number alone, so that any number of workers gives the same batches and a run that is continued goes on bit for bit.

Shapes: s styles, b rows, d defects, z defects with a place in the spectrum, k coarse bands, m mel bands, f frames, n samples.
"""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.audio.degradations import BAND_DEFECTS, Degraded, degrade, normalise_level, quality
from etude.audio.mel import MelContract
from etude.audio.recolouring import recolour
from etude.data.audio.batches import Clips, EvalRow, FixedSegments, RandomSegments, RestrictedDraws
from etude.data.audio.build import clip_key
from etude.data.audio.recordings import Recording
from etude.data.audio.splits import Piece
from etude.data.cache.intact import sealed, unsealed
from etude.data.cache.store import write_aside
from etude.data.cache.version import ARRANGING, FORMAT
from etude.data.randomness import key
from etude.metrics.audio.mel_features import onset_strength, pick_onsets

COARSE_BANDS = 8
CHANGED_NATS = 3 * math.log(10) / 20  # 3 dB: a defect lies in the coarse bands that it changes by more
JOINED_SHARE = 0.3  # of segments in which a second piece begins
NUM_DEFECTS = (0.25, 0.4, 0.2, 0.15)  # how often a segment has none, one, two and three defects
RECOLOURED = 0.75  # of segments whose sound is changed before, in training and validation
WEAKEST = 0.1  # strength of a defect that is there
OTHER_SEGMENT = 1 << 50  # added to the number of a draw for the second piece
EVALUATION_SEED = 0  # of held-out segments: runs of all seeds are compared on the same ones

Clean = tuple[np.ndarray, np.ndarray]  # samples [n] and onsets [f] of a segment


class Spoiler:
    """Makes one segment out of clean ones, with what is known about it.

    defects: the defects to choose from. contract: of the mels. gain_db: [lowest, highest] change of the level in training.
    recoloured: share of segments whose sound is changed before (`audio.recolouring`): in training and validation, not in tests.
    """

    def __init__(
        self, defects: Sequence[str], contract: MelContract, gain_db: tuple[float, float] | None, recoloured: float = RECOLOURED
    ) -> None:
        self.defects, self.contract, self.gain_db, self.recoloured = tuple(defects), contract, gain_db, recoloured
        self.in_bands = [name for name in self.defects if name in BAND_DEFECTS]

    def __call__(self, clean: Clean, other: Clean, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns the entries of one row; see `GradedSegments`.

        clean: samples [n] and onsets [f] of a segment. other: those that may take its place. generator: of all draws.
        """
        (samples_n, onsets_f), (other_n, other_f) = clean, other
        hop, rate, frames = self.contract.hop_length, self.contract.sample_rate, len(onsets_f)
        sections_f = np.zeros(frames, np.float32)
        samples_n, other_n = normalise_level(samples_n), normalise_level(other_n)
        joined, place, count, gain = generator.random(4)
        joined = joined < JOINED_SHARE and not np.array_equal(samples_n, other_n)
        if self.recoloured and generator.random() < self.recoloured:
            samples_n, other_n = recolour(samples_n, generator, rate), recolour(other_n, generator, rate)
        if joined:
            at = round((0.2 + 0.6 * place) * frames)
            samples_n = np.concatenate([samples_n[: at * hop], other_n[at * hop :]])
            onsets_f = np.concatenate([onsets_f[:at], other_f[at:]])
            sections_f[at] = 1
        number = min(int(np.searchsorted(np.cumsum(NUM_DEFECTS), count)), len(self.defects))
        chosen = sorted(generator.choice(len(self.defects), number, replace=False).tolist())
        strengths = {self.defects[i]: float(generator.uniform(WEAKEST, 1)) for i in chosen}
        before_n = samples_n
        samples_n, steps = degrade(samples_n, strengths, generator, rate)
        samples_n = normalise_level(samples_n)
        if self.gain_db is not None:
            samples_n = samples_n * np.float32(10 ** ((self.gain_db[0] + gain * (self.gain_db[1] - self.gain_db[0])) / 20))
        strength_d = np.array([strengths.get(name, 0.0) for name in self.defects], np.float32)
        return {
            "mel": self.contract.normalise(self.contract.log_mel(torch.from_numpy(samples_n))).numpy(),
            "samples": samples_n.astype(np.float32),
            "defects": self._places(steps, frames),
            "bands": self._bands(before_n, steps, frames),
            "strength": strength_d,
            "quality": np.array(quality(strengths), np.float32),
            "onsets": onsets_f.astype(np.float32),
            "sections": sections_f,
        }

    def _places(self, steps: Mapping[str, Degraded], frames: int) -> np.ndarray:
        """Returns 1 for each frame whose window has the defect in its middle half, float32 [d, f]."""
        found_df = np.zeros((len(self.defects), frames), np.float32)
        for place, name in enumerate(self.defects):
            if name in steps:
                found_df[place] = covered_frames(steps[name].marks_n, self.contract, frames)
        return found_df

    def _bands(self, before_n: np.ndarray, steps: Mapping[str, Degraded], frames: int) -> np.ndarray:
        """Returns 1 for each coarse band and frame that the defect changes by more than 3 dB, float32 [z, k, f]."""
        found_zkf = np.zeros((len(self.in_bands), COARSE_BANDS, frames), np.float32)
        if not any(name in steps for name in self.in_bands):
            return found_zkf
        before_mf = self.contract.log_mel(torch.from_numpy(before_n))
        for name, step in steps.items():
            after_mf = self.contract.log_mel(torch.from_numpy(step.samples_n))
            if name in self.in_bands:
                change_kf = coarse_bands((after_mf - before_mf).abs())
                marked_f = covered_frames(step.marks_n, self.contract, frames)
                found_zkf[self.in_bands.index(name)] = (change_kf.numpy() > CHANGED_NATS) * marked_f
            before_mf = after_mf
        return found_zkf


def covered_frames(marks_n: np.ndarray, contract: MelContract, frames: int) -> np.ndarray:
    """Returns 1 for each frame with a marked sample in the middle half of its window, where a Hann window is above a half."""
    total = np.concatenate([[0], np.cumsum(marks_n)])
    centre = np.arange(frames) * contract.hop_length + contract.hop_length // 2
    first, stop = (np.clip(centre + side * contract.n_fft // 4, 0, len(marks_n)) for side in (-1, 1))
    covered: np.ndarray = (total[stop] > total[first]).astype(np.float32)
    return covered


def coarse_bands(mel_mf: Tensor) -> Tensor:
    """Returns the mean of the mel bands in each of `COARSE_BANDS` groups of neighbours, [k, f] of [m, f]."""
    return torch.stack([part.mean(0) for part in torch.tensor_split(mel_mf, COARSE_BANDS)])


class GradedSegments(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Segments with known defects: the base of training and evaluation batches.

    A batch holds, float32:

        mel       [s, b, m, f]      normalised by the contract
        defects   [s, b, d, f]      whether the defect is in the frame
        bands     [s, b, z, k, f]   whether a defect of `BAND_DEFECTS` changes the coarse band by more than 3 dB
        strength  [s, b, d]         of each defect, 0 where it is not there
        quality   [s, b]            `degradations.quality` of the strengths, 1 to 10
        onsets    [s, b, f]         whether a note begins in the frame
        sections  [s, b, f]         whether other audio begins in the frame
        samples   [s, b, n]         with `waveform`

    and the `label_*` and `style` of the clean batch.

    clean: gives the clean batches, with samples and onsets. spoiler: makes a row. styles: the names of the clips' styles.
    """

    def __init__(self, clean: Any, *, spoiler: Spoiler, styles: Sequence[str], waveform: bool) -> None:
        self.clean, self.spoiler, self.waveform = clean, spoiler, waveform
        self.names = [int(hashlib.sha256(name.encode()).hexdigest()[:15], 16) for name in styles]

    def spoilt(self, clean: dict[str, Tensor], other: dict[str, Tensor], keys: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """Returns the batch of two clean ones; keys: [s][b], from which the draws of each row come."""
        styles, rows = clean["mel"].shape[:2]
        found: list[dict[str, np.ndarray]] = []
        for style in range(styles):
            partner = (style + 1) % styles  # of another style, where there are several
            for row in range(rows):
                generator = np.random.default_rng(int(keys[style][row]))
                found.append(self.spoiler(_row(clean, style, row), _row(other, partner, row), generator))
        names = [name for name in found[0] if name != "samples" or self.waveform]
        made = {
            name: torch.unflatten(torch.from_numpy(np.stack([row[name] for row in found])), 0, (styles, rows)) for name in names
        }
        return made | {name: value for name, value in clean.items() if name.startswith("label_") or name == "style"}


class RandomGraded(GradedSegments):
    """Training batches, indexed with draw numbers: row r is a function of (seed, style, draw number r) alone."""

    clean: RandomSegments

    def __getitems__(self, draws: Sequence[int] | RestrictedDraws) -> dict[str, Tensor]:
        numbers = draws.draws if isinstance(draws, RestrictedDraws) else list(draws)
        shifted = [number + OTHER_SEGMENT for number in numbers]
        others = RestrictedDraws(shifted, draws.chances) if isinstance(draws, RestrictedDraws) else shifted
        clean, other = self.clean.__getitems__(draws), self.clean.__getitems__(others)
        style_s = clean["style"][:, 0].tolist() if "style" in clean else range(len(self.names))
        keys = [[key(self.clean.seed, self.names[style], number) for number in numbers] for style in style_s]
        return self.spoilt(clean, other, keys)


class FixedGraded(GradedSegments):
    """Held-out batches, indexed with rows: a row is a function of its place, the same in runs of every seed.

    partners: for each row the one whose audio may take its place.
    """

    clean: FixedSegments

    def __init__(self, clean: FixedSegments, *, partners: Mapping[EvalRow, EvalRow], **options: Any) -> None:
        super().__init__(clean, **options)
        self.partners = partners

    def __getitems__(self, rows: Sequence[EvalRow]) -> dict[str, Tensor]:
        clean, other = self.clean.__getitems__(rows), self.clean.__getitems__([self.partners[row] for row in rows])
        places = [[row[style] for row in rows] for style in range(len(self.names))]
        keys = [
            [key(EVALUATION_SEED, name, *place) for place in own if place is not None]
            for name, own in zip(self.names, places, strict=True)
            if own[0] is not None
        ]
        return self.spoilt(clean, other, keys)


def _row(batch: dict[str, Tensor], style: int, row: int) -> Clean:
    return batch["samples"][style, row].numpy(), batch["onsets"][style, row].numpy()


def partners_of(rows: Sequence[EvalRow]) -> dict[EvalRow, EvalRow]:
    """Returns for each held-out row another one, half of all rows away, whose audio may take its place."""
    return {row: rows[(number + max(1, len(rows) // 2)) % len(rows)] for number, row in enumerate(rows)}


def onset_frames(recordings: Sequence[Recording], clips: Sequence[Clips], *, cache: Path, name: str) -> list[list[np.ndarray]]:
    """Returns for each of `clips` and each of its pieces whether a note begins in each frame, bool [f].

    Where the score of a recording is known, these are its notes; otherwise the peaks of the spectral flux of the clean audio
    (`metrics.audio.mel_features.pick_onsets`).

    cache: the folder of the cached result. name: the name of the cache file; it must identify all inputs.
    """
    path = cache / f"{name}-onsets-{ARRANGING}-{FORMAT}.npz"
    if not path.exists():
        known = {clip_key(recording): recording for recording in recordings}
        columns: Any = {f"{c}_{p}": _times(known[piece.key], piece, clip, p) for c, clip in enumerate(clips)
                        for p, piece in enumerate(clip.pieces)}  # fmt: skip
        sink = io.BytesIO()
        np.savez(sink, **columns)
        write_aside(path, sealed(sink.getvalue()))
    with np.load(io.BytesIO(unsealed(path))) as saved:
        return [
            [_as_frames(saved[f"{c}_{p}"], piece.frames, clip.contract) for p, piece in enumerate(clip.pieces)]
            for c, clip in enumerate(clips)
        ]


def _times(recording: Recording, piece: Piece, clip: Clips, number: int) -> np.ndarray:
    """Returns the onsets of a piece, in seconds from its beginning."""
    rate = clip.contract.sample_rate / clip.contract.hop_length
    times = recording.onsets()
    if times is None:
        return pick_onsets(onset_strength(clip.mel_fm(number).T), frame_rate=rate)
    times = times - piece.start / rate
    inside: np.ndarray = times[(times >= 0) & (times < piece.frames / rate)]
    return inside


def _as_frames(times: np.ndarray, frames: int, contract: MelContract) -> np.ndarray:
    found = np.zeros(frames, bool)
    found[np.minimum((times * contract.sample_rate / contract.hop_length).astype(np.int64), frames - 1)] = True
    return found
