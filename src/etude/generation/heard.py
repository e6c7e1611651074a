"""What a score has of the chords, registers, simultaneous notes and notes in a bar that were asked for, read off its notes alone.

None of this code is shared with the rules by which notes are written; only the reading of chord symbols is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from symusic import Score

from etude.music.chords import Progression
from etude.music.passages import Passage, added, tracks_named
from etude.music.score import bar_ticks
from etude.music.theory import note_name
from etude.tokens.open_holes import track_owners
from etude.tokens.restrictions import owner_of_each
from etude.tokens.wishes import NO_MOST, Range, parse_wishes

OBEYED = 2 / 3 - 1e-6  # of the sounding time of a bar: then the bar has its chord
MANY = 64  # tracks of a program that are told apart


@dataclass(frozen=True)
class Portion:
    """The notes of a score that were written, and the bars in which they were.

    score: all of it. onset, end: ticks [n]. pitch: [n]. track: the index of each note's track [n].
    bars: the ticks at which the bars begin, and of the end of the last one.
    programs: those that were asked for, whose order numbers the tracks; None where the score's own order does.
    """

    score: Score
    onset: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    track: np.ndarray
    bars: np.ndarray
    programs: Sequence[int] | None

    def covered(self, who: str | int | None = None) -> np.ndarray:
        """Which notes are of the tracks that a name or a number stands for, bool [n]; without one, those of all but drums."""
        if who is None:
            found = [index for index, track in enumerate(self.score.tracks) if not track.is_drum]
        elif isinstance(who, int) and self.programs is not None:
            owner = owner_of_each(self.programs, parts=MANY)[who - 1]
            found = [index for index, mine in enumerate(track_owners(self.score, parts=MANY)) if mine == owner]
        else:
            try:
                found = tracks_named(self.score, who, option="")
            except ValueError:  # it plays no note
                found = []
        return np.isin(self.track, found)


def portion(
    score: Score, *, num_bars: int | None = None, prompt: Score | None = None, passage: Passage | None = None,
    programs: Sequence[int] | None = None,
) -> Portion:  # fmt: skip
    """Returns what was written of a score: all of it, what continues a prompt, or what fills a passage in.

    num_bars: the length that was asked for; None up to the last bar in which a note begins.
    """
    starts = [int(tick) for tick in bar_ticks(score)]
    first, last = 0, num_bars or len(starts)
    if passage is not None:
        first, last = passage.start, passage.end
    elif prompt is not None:
        first = len(bar_ticks(prompt))
    notes: list[tuple[int, int, int, int]] = []
    for index, track in enumerate(score.tracks):
        new = list(track.notes)
        if prompt is not None and passage is None and index < len(prompt.tracks):
            new = added(prompt.tracks[index], track)
        if passage is None or passage.tracks is None or index in passage.tracks:
            notes += [(n.time, n.end, n.pitch, index) for n in new]
    bars = _filled_up(score, starts, max(last, first) + 1)[first:]
    if num_bars is None and passage is None and notes:
        bars = bars[: 1 + max(1, int(np.searchsorted(bars, max(n[0] for n in notes), side="right")))]
    columns = np.array([n for n in notes if bars[0] <= n[0] < bars[-1]], dtype=np.int64).reshape(-1, 4)
    named = programs if prompt is None else None
    return Portion(score, columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], np.array(bars), named)


def _filled_up(score: Score, starts: list[int], count: int) -> list[int]:
    """The first `count` bar lines, with those behind the last note in the last metre."""
    metres = [mark for mark in score.time_signatures if mark.time <= starts[-1]]
    length = 4 * score.ticks_per_quarter
    if metres:
        length = length * metres[-1].numerator // metres[-1].denominator
    return [*starts[:count], *(starts[-1] + length * i for i in range(1, count - len(starts) + 1))]


def chord_shares(written: Portion, progression: Progression) -> np.ndarray:
    """Returns how much of the sounding time of each bar belongs to its chords, [bars]; 0 for silence, NaN without a chord."""
    pitched = written.covered()
    shares = np.full(len(written.bars) - 1, np.nan)
    for number, (start, stop) in enumerate(zip(written.bars[:-1], written.bars[1:], strict=True)):
        inside = total = 0.0
        chords = progression.bars[number % len(progression.bars)]
        lines = np.linspace(start, stop, len(chords) + 1)
        for chord, low, high in zip(chords, lines[:-1], lines[1:], strict=True):
            sounding = np.clip(np.minimum(written.end, high) - np.maximum(written.onset, low), 0, None) * pitched
            if chord is not None:
                belongs = np.isin(written.pitch % 12, sorted(chord.pitch_classes))
                inside, total = inside + sounding[belongs].sum(), total + sounding.sum()
        if any(chord is not None for chord in chords):
            shares[number] = inside / total if total else 0.0
    return shares


def bass_shares(written: Portion, progression: Progression) -> float:
    """Returns the share of places where a chord begins at which the lowest sounding note is its bass note; NaN without notes."""
    hits: list[bool] = []
    for number, (start, stop) in enumerate(zip(written.bars[:-1], written.bars[1:], strict=True)):
        chords = progression.bars[number % len(progression.bars)]
        for chord, at in zip(chords, np.linspace(start, stop, len(chords) + 1)[:-1], strict=True):
            sounding = written.pitch[(written.onset <= at + 1) & (written.end > at + 1) & written.covered()]
            if chord is not None and len(sounding):
                hits.append(int(sounding.min()) % 12 == chord.bass)
    return float(np.mean(hits)) if hits else float("nan")


def most_at_a_time(written: Portion, who: str | int | None = None) -> int:
    """Returns the largest number of notes that sound together. who: of which tracks, as in `Portion.covered`."""
    chosen = written.covered(who)
    onset, end = written.onset[chosen], written.end[chosen]
    return max((int(((onset <= at) & (end > at)).sum()) for at in np.unique(onset)), default=0)


def notes_of_bars(written: Portion, who: str | int | None = None) -> np.ndarray:
    """Returns how many notes begin in each bar, [bars]. who: of which tracks, as in `Portion.covered`."""
    counts: np.ndarray = np.histogram(written.onset[written.covered(who)], written.bars)[0]
    return counts


def heard_rows(labels: Mapping[str, Any], pieces: Sequence[Portion]) -> list[tuple[str, str, str, str]]:
    """Returns rows (option, asked, got, share that has it) for what labels ask of the notes, as `asked_and_got` does."""
    wishes, rows = parse_wishes(labels), []
    if wishes is None or not pieces:
        return []
    if wishes.progression is not None:
        shares = np.concatenate([chord_shares(piece, wishes.progression) for piece in pieces])
        shares = shares[~np.isnan(shares)]
        together = [piece for piece in pieces if len(np.unique(piece.track[piece.covered()])) > 1]  # a tune alone has no bass
        basses = [share for piece in together if (share := bass_shares(piece, wishes.progression)) == share]
        got = f"{shares.mean():.0%} of the sounding time" if len(shares) else "no chord"
        got += f", the bass note lowest at {np.mean(basses):.0%} of the chords" if basses else ""
        rows.append(("chords", str(labels["chords"]), got, _share(shares >= OBEYED, "bars")))
    for option, ranges in (("register", wishes.registers), ("polyphony", wishes.polyphony), ("density", wishes.density)):
        for one in ranges:
            found = [_found(option, piece, one.who) for piece in pieces]
            fit = np.array([all(one.low <= value <= one.high for value in values) for values in found])
            name = option if one.who is None else f"{option} of {one.who}"
            rows.append((name, _in_words(option, one), _span(option, [v for each in found for v in each]), _share(fit)))
    return rows


def heard_values(labels: Mapping[str, Any], piece: Portion) -> dict[str, str]:
    """Returns what one piece has of what labels ask of the notes: "got chords" -> in words."""
    return {f"got {name}": got for name, _, got, _ in heard_rows(labels, [piece])}


def _share(fit: np.ndarray, what: str = "") -> str:
    return f"{fit.mean():.0%} of {len(fit)} {what}".rstrip() if len(fit) else "none"


def _found(option: str, piece: Portion, who: str | int | None) -> list[int]:
    if option == "register":
        pitched = piece.covered(None)
        pitches = piece.pitch[piece.covered(who) & pitched]
        return [int(pitches.min()), int(pitches.max())] if len(pitches) else []
    return [most_at_a_time(piece, who)] if option == "polyphony" else [int(count) for count in notes_of_bars(piece, who)]


def _span(option: str, values: Sequence[int]) -> str:
    """The lowest and the highest of numbers."""
    if not values:
        return "nothing"
    ends = [note_name(end) if option == "register" else str(end) for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


def _in_words(option: str, one: Range) -> str:
    if option == "register":
        return f"{note_name(one.low)} to {note_name(one.high)}"
    if option == "polyphony":
        return f"at most {one.high}"
    return f"{one.low} or more" if one.high >= NO_MOST else f"{one.low} to {one.high}"
