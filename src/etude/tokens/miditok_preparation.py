"""What a score loses before MidiTok sees it, so that its silent drops and slow paths are never reached.

MidiTok 3.1 drops time signatures that it doesn't know (later bars are then misplaced), moves those within a bar to the
next bar, rounds cut time to a sixth of a quarter (its beat is the half note), and prunes repeated tempos in quadratic
time. Here metres are rewritten to equal bars that it knows or refused, short bars get a metre of their own, and
tempos are pruned.
"""

import numpy as np
from symusic import Score, Tempo, TimeSignature, Track

NUMERATORS = range(1, 16)
DENOMINATORS = (4, 8, 16)


def supported_metre(numerator: int, denominator: int) -> tuple[int, int]:
    """A metre of equal bar length with a denominator of 4, 8 or 16 and up to 15 beats.

    Raises:
        ValueError: there is none.
    """
    n, d = numerator, denominator
    while 0 < d < DENOMINATORS[0]:
        n, d = 2 * n, 2 * d
    while n % 2 == 0 and (d > DENOMINATORS[-1] or n not in NUMERATORS):
        n, d = n // 2, d // 2
    if d not in DENOMINATORS or n not in NUMERATORS:
        raise ValueError(
            f"metre {numerator}/{denominator} can't be written as 1-15 quarters, eighths or sixteenths; "
            "notate it with shorter bars"
        )
    return n, d


def metres(score: Score) -> list[TimeSignature]:
    """Time signatures from tick 0 on, each at a bar line of the one before.

    A bar that the next signature cuts short gets one of its own length where a sixteenth measures it.

    Raises:
        ValueError: a metre without an equal that is supported.
    """
    marks: dict[int, tuple[int, int]] = {0: (4, 4)}
    for mark in sorted(score.time_signatures, key=lambda mark: mark.time):
        marks[max(0, mark.time)] = supported_metre(mark.numerator, mark.denominator)
    times = sorted(marks)
    result: list[TimeSignature] = []
    for time, end in zip(times, [*times[1:], None], strict=True):
        n, d = marks[time]
        result.append(TimeSignature(time, n, d))
        rest = 0 if end is None else (end - time) % (4 * score.ticks_per_quarter * n // d)
        if end is not None and rest and (short := _metre_of(rest, score.ticks_per_quarter)):
            if end - rest == time:
                result.pop()
            result.append(TimeSignature(end - rest, *short))
    return result


def _metre_of(ticks: int, ticks_per_quarter: int) -> tuple[int, int] | None:
    for d in DENOMINATORS:
        n, rest = divmod(ticks * d, 4 * ticks_per_quarter)
        if rest == 0 and n in NUMERATORS:
            return n, d
    return None


def prepare(score: Score, *, tempos: np.ndarray) -> Score:
    """A copy with notes, supported metres and tempos of the vocabulary only; tracks by program, drums last.

    Args:
        score: any score.
        tempos: the vocabulary's tempos in beats per minute, increasing.

    Raises:
        ValueError: no notes, or a metre that can't be written.
    """
    result = Score(score.ticks_per_quarter)
    for track in score.tracks:
        if len(track.notes):
            kept = Track(name=track.name, program=track.program, is_drum=track.is_drum)
            kept.notes = track.notes
            result.tracks.append(kept)
    # a fixed order, so that a decoded piece is encoded again to the same tokens
    result.tracks = sorted(result.tracks, key=lambda track: (track.is_drum, track.program))
    if not len(result.tracks):
        raise ValueError("the piece has no notes; leave it out")
    result.time_signatures.extend(metres(score))
    end = score.end()
    previous = None
    changes = {max(0, tempo.time): tempo.qpm for tempo in score.tempos if tempo.time <= end}
    for time, qpm in sorted({0: 120.0, **changes}.items()):
        nearest = float(tempos[np.abs(1 / tempos - 1 / max(qpm, 1e-3)).argmin()])
        if nearest != previous:
            result.tempos.append(Tempo(time, qpm=nearest))
        previous = nearest
    return result


def cut_at_next_onset(time: np.ndarray, duration: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Durations, cut where the same pitch is struck again later; all arrays [notes], times in ticks."""
    onsets, index = np.unique(np.stack([pitch.astype(np.int64), time.astype(np.int64)]), axis=1, return_inverse=True)
    following = np.full(onsets.shape[1], np.iinfo(np.int32).max, dtype=np.int64)
    same = onsets[0, 1:] == onsets[0, :-1]
    following[:-1][same] = onsets[1, 1:][same]
    return np.minimum(duration, following[index.reshape(-1)] - time).astype(np.int32)
