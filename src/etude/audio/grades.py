"""Grades of whole recordings, put together from windows.

Shapes: n samples, w windows, d defects, f frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter1d
from torch import Tensor

from etude.audio.degradations import normalise_level
from etude.audio.resampling import resample

AT_ONCE = 32  # windows
SILENT_DB, MASKED_DB = -60.0, -40.0  # of full scale, and below the loudest window: quieter windows are not graded
FOUND = 0.5  # probability from which a defect counts as found
LOW_QUALITY = 6.0  # below which a file is warned of
APART_SECONDS = {"onsets": 0.03, "sections": 0.5}  # between two borders of a kind, at least
Floats = NDArray[np.float32]


@runtime_checkable
class GradesSegments(Protocol):
    """A task that grades segments of audio. It has methods only, so that its class can be checked, too."""

    def grade(self, samples_bn: Tensor) -> Mapping[str, Tensor]:
        """Returns clip [b, d], frames [b, d, f], onsets and sections [b, f], quality [b] of segments."""
        ...


@runtime_checkable
class GradesAudio(GradesSegments, Protocol):
    """A task that grades segments of audio, such as `etude.tasks.grader.Grader`.

    contract: of its mels. defects: their names. segment_frames: length of the segments. border_thresholds: probability from which
    a peak is an onset or a section border, by "onsets" and "sections".
    """

    contract: Any
    defects: tuple[str, ...]
    segment_frames: int
    border_thresholds: Mapping[str, float]


@dataclass(frozen=True)
class FileGrades:
    """The grades of one recording.

    defects: names of the defects. seconds: its length. frame_seconds: seconds from one frame to the next.
    probability_d: of each defect, in the window where it is most probable. frames_df: probability in each frame; 0 in silence.
    window_start_w, window_quality_w: first second and quality, 1 to 10, of each window that is not silent.
    onsets, sections: times of the borders in seconds.
    """

    defects: tuple[str, ...]
    seconds: float
    frame_seconds: float
    probability_d: Floats
    frames_df: Floats
    window_start_w: Floats
    window_quality_w: Floats
    onsets: Floats
    sections: Floats

    @property
    def quality(self) -> float:
        """The mean quality of the windows, 1 to 10."""
        return float(self.window_quality_w.mean())

    def found(self, threshold: float = FOUND) -> dict[str, list[tuple[float, float]]]:
        """Returns the intervals (start, stop), in seconds, of each defect whose probability is at least `threshold`.

        Frames count from half of the defect's highest probability in a frame on, but never below half of `threshold`.
        """
        found = {}
        for place, name in enumerate(self.defects):
            if self.probability_d[place] >= threshold:
                level = max(0.5 * threshold, 0.5 * float(self.frames_df[place].max()))
                found[name] = intervals(self.frames_df[place] >= level, self.frame_seconds)
        return found

    def told(self, threshold: float = FOUND) -> str:
        """Returns the quality and the defects with their places, as "quality 3.1: hum 0:00-0:12, click 0:03"."""
        parts = [f"{name} {_told_places(places)}".strip() for name, places in self.found(threshold).items()]
        return f"quality {self.quality:.1f}" + (f": {', '.join(parts)}" if parts else "")


def grade_audio(task: GradesAudio, samples_n: Floats, sample_rate: int, *, name: str) -> FileGrades:
    """Grades mono audio in windows that overlap by half, each at the level of training; a frame's grades are those of the window
    in whose middle it lies.

    Args:
        task: a trained grader.
        samples_n: float32. sample_rate: of the samples; at least the grader's, to which they are resampled.
        name: of the recording, for messages.

    Raises:
        ValueError: audio that is shorter than a window, silent, or at a rate below the grader's, in one line that names it.
    """
    contract, frames = task.contract, task.segment_frames
    if sample_rate < contract.sample_rate:
        raise ValueError(
            f"{name}: has {sample_rate} samples a second, and the grader was trained at {contract.sample_rate}, so that all "
            f"would seem limited in band; give audio of that rate, or train one with data.contract.sample_rate={sample_rate}"
        )
    samples_n = resample(torch.from_numpy(samples_n)[None], sample_rate, contract.sample_rate)[0].numpy()
    size, hop = frames * contract.hop_length, max(1, frames // 2) * contract.hop_length
    if len(samples_n) < size:
        raise ValueError(
            f"{name}: lasts {len(samples_n) / contract.sample_rate:.2f} s; grading needs {size / contract.sample_rate:.2f} s"
        )
    starts = [*range(0, len(samples_n) - size, hop), len(samples_n) - size]
    starts = [start // contract.hop_length * contract.hop_length for start in starts]
    heard = _heard(samples_n, starts, size)
    if not heard:
        raise ValueError(f"{name}: is silent, so there is nothing to grade; give a file with sound in it")
    parts = [
        task.grade(torch.from_numpy(np.stack([normalise_level(samples_n[start : start + size]) for start in some])))
        for some in (heard[first : first + AT_ONCE] for first in range(0, len(heard), AT_ONCE))
    ]
    graded = {
        key: torch.cat([part[key] for part in parts]).numpy() for key in ("clip", "frames", "onsets", "sections", "quality")
    }
    total = contract.num_frames(len(samples_n))
    first_w = [start // contract.hop_length for start in heard]
    joined = {key: _joined(graded[key], first_w, total) for key in ("frames", "onsets", "sections")}
    return FileGrades(
        defects=tuple(task.defects),
        seconds=len(samples_n) / contract.sample_rate,
        frame_seconds=contract.hop_length / contract.sample_rate,
        probability_d=graded["clip"].max(0),
        frames_df=joined["frames"],
        window_start_w=np.array(heard, np.float32) / contract.sample_rate,
        window_quality_w=graded["quality"],
        **{name: borders(joined[name], name, contract, task.border_thresholds[name]) for name in APART_SECONDS},
    )


def borders(probability_f: ArrayLike, name: str, contract: Any, threshold: float) -> Floats:
    """Returns the times in seconds of the borders `name`, "onsets" or "sections", in the probabilities of frames."""
    rate = contract.sample_rate / contract.hop_length
    return pick_peaks(probability_f, frame_rate=rate, apart_seconds=APART_SECONDS[name], threshold=threshold)


def pick_peaks(probability_f: ArrayLike, *, frame_rate: float, apart_seconds: float, threshold: float) -> Floats:
    """Returns the times, in seconds, of the frames that are at least `threshold` and the highest within `apart_seconds`.

    probability_f: [f]. frame_rate: frames per second. A time is that of the frame's centre.
    """
    values = np.asarray(probability_f, np.float64)
    if not len(values):
        return np.empty(0, np.float32)
    reach = max(1, round(apart_seconds * frame_rate))
    peaks = np.flatnonzero((values == maximum_filter1d(values, 2 * reach + 1, mode="nearest")) & (values >= threshold))
    kept: list[int] = []
    for frame in peaks.tolist():
        if not kept or frame - kept[-1] > reach:  # a plateau is one border
            kept.append(frame)
    return ((np.array(kept, np.float64) + 0.5) / frame_rate).astype(np.float32)


def _heard(samples_n: Floats, starts: Sequence[int], size: int) -> list[int]:
    power = np.array([np.mean(np.square(samples_n[start : start + size], dtype=np.float64)) for start in starts])
    level = 10 * np.log10(np.maximum(power, 1e-20))
    return [start for start, own in zip(starts, level, strict=True) if own >= max(SILENT_DB, level.max() + MASKED_DB)]


def _joined(values_w: NDArray[np.float32], first_w: Sequence[int], total: int) -> Floats:
    """Returns [..., total] of windows [w, ..., f] that begin at `first_w`; a frame's values come from the nearest window."""
    length = values_w.shape[-1]
    joined = np.zeros((*values_w.shape[1:-1], total), np.float32)
    distance = np.full(total, np.inf)
    own = np.abs(np.arange(length) - (length - 1) / 2)
    for window, first in zip(values_w, first_w, strict=True):
        stop = min(first + length, total)
        nearer = own[: stop - first] < distance[first:stop]
        joined[..., first:stop] = np.where(nearer, window[..., : stop - first], joined[..., first:stop])
        distance[first:stop] = np.minimum(distance[first:stop], own[: stop - first])
    return joined


def intervals(marks_f: NDArray[np.bool_], frame_seconds: float) -> list[tuple[float, float]]:
    """Returns (start, stop) in seconds of each run of marked frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks_f, [False]]).astype(np.int8)))
    return [(float(a) * frame_seconds, float(b) * frame_seconds) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def clock(seconds: float) -> str:
    """Returns minutes and seconds, as "1:07"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _told_places(places: Sequence[tuple[float, float]], most: int = 3) -> str:
    shown = [clock(a) if clock(a) == clock(b) else f"{clock(a)}-{clock(b)}" for a, b in places]
    shown = list(dict.fromkeys(shown))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return f"{', '.join(shown[:most])}{more}"
