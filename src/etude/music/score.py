"""Read scores from files, refuse damaged ones, and compute bars and lengths of scores.

A score is a `symusic.Score` in ticks, `TICKS_PER_QUARTER` to a quarter note. MIDI is read by symusic (about 0.1 ms a file),
notation by music21 (about 60 ms a piece, see `notation`).
"""

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from symusic import KeySignature, Score, Tempo, TimeSignature
from symusic.core import NoteTickList

from etude.music import notation
from etude.music.notation import TICKS_PER_QUARTER
from etude.wording import counted

MIDI_SUFFIXES = frozenset({".mid", ".midi"})
MUSICXML_SUFFIXES = frozenset({".xml", ".musicxml", ".mxl"})
ABC_SUFFIXES = frozenset({".abc"})
HUMDRUM_SUFFIXES = frozenset({".krn"})
SUFFIXES = MIDI_SUFFIXES | MUSICXML_SUFFIXES | ABC_SUFFIXES | HUMDRUM_SUFFIXES

KINDS = {"midi": MIDI_SUFFIXES, "musicxml": MUSICXML_SUFFIXES, "abc": ABC_SUFFIXES, "humdrum": HUMDRUM_SUFFIXES}

MAX_DURATION_SECONDS = 3 * 60 * 60
MAX_DURATION_BEATS = 100_000  # nine hours at 180 quarters a minute: limits arrays where a very fast tempo makes the seconds few
MAX_FILE_BYTES = 64 * 2**20
DEFAULT_TEMPO_BPM = 120.0  # Source: Standard MIDI Files 1.0, the tempo where none is set
MAX_REASON_CHARACTERS = 160


class ScoreError(ValueError):
    """A file or piece that can't be used; its message is one printable line: '<file>: <problem>; <remedy>'."""

    def __init__(self, path: str | Path, problem: str, remedy: str) -> None:
        super().__init__(f"{printable(path)}: {printable(problem)}; {remedy}")
        self.path, self.problem, self.remedy = path, problem, remedy

    def __reduce__(self) -> tuple[type["ScoreError"], tuple[str | Path, str, str]]:
        """Pickles its three parts, so that a parsing process can send it to its parent."""
        return ScoreError, (self.path, self.problem, self.remedy)


def printable(text: str | Path) -> str:
    """Returns `text` as one line of printable characters; bytes of a file name that are not UTF-8 become \\xNN."""
    line = os.fsencode(text).decode("utf-8", "backslashreplace") if isinstance(text, Path) else text
    line = line.encode("utf-8", "backslashreplace").decode("utf-8")
    return " ".join("".join(character if character.isprintable() else " " for character in line).split())


def kind(path: Path) -> str:
    """Returns the kind of a file by its suffix: midi, musicxml, abc or humdrum; the suffix itself for any other."""
    suffix = path.suffix.lower()
    return next((name for name, suffixes in KINDS.items() if suffix in suffixes), suffix)


def read_all(path: str | Path) -> tuple[list[tuple[str, Score]], str]:
    """Returns (piece name, score) of every readable piece of a file, and the problems of the others in one line, or ''."""
    pieces: list[tuple[str, Score]] = []
    try:
        for piece in read_pieces(path):
            pieces.append(piece)
    except ScoreError as error:
        return pieces, str(error)
    return pieces, ""


