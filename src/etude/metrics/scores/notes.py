"""The notes of a score as flat arrays, from which the metrics are computed.

Legend: N notes, T tracks, B bars, S segments (stretches of time between two changes of the sounding pitches).
Times are integer ticks, half-open: a note sounds in [onset, onset + duration).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from symusic import Score
from symusic.core import Tick

from etude.music.score import bar_ticks

Ints = NDArray[np.int64]
NUM_PITCHES = 128


@dataclass(frozen=True, eq=False)
class NoteArray:
    """All notes of one piece, sorted by onset, then pitch, then track; every array is int64 [N] (is_drum: bool [N]).

    Attributes:
        onset: ticks from the beginning of the piece, >= 0.
        duration: ticks, >= 0.
        pitch: MIDI number, 0..127.
        velocity: 0..127.
        track: index of the note's track in the score.
        is_drum: the track is a drum track.
        ticks_per_beat: ticks in a quarter note (a "beat" is a quarter note throughout, as in muspy).
        num_tracks: tracks in the score, those without notes included.
        bar_starts: int64 [B + 1], the onset of every bar up to the bar in which the last note ends, and the end
            of that bar. Bars follow the time signatures, 4/4 before the first one. A piece that ends on a bar line has
            an (empty) bar after it, as in muspy.
    """

    onset: Ints
    duration: Ints
    pitch: Ints
    velocity: Ints
    track: Ints
    is_drum: NDArray[np.bool_]
    ticks_per_beat: int
    num_tracks: int
    bar_starts: Ints

    @classmethod
    def from_score(cls, score: Score) -> "NoteArray":
        """Read the notes of a symusic score at the score's own resolution.

        Raises:
            ValueError: the score counts time in seconds or quarters (remedy: `score.to("tick")`).
        """
        if not isinstance(score.ttype, Tick):
            raise ValueError(f"score counts time in {score.ttype}, must be in ticks; convert it with score.to('tick')")
        fields: dict[str, list[Ints]] = {name: [] for name in ("time", "duration", "pitch", "velocity")}
        sizes, drums = [], []
        for track in score.tracks:
            arrays = track.notes.numpy()
            for name, parts in fields.items():
                parts.append(arrays[name])
            sizes.append(len(arrays["time"]))
            drums.append(track.is_drum)
        joined = {
            name: np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64) for name, parts in fields.items()
        }
        track = np.repeat(np.arange(len(sizes)), sizes)
        order = np.lexsort((track, joined["pitch"], joined["time"]))
        ends = joined["time"] + joined["duration"]
        return cls(
            onset=joined["time"][order],
            duration=joined["duration"][order],
            pitch=joined["pitch"][order],
            velocity=joined["velocity"][order],
            track=track[order],
            is_drum=np.repeat(np.array(drums, bool), sizes)[order],
            ticks_per_beat=score.ticks_per_quarter,
            num_tracks=len(sizes),
            bar_starts=_bars_through_end(score, int(ends.max(initial=0))),
        )

    def __len__(self) -> int:
        return len(self.onset)

    @cached_property
    def end(self) -> int:
        """The tick at which the last note stops, drums included; 0 without notes."""
        return int((self.onset + self.duration).max(initial=0))

    @cached_property
    def pitched(self) -> "NoteArray":
        """The notes without drums; bars and `num_tracks` stay the same."""
        return self if not self.is_drum.any() else self.select(~self.is_drum)

    def select(self, mask: NDArray[np.bool_]) -> "NoteArray":
        """The notes where `mask` (bool [N]) is true; bars and tracks are kept."""
        return self.replace(
            onset=self.onset[mask],
            duration=self.duration[mask],
            pitch=self.pitch[mask],
            velocity=self.velocity[mask],
            track=self.track[mask],
            is_drum=self.is_drum[mask],
        )

    def replace(self, **changes: object) -> "NoteArray":
        """A copy with some fields changed; the caller keeps the order of the notes."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__} | changes
        return NoteArray(**values)

    def resample(self, ticks_per_beat: int) -> "NoteArray":
        """The same notes at another resolution: onsets and ends rounded half up, no pitched note shorter than a tick.

        Raises:
            ValueError: `ticks_per_beat` below 1.
        """
        if ticks_per_beat < 1:
            raise ValueError(f"ticks_per_beat={ticks_per_beat} is below 1; give ticks per quarter note, for example 12")
        if ticks_per_beat == self.ticks_per_beat:
            return self
        old, new = self.ticks_per_beat, ticks_per_beat

        def scaled(ticks: Ints) -> Ints:
            return (2 * ticks * new + old) // (2 * old)

        onset = scaled(self.onset)
        duration = np.maximum(scaled(self.onset + self.duration) - onset, 1)
        order = np.lexsort((self.track, self.pitch, onset))
        bars = scaled(self.bar_starts)
        end = int((onset + duration).max(initial=0))
        if end >= bars[-1]:  # a last note that was rounded up to the next bar line opens that bar
            bars = np.append(bars, bars[-1] + (bars[-1] - bars[-2]))
        return self.replace(
            onset=onset[order],
            duration=duration[order],
            pitch=self.pitch[order],
            velocity=self.velocity[order],
            track=self.track[order],
            is_drum=self.is_drum[order],
            ticks_per_beat=new,
            bar_starts=bars,
        )

    @cached_property
    def sounding(self) -> "Sounding":
        """Which pitches sound at which time, drums left out: see `Sounding`."""
        return Sounding.of(self.pitched)


