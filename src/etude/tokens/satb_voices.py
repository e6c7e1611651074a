"""Convert scores to frames of four voices, and runs of equal frames to notes."""

import numpy as np
from symusic import Score

REST = -1
DIVISI_SHARE = 0.05  # largest share of a voice's steps in which it may divide; above it, it counts as several voices
MELODIC_TRACKS = 4
REFUSAL = "the SATB grid needs exactly four tracks of one voice each; use tokenizer=remi"


def voices_to_frames(score: Score, *, steps_per_beat: int) -> np.ndarray:
    """Converts a piece in four tracks of one voice each to frames, highest voice first.

    Onsets and ends are rounded to the grid, but a note lasts at least one step. Where a voice divides briefly (up to 5 % of
    its steps), the bass keeps its lowest note and the others their highest. A note that overlaps the next one ends at its
    onset.

    Returns:
        int16 [T, 4] of MIDI pitches, -1 for a rest.

    Raises:
        ValueError: not exactly four tracks with notes, or a track of several voices.
    """
    notes = [score.tracks[index].notes.numpy() for index in voice_tracks(score)]
    spans = [_grid(n, score.ticks_per_quarter, steps_per_beat) for n in notes]
    frames = np.full((max(int(end.max()) for _, end in spans), 4), REST, dtype=np.int16)
    num_voices = 0
    for voice, (note, (start, end)) in enumerate(zip(notes, spans, strict=True)):
        steps = _fill(frames[:, voice], start, end, note["pitch"], keep_lowest=voice == MELODIC_TRACKS - 1)
        divided = int((end - start).sum()) - steps
        num_voices += 1 if divided <= DIVISI_SHARE * steps else int(np.ceil(1 + divided / steps))
    if num_voices != MELODIC_TRACKS:
        raise ValueError(f"found {num_voices} voices or more in 4 tracks; {REFUSAL}")
    return frames


def voice_tracks(score: Score) -> tuple[int, ...]:
    """Returns the tracks that are soprano, alto, tenor and bass: those with notes but drums, ordered by mean pitch.

    Raises: ValueError if there are not exactly four.
    """
    found = [i for i, track in enumerate(score.tracks) if len(track.notes) and not track.is_drum]
    if len(found) != MELODIC_TRACKS:
        raise ValueError(f"found {len(found)} tracks with notes; {REFUSAL}")
    notes = [score.tracks[i].notes.numpy() for i in found]
    height = [-float(np.average(n["pitch"], weights=n["duration"] + 1)) for n in notes]
    return tuple(index for _, index in sorted(zip(height, found, strict=True)))


def on_grid(tick: int, ticks_per_quarter: int, steps_per_beat: int) -> int:
    """Returns the step that is nearest to a tick."""
    return int(np.floor(tick * steps_per_beat / ticks_per_quarter + 0.5))


def _grid(note: dict[str, np.ndarray], ticks_per_quarter: int, steps_per_beat: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the start and end of each note in steps; each lasts at least one step."""
    scale = steps_per_beat / ticks_per_quarter
    start = np.floor(note["time"] * scale + 0.5).astype(np.int64)
    end = np.floor((note["time"] + note["duration"]) * scale + 0.5).astype(np.int64)
    return start, np.maximum(end, start + 1)


def _fill(column: np.ndarray, start: np.ndarray, end: np.ndarray, pitch: np.ndarray, *, keep_lowest: bool) -> int:
    """Writes notes into one voice, later onsets over earlier ones; returns the number of steps that sound."""
    rank = -pitch.astype(np.int64) if keep_lowest else pitch.astype(np.int64)
    for i in np.lexsort((rank, start)).tolist():
        column[start[i] : end[i]] = pitch[i]
    return int((column != REST).sum())


def reduce_to_frames(score: Score, *, steps_per_beat: int, low: int, high: int) -> np.ndarray:
    """Reduces any piece to four voices: the top note, the highest and lowest inner note and the bottom note of each step.

    If fewer notes sound, the tenor rests first, then the alto, then the bass. Pitches outside low..high are moved into it by
    octaves. Drums are left out.

    Returns:
        int16 [T, 4] of MIDI pitches, -1 for a rest.

    Raises:
        ValueError: no pitched notes.
    """
    tracks = [track.notes.numpy() for track in score.tracks if len(track.notes) and not track.is_drum]
    if not tracks:
        raise ValueError("the piece has no pitched notes; give one with notes outside the drum track")
    notes = {key: np.concatenate([track[key] for track in tracks]) for key in ("time", "duration", "pitch")}
    start, end = _grid(notes, score.ticks_per_quarter, steps_per_beat)
    roll = np.zeros((int(end.max()), 128), dtype=bool)
    for s, e, p in zip(start.tolist(), end.tolist(), notes["pitch"].tolist(), strict=True):
        roll[s:e, fold(p, low=low, high=high)] = True
    frames = np.full((len(roll), 4), REST, dtype=np.int16)
    for step, sounding in enumerate(roll):
        pitches = np.flatnonzero(sounding)[::-1]
        if len(pitches):
            frames[step, 0] = pitches[0]
        if len(pitches) > 1:
            frames[step, 3] = pitches[-1]
        if len(pitches) > 2:
            frames[step, 1] = pitches[1]
        if len(pitches) > 3:
            frames[step, 2] = pitches[-2]
    return frames


def fold(pitch: int, *, low: int, high: int) -> int:
    """Moves a pitch by octaves into low..high; if that is impossible, since the range is below an octave, returns `low`."""
    while pitch < low:
        pitch += 12
    while pitch > high:
        pitch -= 12
    return max(pitch, low)


def runs(column: np.ndarray) -> list[tuple[int, int, int]]:
    """Returns (start, end, pitch) of each run of equal pitches of one voice, rests left out."""
    if len(column) == 0:
        return []
    edges = np.flatnonzero(np.diff(column)) + 1
    starts, ends = np.append(0, edges), np.append(edges, len(column))
    rows = zip(starts.tolist(), ends.tolist(), column[starts].tolist(), strict=True)
    return [(start, end, pitch) for start, end, pitch in rows if pitch != REST]


def metre(length: int, *, steps_per_beat: int) -> tuple[int, int]:
    """Returns the time signature of a bar of `length` steps, with the largest note value up to a quarter that fits."""
    denominator = 4
    while length * denominator % (4 * steps_per_beat) and denominator < 64:
        denominator *= 2
    return max(1, length * denominator // (4 * steps_per_beat)), denominator
