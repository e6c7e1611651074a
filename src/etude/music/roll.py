"""Piano rolls at the frame rate of a spectrogram: one channel for each instrument and pitch, onset and sustain apart.

Shapes: n notes, p instruments, f frames.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from symusic import Score

from etude.music.instruments import INSTRUMENT_NAMES
from etude.music.score import num_notes, seconds_at

DRUMS = 128  # the instrument number of the drum kit, beside the General-MIDI programs 0 to 127
PITCHES = 128
FAMILY = 8  # programs of a General-MIDI family
KINDS = ("onset", "sustain")  # the first axis of a roll
ONSET, END, INSTRUMENT, PITCH, VELOCITY = range(5)  # columns of a note table
LOUDEST = 127.0


def note_table(score: Score) -> np.ndarray:
    """Returns the notes of a score, float64 [n, 5], by onset: onset and end in seconds, instrument, pitch, velocity.

    The instrument is the General-MIDI program, or `DRUMS`.

    Raises:
        ValueError: the score has no notes.
    """
    if num_notes(score) == 0:
        raise ValueError("the score has no notes; give one that has some")
    tables = []
    for track in score.tracks:
        notes = track.notes.numpy()
        onsets = notes["time"].astype(np.int64)
        instrument = np.full(len(onsets), DRUMS if track.is_drum else track.program)
        times = [seconds_at(score, onsets), seconds_at(score, onsets + notes["duration"])]
        tables.append(np.stack([*times, instrument, notes["pitch"], notes["velocity"]], axis=1).astype(np.float64))
    table = np.concatenate(tables)
    return table[np.lexsort((table[:, PITCH], table[:, INSTRUMENT], table[:, ONSET]))]


def instruments_of(tables: Iterable[np.ndarray]) -> tuple[int, ...]:
    """Returns the instruments that occur in note tables, in increasing order."""
    return tuple(sorted({int(number) for table in tables for number in np.unique(table[:, INSTRUMENT])}))


def instrument_name(instrument: int) -> str:
    """Returns the General-MIDI name of an instrument, "Drums" for `DRUMS`."""
    return "Drums" if instrument == DRUMS else INSTRUMENT_NAMES[instrument]


def stand_in(instrument: int, known: Sequence[int]) -> int | None:
    """Returns the instrument of `known` that plays the part of `instrument`: itself, else the nearest of its family (eight
    programs), else the nearest program. None if there is none: the drum kit plays no pitches, and no program plays drums.
    """
    if instrument in known:
        return instrument
    pitched = [number for number in known if number != DRUMS]
    if instrument == DRUMS or not pitched:
        return None
    return min(pitched, key=lambda number: (number // FAMILY != instrument // FAMILY, abs(number - instrument), number))


def played_by(table_n5: np.ndarray, known: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """Returns a note table for the instruments `known` alone, and what was changed, one phrase for each instrument.

    Parts of other instruments are played by their `stand_in`; parts without one are left out.
    """
    found, told = table_n5.copy(), []
    for instrument in instruments_of([table_n5]):
        if instrument in known:
            continue
        rows, other = found[:, INSTRUMENT] == instrument, stand_in(instrument, known)
        if other is None:
            found = found[~rows]
            told.append(f"{instrument_name(instrument)} left out")
        else:
            found[rows, INSTRUMENT] = other
            told.append(f"{instrument_name(instrument)} played by {instrument_name(other)}")
    return found, told


def frames_of(table_n5: np.ndarray, *, frame_seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first frame of each note and the one after its last, int64 [n] each.

    Frame i is the time [i, i + 1) * frame_seconds. A note has the frame of its onset and all frames up to its end, at least one.
    """
    # a note that ends at a border must not light the frame behind it because of rounding
    first = np.floor(table_n5[:, ONSET] / frame_seconds + 1e-6).astype(np.int64)
    stop = np.ceil(table_n5[:, END] / frame_seconds - 1e-6).astype(np.int64)
    return first, np.maximum(stop, first + 1)


def fill_roll(
    roll_kptf: np.ndarray, table_n5: np.ndarray, instruments: Sequence[int], *, start: int, frame_seconds: float
) -> None:
    """Writes notes into a roll of zeros [2, p, 128, f] whose first frame is `start`: velocity / 127 at onset and in all frames.

    Of two notes of one instrument and pitch in a frame, the louder counts. Instruments that are not in `instruments` are left
    out; `played_by` gives their notes to others before.
    """
    length = roll_kptf.shape[-1]
    first, stop = frames_of(table_n5, frame_seconds=frame_seconds)
    place = {instrument: number for number, instrument in enumerate(instruments)}
    for row in np.flatnonzero((first < start + length) & (stop > start)):
        _, _, instrument, pitch, velocity = table_n5[row]
        if int(instrument) not in place:
            continue
        onset_f, sustain_f = roll_kptf[:, place[int(instrument)], int(pitch)]
        value, begin = velocity / LOUDEST, int(first[row]) - start
        if begin >= 0:
            onset_f[begin] = max(onset_f[begin], value)
        sounding = sustain_f[max(begin, 0) : int(stop[row]) - start]
        np.maximum(sounding, value, out=sounding)


def piano_roll(
    table_n5: np.ndarray, instruments: Sequence[int], *, start: int, num_frames: int, frame_seconds: float
) -> np.ndarray:
    """Returns the roll of notes, float32 [2, p, 128, f]; see `fill_roll`."""
    roll = np.zeros((len(KINDS), len(instruments), PITCHES, num_frames), np.float32)
    fill_roll(roll, table_n5, instruments, start=start, frame_seconds=frame_seconds)
    return roll
