"""What a tokenizer changes in a piece: the piece beside what is decoded from its tokens, told in words."""

from collections import Counter

import numpy as np
from symusic import Score

from etude.music.score import bar_ticks, num_notes, seconds_at
from etude.wording import counted

Mark = tuple[int, int]


def first_metre(score: Score) -> Mark:
    """Numerator and denominator at the start; 4/4 where the score names none."""
    marks = [mark for mark in score.time_signatures if mark.time <= 0]
    return (marks[-1].numerator, marks[-1].denominator) if marks else (4, 4)


def bar_lengths(score: Score) -> set[float]:
    """The lengths of the bars of all its metres, in quarter notes."""
    marks = {first_metre(score), *((mark.numerator, mark.denominator) for mark in score.time_signatures)}
    return {4 * numerator / denominator for numerator, denominator in marks}


def lost(before: Score, after: Score) -> dict[str, int]:
    """What a piece loses, as words that follow a number of pieces -> how many notes (or marks) it concerns; see `changes`."""
    drums = _notes(before, drums=True) - _notes(after, drums=True)
    pitched = _notes(before) - _notes(after)
    speeds, levels = ([len(found(score)) for score in (before, after)] for found in (_tempos, _velocities))
    moved = (_onsets(before) - _onsets(after)).total()
    found = {
        "lose drums": drums,
        "have repeated notes joined or notes left out": pitched,
        "have notes moved in time or pitch": 0 if pitched else moved,
        "lose their instruments": len(_programs(before) - _programs(after)),
        "lose dynamics": levels[0] - levels[1] if levels[1] <= 1 else 0,
        "lose changes of tempo": speeds[0] - speeds[1] if speeds[1] <= 1 else 0,
        "get other bars": len(bar_lengths(before) ^ bar_lengths(after)),
    }
    return {what: count for what, count in found.items() if count > 0}


def _notes(score: Score, *, drums: bool = False) -> int:
    return sum(len(track.notes) for track in score.tracks if track.is_drum == drums)


def _programs(score: Score) -> set[int]:
    return {track.program for track in score.tracks if len(track.notes) and not track.is_drum}


def _velocities(score: Score) -> set[int]:
    return {note.velocity for track in score.tracks for note in track.notes}


def _tempos(score: Score) -> set[int]:
    return {round(mark.qpm) for mark in score.tempos}


def changes(before: Score, after: Score) -> list[str]:
    """One phrase for each thing that differs: metre, tempo, programs, drums, notes joined or lost, notes moved in time.

    before: the piece. after: the same piece, encoded and decoded.
    """
    found = []
    if first_metre(before) != first_metre(after):
        found.append(f"the metre {_metre(before)} becomes {_metre(after)}")
    elif len(bar_ticks(before)) != len(bar_ticks(after)):
        found.append(f"{len(bar_ticks(before))} bars become {len(bar_ticks(after))}")
    tempos = [round(first_tempo(score)) for score in (before, after)]
    if tempos[0] != tempos[1]:
        found.append(f"the tempo {tempos[0]} becomes {tempos[1]} beats per minute")
    programs = [{track.program for track in score.tracks if not track.is_drum} for score in (before, after)]
    if programs[0] != programs[1]:
        found.append(f"the programs {sorted(programs[0])} become {sorted(programs[1])}")
    drums = [sum(len(track.notes) for track in score.tracks if track.is_drum) for score in (before, after)]
    if drums[0] != drums[1]:
        found.append(f"{drums[0]} drum notes become {drums[1]}")
    pitched = [num_notes(score) - count for score, count in zip((before, after), drums, strict=True)]
    if pitched[0] != pitched[1]:
        found.append(f"{pitched[0]} pitched notes become {pitched[1]} (repeated ones are joined, others left out)")
    moved = (_onsets(before) - _onsets(after)).total()
    if moved and pitched[0] == pitched[1]:
        found.append(f"{counted(moved, 'note is', 'notes are')} moved in time or pitch")
    return found


def _metre(score: Score) -> str:
    return "{}/{}".format(*first_metre(score))


def first_tempo(score: Score) -> float:
    """Beats (quarters) per minute over the first quarter note."""
    return 60.0 / float(seconds_at(score, np.array([score.ticks_per_quarter]))[0])


def _onsets(score: Score) -> Counter[tuple[float, int]]:
    quarter = score.ticks_per_quarter
    return Counter((round(n.time / quarter, 3), n.pitch) for track in score.tracks if not track.is_drum for n in track.notes)