def read_pieces(path: str | Path) -> Iterator[tuple[str, Score]]:
    """Yields (piece name, score) for every piece in a MIDI, MusicXML, ABC or Humdrum file.

    The piece of a file with one piece has the name of the file without its suffix. The tunes of an ABC book are named
    'stem#number title'. All readable tunes are yielded first; then one error is raised for all others. Repeats are not
    expanded.

    Raises:
        ScoreError: unreadable, damaged or empty file, unknown suffix, no notes, negative times, or a piece longer than
            `MAX_DURATION_SECONDS`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ScoreError(path, f"unknown kind of file '{suffix}'", f"give one of {', '.join(sorted(SUFFIXES))}")
    data = _read_bytes(path)
    if suffix in ABC_SUFFIXES:
        yield from _read_tunes(path, data)
    else:
        yield path.stem, _read_one(path, suffix, data)


def read_score(path: str | Path) -> Score:
    """Reads the first piece of the file at `path`; raises ScoreError as `read_pieces` does."""
    return next(score for _, score in read_pieces(path))


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ScoreError(path, f"the file has {size} bytes, over {MAX_FILE_BYTES}", "split it into pieces")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ScoreError(path, "there is no such file", f"give one of {', '.join(sorted(SUFFIXES))}") from error
    except OSError as error:
        raise ScoreError(path, f"can't be read ({error.strerror})", "allow reading it, or give another file") from error
    if not data.strip():
        raise ScoreError(path, "the file is empty", "copy or export it again")
    return data


# a problem of this process, not of the file; where memory is limited a parser that is imported late may fail in other ways
OUT_OF_MEMORY = (MemoryError, ImportError, SystemError)


def _read_one(path: Path, suffix: str, data: bytes) -> Score:
    try:
        if suffix in MIDI_SUFFIXES:
            score = _read_midi(path, data)
        elif suffix in MUSICXML_SUFFIXES:
            score = notation.read_musicxml(data)
        else:
            score = notation.read_humdrum(_text(data))
    except ScoreError:
        raise
    except OUT_OF_MEMORY as error:
        raise MemoryError(str(error)) from error
    except Exception as error:  # parsers raise all kinds of exceptions on a damaged file
        raise ScoreError(path, f"damaged {suffix} file ({_reason(error)})", "export it again, or remove it") from error
    return normalise(_checked(score, path))


def _read_midi(path: Path, data: bytes) -> Score:
    if not data.startswith(b"MThd"):
        raise ScoreError(
            path,
            "not a MIDI file: the header 'MThd' is missing",
            "give the file the suffix of what it holds, or export it as MIDI",
        )
    if len(data) > 12 and data[12] & 0x80:
        raise ScoreError(path, "its times are in SMPTE frames, not in beats", "export it with ticks per quarter note")
    return Score.from_midi(data)


def tunes(path: Path, data: bytes | None = None) -> list[tuple[str, str]]:
    """Returns (piece name, text) of each tune of an ABC file; data: the content of the file, if it is known."""
    found = notation.split_abc(_text(path.read_bytes() if data is None else data))
    if len(found) == 1:
        return [(path.stem, found[0][1])]
    return [(printable(f"{path.stem}#{number} {title}".strip()), text) for number, (title, text) in enumerate(found, start=1)]


def _read_tunes(path: Path, data: bytes) -> Iterator[tuple[str, Score]]:
    book, bad = tunes(path, data), list[str]()
    for number, (name, text) in enumerate(book, start=1):
        try:
            score = checked_tune(notation.read_abc(text), path)
        except ScoreError as error:
            bad.append(f"tune {number}: {error.problem}")
        except OUT_OF_MEMORY as error:
            raise MemoryError(str(error)) from error
        except Exception as error:  # see _read_one
            bad.append(f"tune {number}: {_reason(error)}")
        else:
            yield name, score
    if bad:
        raise ScoreError(
            path, f"{len(bad)} of {counted(len(book), 'tune')} can't be read ({', '.join(bad)})", "correct or remove these tunes"
        )


def _text(data: bytes) -> str:
    """Decodes ABC or Humdrum, which have no fixed encoding, as UTF-8, or as Latin-1 if it is not valid UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, zipfile.BadZipFile):
        text = "not a complete zip archive"
    return f"{type(error).__name__}: {text}"[:MAX_REASON_CHARACTERS]


