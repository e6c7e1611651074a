"""Passages of a score: bars of all or some tracks, whose notes are taken out and others put in; all else stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from symusic import Note, Score, Track

from etude.music.instruments import INSTRUMENT_NAMES
from etude.music.score import bar_ticks

FAMILIES = {  # words for several General MIDI programs; a name such as "violin" stands for the programs that contain it
    "piano": range(8), "organ": range(16, 24), "guitar": range(24, 32), "bass": range(32, 40), "strings": range(40, 52),
    "choir": range(52, 55), "brass": range(56, 64), "reed": range(64, 72), "pipe": range(72, 80), "synth": range(80, 104),
}  # fmt: skip
END = 2**62  # a tick that no score reaches


@dataclass(frozen=True)
class Passage:
    """The notes that begin in bars [start, end), counted from 0, of some tracks.

    tracks: indices of the score's tracks; None for all.
    """

    start: int
    end: int
    tracks: tuple[int, ...] | None = None

    def span(self, score: Score) -> tuple[int, int]:
        """First tick of the passage and first one after it; where the score ends before it ends, there is no such tick."""
        ticks = bar_ticks(score)
        if self.start >= len(ticks):
            return END, END
        return int(ticks[self.start]), int(ticks[self.end]) if self.end < len(ticks) else END


def passage_of(score: Score, *, bars: Sequence[int] | int | None, tracks: Sequence[str | int] | str | int | None) -> Passage:
    """Returns the passage that a user names.

    Args:
        bars: [first, last], both counted from 1 and included; a number for one bar; None for all bars.
        tracks: numbers from 1 on, names of tracks, "drums", instruments such as "violin", families such as "bass"; None for all.

    Raises:
        ValueError: bars outside of the score, a track that it does not have, or neither bars nor tracks.
    """
    if bars is None and tracks is None:
        raise ValueError("infill has neither bars nor tracks; give infill.bars=[4,8], infill.tracks=[bass] or both")
    count = len(bar_ticks(score))
    first, last_bar = (1, count) if bars is None else (bars, bars) if isinstance(bars, int) else _pair(bars)
    if not 1 <= first <= last_bar <= count:
        raise ValueError(f"infill.bars={_shown(bars)}: the piece has bars 1 to {count}; give [FIRST,LAST] among them")
    if tracks is None:
        return Passage(first - 1, last_bar)
    wanted = [tracks] if isinstance(tracks, str | int) else list(tracks)
    found = {index for one in wanted for index in tracks_named(score, one, option="infill.tracks")}
    return Passage(first - 1, last_bar, tuple(sorted(found)))


def _pair(bars: Sequence[int]) -> tuple[int, int]:
    if len(bars) != 2 or not all(isinstance(bar, int) for bar in bars):
        raise ValueError(f"infill.bars={_shown(bars)} must be [FIRST,LAST], such as [4,8], or one number")
    return bars[0], bars[1]


def _shown(bars: object) -> str:
    return str(bars).replace(" ", "")


def tracks_named(score: Score, wanted: str | int, *, option: str) -> list[int]:
    """Returns the indices of the tracks with notes that a number from 1 on, a name, an instrument or a family stands for.

    option: named where there is none. Raises: ValueError: the score has no such track.
    """
    playing = [i for i, track in enumerate(score.tracks) if len(track.notes)]
    if isinstance(wanted, int):
        found = [wanted - 1] if wanted - 1 in playing else []
    else:
        word = wanted.strip().lower()
        found = [i for i in playing if score.tracks[i].name.strip().lower() == word] or [
            i for i in playing if _plays(score.tracks[i], word)
        ]
    if not found:
        names = ", ".join(f"{i + 1} {track_name(score.tracks[i])}" for i in playing)
        raise ValueError(f"{option} has {wanted}, which the piece lacks; its tracks are {names or 'none'}")
    return found


def _plays(track: Track, word: str) -> bool:
    if track.is_drum or word == "drums":
        return track.is_drum and word == "drums"
    return track.program in FAMILIES.get(word, ()) or word in INSTRUMENT_NAMES[track.program].lower()


def track_name(track: Track) -> str:
    """The name of a track, or else of its instrument."""
    return track.name.strip() or ("Drums" if track.is_drum else INSTRUMENT_NAMES[track.program])


def without(score: Score, passage: Passage, *, span: tuple[int, int] | None = None) -> Score:
    """Returns a copy of the score without the notes that begin in the passage. span: its ticks; None for those of the score."""
    result, (low, high) = score.copy(), span or passage.span(score)
    for index, track in enumerate(result.tracks):
        if passage.tracks is None or index in passage.tracks:
            track.notes = [note for note in track.notes if not low <= note.time < high]
    return result


def replaced(score: Score, passage: Passage, tracks: Mapping[int, Track], others: Iterable[Track] = ()) -> Score:
    """Returns a copy of the score whose passage has other notes.

    Args:
        tracks: index of a track -> a track with its new notes, in the score's ticks per quarter, from the passage's start on.
        others: tracks that the score lacks, likewise.
    """
    result, (low, _) = without(score, passage), passage.span(score)
    for index, track in tracks.items():
        result.tracks[index].notes.extend(_moved(track.notes, low))
        result.tracks[index].notes.sort()
    for track in others:
        new = Track(name=track.name, program=track.program, is_drum=track.is_drum)
        new.notes.extend(_moved(track.notes, low))
        result.tracks.append(new)
    return result


def _moved(notes: Iterable[Note], ticks: int) -> list[Note]:
    return [Note(note.time + ticks, note.duration, note.pitch, note.velocity) for note in notes]


def added(before: Track, after: Track) -> list[Note]:
    """Returns the notes of `after` that `before` lacks, in their order."""
    have = Counter((n.time, n.duration, n.pitch, n.velocity) for n in before.notes)
    new = []
    for note in after.notes:
        key = (note.time, note.duration, note.pitch, note.velocity)
        if have[key]:
            have[key] -= 1
        else:
            new.append(note)
    return new


def same_outside(score: Score, other: Score, passage: Passage) -> bool:
    """Whether two scores have the same notes outside of a passage; tracks that only one has play in the passage alone."""
    if len(other.tracks) < len(score.tracks):
        return False
    span = passage.span(max(score, other, key=lambda each: len(bar_ticks(each))))
    return all(
        np.array_equal(_table(a.notes.numpy()), _table(b.notes.numpy()))
        for a, b in zip(without(score, passage, span=span).tracks, without(other, passage, span=span).tracks, strict=False)
    )


def _table(notes: Mapping[str, np.ndarray]) -> np.ndarray:
    rows = np.stack([notes[name].astype(np.int64) for name in ("time", "duration", "pitch", "velocity")], axis=1)
    ordered: np.ndarray = rows[np.lexsort(rows.T)]
    return ordered