@dataclass(frozen=True, eq=False)
class Sounding:
    """A run-length encoded piano roll: one row for each stretch of time in which no note starts or stops.

    Its size does not depend on the resolution: it is the same at 12 and at 480 ticks per beat.

    Attributes:
        times: int64 [S + 1], the ticks at which a note starts or stops, increasing.
        roll: bool [S, 128], the pitches that sound; the same pitch in two tracks counts once.
    """

    times: Ints
    roll: NDArray[np.bool_]

    @classmethod
    def of(cls, notes: NoteArray) -> "Sounding":
        """Builds the roll from notes."""
        longer_than_zero = notes.duration > 0
        start, pitch = notes.onset[longer_than_zero], notes.pitch[longer_than_zero]
        stop = start + notes.duration[longer_than_zero]
        start, stop, pitch = _union(start, stop, pitch)
        times = np.unique(np.concatenate([start, stop]))
        change = np.zeros((max(len(times), 1), NUM_PITCHES), np.int8)
        # After the union each (time, pitch) starts once and stops once, so plain indexing adds every change.
        change[np.searchsorted(times, start), pitch] += 1
        change[np.searchsorted(times, stop), pitch] -= 1
        return cls(times=times, roll=np.cumsum(change, axis=0, dtype=np.int8)[:-1].astype(bool))

    @cached_property
    def ticks(self) -> Ints:
        """int64 [S], the length of each segment."""
        return np.diff(self.times)

    @cached_property
    def polyphony(self) -> Ints:
        """int64 [S], the number of different pitches that sound."""
        count: Ints = self.roll.sum(axis=1)
        return count

    @cached_property
    def pitch_classes(self) -> Ints:
        """int64 [S, 12], the number of different pitches that sound in each pitch class."""
        padded = np.pad(self.roll, ((0, 0), (0, -NUM_PITCHES % 12)))
        count: Ints = padded.reshape(len(padded), padded.shape[1] // 12, 12).sum(axis=1)
        return count


def _union(start: Ints, stop: Ints, pitch: Ints) -> tuple[Ints, Ints, Ints]:
    """The union of the intervals of each pitch: overlapping and touching ones become one."""
    if len(start) == 0:
        return start, stop, pitch
    order = np.lexsort((start, pitch))
    start, stop, pitch = start[order], stop[order], pitch[order]
    # Pitches are laid end to end on one time line, so one running maximum serves all of them.
    offset = pitch * (int(stop.max()) + 2)
    reach = np.maximum.accumulate(stop + offset)
    first = np.ones(len(start), bool)
    first[1:] = start[1:] + offset[1:] > reach[:-1]
    last = np.append(np.flatnonzero(first)[1:] - 1, len(start) - 1)
    return start[first], reach[last] - offset[last], pitch[first]


def _bars_through_end(score: Score, end: int) -> Ints:
    """`bar_ticks` up to the bar that holds tick `end`, and the end of that bar: int64 [B + 1]."""
    starts = bar_ticks(score)
    length = 4 * score.ticks_per_quarter
    for mark in score.time_signatures:
        if mark.time <= starts[-1]:
            length = max(4 * score.ticks_per_quarter * mark.numerator // mark.denominator, 1)
    ends = starts[-1] + length * np.arange(1, max(end - starts[-1], 0) // length + 2)
    return np.concatenate([starts, ends]).astype(np.int64)