def _checked(score: Score, path: Path) -> Score:
    """Returns `score` itself if its notes, times and marks are valid and it is not too long; else raises ScoreError."""
    if score.ticks_per_quarter <= 0:
        raise ScoreError(path, "its resolution is 0 ticks per quarter", "export it again")
    if num_notes(score) == 0:
        raise ScoreError(path, "it holds no notes", "remove it")
    events = (score.tempos, score.time_signatures, score.key_signatures, *(track.notes for track in score.tracks))
    times = [timed.numpy()["time"] for timed in events]
    durations = np.concatenate([track.notes.numpy()["duration"] for track in score.tracks])
    # ticks have 32 bits: times that overflow become negative
    if min(int(t.min()) for t in times if len(t)) < 0 or int(durations.min()) < 0:
        raise ScoreError(path, "it holds negative times", "export it again, or remove it")
    metre = score.time_signatures.numpy()
    if np.any(metre["numerator"] < 1) or not np.all(np.isin(metre["denominator"], 2 ** np.arange(8))):
        raise ScoreError(path, "a time signature is not n/1 ... n/128", "correct it in a score editor")
    if np.any(score.tempos.numpy()["mspq"] < 1):
        raise ScoreError(path, "a tempo is 0 microseconds per quarter", "correct it in a score editor")
    seconds = duration_seconds(score)
    if seconds > MAX_DURATION_SECONDS or duration_beats(score) > MAX_DURATION_BEATS:
        raise ScoreError(
            path,
            f"it is {seconds / 3600:.1f} h or {duration_beats(score):.0f} beats long, over "
            f"{MAX_DURATION_SECONDS // 3600} h or {MAX_DURATION_BEATS} beats",
            "cut it into pieces",
        )
    return score


def checked_tune(score: Score, path: Path) -> Score:
    """Returns `normalise(score)` of a score of the file `path`. Raises: ScoreError if it is not valid or too long."""
    return normalise(_checked(score, path))


def normalise(score: Score) -> Score:
    """Returns a sorted copy with `TICKS_PER_QUARTER`, without empty tracks, repeated marks and notes shorter than a tick."""
    score = score.resample(TICKS_PER_QUARTER, min_dur=1)
    tracks = [track for track in score.tracks if len(track.notes)]
    score.tracks.clear()
    score.tracks.extend(tracks)
    score.sort()
    # MIDI files may repeat their marks in every track; the last one at a tick counts
    score.time_signatures = _distinct(score.time_signatures, lambda mark: (mark.numerator, mark.denominator))
    score.key_signatures = _distinct(score.key_signatures, lambda mark: (mark.key, mark.tonality))
    score.tempos = _distinct(score.tempos, lambda mark: mark.mspq)
    return score


def _distinct(marks: Iterable[Any], value: Callable[[Any], object]) -> list[Any]:
    """Returns the marks by time: the last one at each tick, without those that equal the previous mark."""
    last = {mark.time: mark for mark in marks}
    kept: list[Any] = []
    for _, mark in sorted(last.items()):
        if not kept or value(kept[-1]) != value(mark):
            kept.append(mark)
    return kept


def num_notes(score: Score) -> int:
    """The number of notes in all tracks."""
    return sum(len(track.notes) for track in score.tracks)


def end_tick(score: Score) -> int:
    """The tick at which the last note ends, 0 without notes; marks after it do not count."""
    ends = [track.notes.numpy() for track in score.tracks if len(track.notes)]
    # 64 bits, since in a damaged file the sum may not fit in 32
    return max((int((notes["time"].astype(np.int64) + notes["duration"]).max()) for notes in ends), default=0)


def duration_beats(score: Score) -> float:
    """Length in quarter notes, from 0 to the end of the last note."""
    return float(end_tick(score) / score.ticks_per_quarter)


