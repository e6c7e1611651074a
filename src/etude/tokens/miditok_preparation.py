"""Prepare scores for MidiTok, so that it changes nothing silently.

MidiTok 3.1 drops time signatures that it doesn't know (which misplaces later bars), moves time signatures within a bar to
the next bar, rounds the notes of cut time to a sixth of a quarter (its beat is the half note), and removes repeated tempos
in quadratic time. Here metres are replaced by supported ones with bars of the same length, or refused; shortened bars get
a time signature of their own; and repeated tempos are removed.
"""

import numpy as np
from symusic import Score, Tempo, TimeSignature, Track

NUMERATORS = range(1, 16)
DENOMINATORS = (4, 8, 16)


def supported_metre(numerator: int, denominator: int) -> tuple[int, int]:
    """Returns a metre with the same bar length, a denominator of 4, 8 or 16 and up to 15 beats.

    Raises:
        ValueError: there is no such metre.
    """
    n, d = numerator, denominator
    while 0 < d < DENOMINATORS[0]:
        n, d = 2 * n, 2 * d
    while n % 2 == 0 and (d > DENOMINATORS[-1] or n not in NUMERATORS):
        n, d = n // 2, d // 2
    if d not in DENOMINATORS or n not in NUMERATORS:
        raise ValueError(
            f"metre {numerator}/{denominator} can't be written as 1-15 quarters, eighths or sixteenths; "
            "write the piece with shorter bars"
        )
    return n, d


def metres(score: Score) -> list[TimeSignature]:
    """Returns supported time signatures from tick 0 on, each at a bar line.

    A bar that the next time signature cuts short gets a time signature of its own length, if that is a whole number of
    sixteenths.

    Raises:
        ValueError: a metre that has no supported equivalent.
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
    """Returns a copy with only notes, supported metres and tempos of the vocabulary; tracks by program, drums last.

    Args:
        score: any score.
        tempos: the tempos of the vocabulary in beats per minute, increasing.

    Raises:
        ValueError: no notes, or a metre that can't be represented.
    """
    result = Score(score.ticks_per_quarter)
    for track in score.tracks:
        if len(track.notes):
            kept = Track(name=track.name, program=track.program, is_drum=track.is_drum)
            kept.notes = track.notes
            result.tracks.append(kept)
    # a fixed order, so that encoding a decoded piece gives the same tokens
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
    """Cuts durations at the next onset of the same pitch; all arrays [notes], times in ticks."""
    onsets, index = np.unique(np.stack([pitch.astype(np.int64), time.astype(np.int64)]), axis=1, return_inverse=True)
    following = np.full(onsets.shape[1], np.iinfo(np.int32).max, dtype=np.int64)
    same = onsets[0, 1:] == onsets[0, :-1]
    following[:-1][same] = onsets[1, 1:][same]
    cut: np.ndarray = np.minimum(duration, following[index.reshape(-1)] - time).astype(np.int32)
    return cut
