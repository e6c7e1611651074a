"""Arrange the melody of a score for a folk, rock or jazz band.

The arrangements of one tune make *paired* audio: the same tune, key, tempo and bars in every style, each with its own
instruments, drums, register, accompaniment and swing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from symusic import Score, Tempo, TimeSignature, Track
from symusic.core import NoteTickList

from etude.music.notation import TICKS_PER_QUARTER
from etude.music.score import DEFAULT_TEMPO_BPM, bar_ticks, end_tick, normalise, seconds_at
from etude.music.theory import MAJOR_SCALE, MINOR_SCALE, Key, estimate_key

Note = tuple[int, int, int, int]  # tick, duration, pitch, velocity
KICK, SNARE, SIDE_STICK, CLOSED_HAT, PEDAL_HAT, CRASH, RIDE = 36, 38, 37, 42, 44, 49, 51
DRUMS = -1


@dataclass(frozen=True)
class Arrangement:
    """How a style plays a tune.

    melody, chords, bass: General-MIDI programs; None leaves the part out.
    octave: octaves by which the melody is transposed.
    comping: the rhythm of the chords: strum (on every beat), power (root and fifth, held as long as the chord) or
        offbeat (half a beat after every beat, with sevenths).
    walking: whether the bass plays the notes of the chord in turn, one a beat, instead of the root on every half beat.
    drums: none, straight (kick, snare, hats) or ride (ride cymbal, pedal hat).
    swing: the position in the beat at which its second half begins, 0.5 (straight) to 0.75. Compound metres are not swung.
    """

    melody: int
    chords: int
    bass: int | None
    octave: int
    comping: str
    walking: bool
    drums: str
    swing: float


ARRANGEMENTS = {
    "folk": Arrangement(melody=40, chords=25, bass=None, octave=0, comping="strum", walking=False, drums="none", swing=0.5),
    "rock": Arrangement(melody=30, chords=29, bass=33, octave=-1, comping="power", walking=False, drums="straight", swing=0.5),
    "jazz": Arrangement(melody=66, chords=0, bass=32, octave=-1, comping="offbeat", walking=True, drums="ride", swing=0.64),
}


def arrange(score: Score, style: str | Arrangement, *, max_seconds: float = 30.0) -> Score:
    """Arranges the melody of a score in a style.

    The melody is the highest note at every onset. The chord of each half bar is the diatonic triad that contains most of
    its melody. The result is deterministic and is cut to whole bars within `max_seconds`.

    Args:
        score: any score with a pitched note.
        style: folk, rock or jazz, or how another style plays.
        max_seconds: greatest length, above 0.

    Raises:
        ValueError: an unknown style, or a score without a pitched note.
    """
    if isinstance(style, str) and style not in ARRANGEMENTS:
        raise ValueError(f"style={style} is not one of {', '.join(ARRANGEMENTS)}; give one of these")
    plan = ARRANGEMENTS[style] if isinstance(style, str) else style
    score = normalise(score)
    melody = _melody(score)
    bars = _bars(score, max_seconds)
    melody = [note for note in melody if note[0] < bars[-1][1]]
    if not melody:
        raise ValueError("score holds no pitched note in its first bars, so there is nothing to arrange")
    key = estimate_key(score)
    chords = [(start, stop, _chord(melody, start, stop, key)) for bar in bars for start, stop in _halves(bar)]
    parts: list[tuple[int, list[Note]]] = [(plan.melody, _transposed(melody, 12 * plan.octave, bars[-1][1]))]
    parts.append((plan.chords, _comping(chords, bars, plan.comping)))
    if plan.bass is not None:
        parts.append((plan.bass, _bass(chords, bars, walking=plan.walking)))
    if plan.drums != "none":
        parts.append((DRUMS, _drums(bars, plan.drums)))
    arranged = Score(TICKS_PER_QUARTER)
    arranged.time_signatures = score.time_signatures
    arranged.tempos = score.tempos if len(score.tempos) else [Tempo(0, DEFAULT_TEMPO_BPM)]
    for program, notes in parts:
        notes = _swung(notes, bars, plan.swing)
        track = Track(program=max(0, program), is_drum=program == DRUMS)
        columns = np.array(notes, dtype=np.int32).reshape(-1, 4).T
        track.notes = NoteTickList.from_numpy(columns[0], columns[1], columns[2].astype(np.int8), columns[3].astype(np.int8))
        arranged.tracks.append(track)
    arranged.sort()
    return arranged


Bar = tuple[int, int, int]  # start, stop, beat in ticks


def _bars(score: Score, max_seconds: float) -> list[Bar]:
    if not max_seconds > 0:
        raise ValueError(f"max_seconds={max_seconds} must be above 0")
    starts = bar_ticks(score)
    marks = [(0, TimeSignature(0, 4, 4)), *((mark.time, mark) for mark in score.time_signatures)]
    stops = [*starts[1:].tolist(), end_tick(score)]
    bars = []
    for start, stop in zip(starts.tolist(), stops, strict=True):
        metre = [mark for time, mark in marks if time <= start][-1]
        unit = 4 * score.ticks_per_quarter // metre.denominator
        compound = metre.denominator >= 8 and metre.numerator % 3 == 0
        stop = max(stop, start + 1) if stop != stops[-1] else start + unit * metre.numerator
        bars.append((start, stop, 3 * unit if compound else unit))
    ends = seconds_at(score, np.array([bar[1] for bar in bars]))
    kept = max(1, int((ends <= max_seconds).sum()))
    return bars[:kept]


def _melody(score: Score) -> list[Note]:
    """The highest note at every onset, cut where the next one begins."""
    highest: dict[int, Note] = {}
    for track in score.tracks:
        if track.is_drum:
            continue
        for note in track.notes:
            known = highest.get(note.time)
            if known is None or note.pitch > known[2]:
                highest[note.time] = (note.time, note.duration, note.pitch, 96)
    notes = [highest[time] for time in sorted(highest)]
    following = [note[0] for note in notes[1:]]
    if not notes:
        return []
    return [(t, min(d, nxt - t), p, v) for (t, d, p, v), nxt in zip(notes, [*following, 1 << 30], strict=True)]


def _halves(bar: Bar) -> list[tuple[int, int]]:
    """Returns the halves of a bar of an even number of beats, from 4; any other bar as a whole."""
    start, stop, beat = bar
    beats = (stop - start) // beat
    if beats >= 4 and beats % 2 == 0:
        middle = start + beats // 2 * beat
        return [(start, middle), (middle, stop)]
    return [(start, stop)]


def _chord(melody: Sequence[Note], start: int, stop: int, key: Key) -> tuple[int, int, int]:
    """Pitch classes (root, third, fifth) of the diatonic triad that contains most of the melody in [start, stop)."""
    weight = np.zeros(12)
    for time, duration, pitch, _ in melody:
        weight[pitch % 12] += max(0, min(time + duration, stop) - max(time, start))
    scale = [(key.tonic + step) % 12 for step in (MAJOR_SCALE if key.mode == "major" else MINOR_SCALE)]
    degrees = (0, 4, 3, 5, 1) if key.mode == "major" else (0, 6, 3, 5, 2)  # of equally good ones, the first is chosen
    triads = [(scale[d], scale[(d + 2) % 7], scale[(d + 4) % 7]) for d in degrees]
    fits = [weight[list(triad)].sum() + 0.3 * weight[triad[0]] for triad in triads]
    return triads[int(np.argmax(np.round(fits, 6)))]


def _transposed(melody: Sequence[Note], semitones: int, stop: int) -> list[Note]:
    """The melody moved by `semitones`, then by octaves into 40..100, and cut at tick `stop`."""
    moved = []
    for time, duration, pitch, velocity in melody:
        pitch += semitones
        while pitch < 40:
            pitch += 12
        while pitch > 100:
            pitch -= 12
        moved.append((time, max(1, min(duration, stop - time)), pitch, velocity))
    return moved


def _above(pitch_class: int, floor: int) -> int:
    """The lowest pitch of a class at or above `floor`."""
    return floor + (pitch_class - floor) % 12


def _comping(chords: Sequence[tuple[int, int, tuple[int, int, int]]], bars: Sequence[Bar], kind: str) -> list[Note]:
    notes: list[Note] = []
    for start, stop, triad in chords:
        beat = next(bar[2] for bar in bars if bar[0] <= start < bar[1])
        root, third, fifth = triad
        if kind == "power":
            low = _above(root, 40)
            notes += [(start, stop - start, pitch, 80) for pitch in (low, _above(fifth, low), low + 12)]
            continue
        seventh = (fifth + (fifth - third) % 12) % 12  # a third above the fifth: an approximate seventh
        classes = (root, third, fifth) if kind == "strum" else (third, fifth, seventh)
        pitches = [_above(pitch_class, 52) for pitch_class in classes]
        for time in range(start, stop, beat):
            struck = time if kind == "strum" else time + beat // 2
            notes += [(struck, max(1, min(beat, stop - struck)), pitch, 70) for pitch in pitches]
    return notes


def _bass(chords: Sequence[tuple[int, int, tuple[int, int, int]]], bars: Sequence[Bar], *, walking: bool) -> list[Note]:
    notes: list[Note] = []
    for start, stop, triad in chords:
        beat = next(bar[2] for bar in bars if bar[0] <= start < bar[1])
        step = beat if walking else max(1, beat // 2)
        root = _above(triad[0], 28)
        line = [root, _above(triad[1], root), _above(triad[2], root), _above(triad[1], root)] if walking else [root]
        for count, time in enumerate(range(start, stop, step)):
            notes.append((time, min(step, stop - time), line[count % len(line)], 90))
    return notes


def _drums(bars: Sequence[Bar], kind: str) -> list[Note]:
    notes: list[Note] = []
    for start, stop, beat in bars:
        for count, time in enumerate(range(start, stop, beat)):
            strokes: list[tuple[int, int, int]]
            if kind == "straight":
                strokes = [(time, KICK if count % 2 == 0 else SNARE, 100), (time, CLOSED_HAT, 70)]
                strokes.append((time + beat // 2, CLOSED_HAT, 60))
            else:
                strokes = [(time, RIDE, 80)]
                if count % 2 == 1:
                    strokes += [(time, PEDAL_HAT, 70), (time + beat // 2, RIDE, 60)]
            notes += [(at, min(beat // 2, 120), drum, velocity) for at, drum, velocity in strokes if at < stop]
    return notes


def _swung(notes: Sequence[Note], bars: Sequence[Bar], swing: float) -> list[Note]:
    """Moves the middle of each beat to the fraction `swing` of it; times between are moved linearly."""
    if swing == 0.5:
        return list(notes)
    starts = np.array([bar[0] for bar in bars])

    def warp(tick: int) -> int:
        start, stop, beat = bars[max(0, int(np.searchsorted(starts, tick, side="right")) - 1)]
        if tick >= stop or beat % 2 or beat > TICKS_PER_QUARTER:  # compound metres are not swung
            return tick
        base = start + (tick - start) // beat * beat
        phase = (tick - base) / beat
        moved = phase * swing * 2 if phase < 0.5 else swing + (phase - 0.5) * (1 - swing) * 2
        return base + round(moved * beat)

    return [(warp(t), max(1, warp(t + d) - warp(t)), p, v) for t, d, p, v in notes]