def seconds_at(score: Score, ticks: np.ndarray) -> np.ndarray:
    """Converts `ticks` [N] to seconds [N] by the tempo marks, with `DEFAULT_TEMPO_BPM` before the first mark."""
    marks = score.tempos.numpy()
    starts = np.concatenate([[0], marks["time"]]).astype(np.int64)
    mspq = np.concatenate([[60e6 / DEFAULT_TEMPO_BPM], marks["mspq"]])
    order = np.argsort(starts, kind="stable")
    starts, rates = starts[order], mspq[order] / 1e6 / score.ticks_per_quarter
    elapsed = np.concatenate([[0.0], np.cumsum(np.diff(starts) * rates[:-1])])
    ticks = np.asarray(ticks, dtype=np.int64)
    index = np.searchsorted(starts, ticks, side="right") - 1
    seconds: np.ndarray = elapsed[index] + (ticks - starts[index]) * rates[index]
    return seconds


def duration_seconds(score: Score) -> float:
    """Length in seconds, from 0 to the end of the last note."""
    return float(seconds_at(score, np.array([end_tick(score)]))[0])


def bar_ticks(score: Score) -> np.ndarray:
    """The ticks at which bars start, int64 [bars], the first at 0 and the last before the end of the last note.

    The metre is 4/4 until the first time signature. A time signature within a bar ends that bar and starts another. A bar
    of n/d lasts 4 n / d quarters.
    """
    quarter = score.ticks_per_quarter
    marks = [(mark.time, 4 * quarter * mark.numerator // mark.denominator) for mark in score.time_signatures]
    end = max(1, end_tick(score))
    marks = [(0, 4 * quarter), *((time, length) for time, length in marks if time < end)]
    stops = [*(time for time, _ in marks[1:]), end]
    return np.concatenate([np.arange(start, stop, length) for (start, length), stop in zip(marks, stops, strict=True)])


def num_bars(score: Score) -> int:
    """The number of bars that `bar_ticks` gives: at least 1."""
    return len(bar_ticks(score))


def trim(score: Score, *, first_bar: int = 0, num_bars: int | None = None) -> Score:
    """Returns `num_bars` bars of `score` from `first_bar` on (None: to the end), moved to time 0.

    Notes that start in them are kept and cut at the end. The metre, key and tempo in effect at the start are set there.

    Raises:
        ValueError: first_bar outside 0 .. bars - 1, or num_bars below 1.
    """
    bars = bar_ticks(score)
    if not 0 <= first_bar < len(bars):
        raise ValueError(f"first_bar is {first_bar}, must be 0 to {len(bars) - 1} in this score; give one of these")
    if num_bars is not None and num_bars < 1:
        raise ValueError(f"num_bars is {num_bars}, must be at least 1; leave it out for all bars to the end")
    start = int(bars[first_bar])
    last = len(bars) if num_bars is None else first_bar + num_bars
    stop = int(bars[last]) if last < len(bars) else max(end_tick(score), start + 1)
    part = score.clip(start, stop).shift_time(-start)
    part.time_signatures = [
        TimeSignature(max(0, m.time - start), m.numerator, m.denominator) for m in _marks_in(score.time_signatures, start, stop)
    ]
    part.key_signatures = [
        KeySignature(max(0, m.time - start), m.key, m.tonality) for m in _marks_in(score.key_signatures, start, stop)
    ]
    part.tempos = [Tempo(max(0, m.time - start), mspq=m.mspq) for m in _marks_in(score.tempos, start, stop)]
    for track in part.tracks:
        notes = track.notes.numpy()
        ends = np.minimum(notes["time"] + notes["duration"], stop - start)
        durations = (ends - notes["time"]).astype(np.int32)
        track.notes = NoteTickList.from_numpy(notes["time"], durations, notes["pitch"], notes["velocity"])
    return part


def _marks_in(marks: Iterable[Any], start: int, stop: int) -> list[Any]:
    """Returns the marks in [start, stop) and the one in effect at `start`."""
    before = [mark for mark in marks if mark.time <= start]
    return before[-1:] + [mark for mark in marks if start < mark.time < stop]
