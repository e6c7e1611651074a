"""Limits for notation files, checked in their text before music21 parses them.

One line of text can cause hours of work: the time of music21 grows with the square of the number of beats of a metre, and
with the square of the length of a bar of ABC. Files that exceed what any real score needs are refused here quickly.
"""

import re
from fractions import Fraction
from pathlib import Path

MAX_BEATS = 64  # of a metre: music21 needs 0.5 s for 64/4 and 20 s for 511/4
MAX_UNIT = 512  # the shortest note value is a 512th
MAX_NOTE_QUARTERS = 256  # 64 whole notes
MAX_BAR_UNITS = 512  # longest bar of ABC, in units of its shortest note
MAX_TUPLET = 32
MAX_OCTAVES = 10
BASE_SECONDS, SECONDS_PER_MB = 60.0, 20.0  # time limit for a file: music21 reads about a megabyte of MusicXML per second
BASE_BYTES, BYTES_PER_BYTE = 2 * 2**30, 64  # memory limit for a file: music21 needs about 30 bytes for each byte of MusicXML
MXL_RATIO = 10  # estimated size of the document over that of its .mxl archive

_ABC_FIELD = re.compile(r"^([A-Za-z]):[ \t]*(.*)$")
_ABC_TOKEN = re.compile(
    r"\[([A-Za-z]):([^\]]*)\]"  # 1, 2: an inline field
    r'|"[^"]*"|![^!]*!|\+[^+]*\+'  # chord symbols and decorations
    r"|\((\d+)(?::(\d*))?(?::(\d*))?"  # 3, 4, 5: a tuplet
    r"|(\[)(?=[\^_=A-Ga-gxz])"  # 6: a chord begins
    r"|(?:(\])|[\^_=]*([A-Ga-gxyzXZ])([,']*))(\d*)(/*)(\d*)"  # 7: a chord ends, or 8, 9: a note; 10, 11, 12: its length
    r"|([|:])"  # 13: a bar line
)


def reading_limits(path: Path) -> tuple[float, int]:
    """Returns the seconds and bytes of memory that reading the file at `path` may take, based on its size."""
    size = path.stat().st_size if path.is_file() else 0
    size *= MXL_RATIO if path.suffix.lower() == ".mxl" else 1
    return BASE_SECONDS + SECONDS_PER_MB * size / 2**20, BASE_BYTES + BYTES_PER_BYTE * size


def check_musicxml(document: bytes) -> None:
    """Raises ValueError for a metre beyond `MAX_BEATS`."""
    for beats in re.findall(rb"<beats>([^<]*)</beats>", document):
        _check_beats(beats.decode("latin-1"))


def check_humdrum(text: str) -> None:
    """Raises ValueError for a metre beyond `MAX_BEATS`."""
    for beats in re.findall(r"^(?:.*\t)?\*M([\d+]+)/", text, flags=re.MULTILINE):
        _check_beats(beats)


def check_abc(tune: str) -> None:
    """Raises ValueError for a metre, note, bar, tuplet or octave beyond what any tune needs."""
    checker = _AbcChecker()
    for line in tune.splitlines():
        field = _ABC_FIELD.match(line)
        if field:
            checker.field(field[1], field[2])
        elif not line.startswith("%"):
            checker.line(line.partition("%")[0])


class _AbcChecker:
    """Checks one tune bar by bar; lengths are in quarter notes."""

    def __init__(self) -> None:
        self.unit, self.metre = Fraction(1, 2), Fraction(4)
        self.chord: Fraction | None = None  # inside a chord: its longest note so far
        self._next_bar()

    def _next_bar(self) -> None:
        self.length, self.shortest = Fraction(0), Fraction(1)

    def field(self, name: str, value: str) -> None:
        """Processes a field such as M: (metre) or L: (unit note length)."""
        number = re.match(r"\s*\(?([\d+\s]+)\)?\s*/\s*(\d+)", value)
        if name in "MmLl" and number:
            beats, unit = sum(_integer(part) for part in re.findall(r"\d+", number[1])), _integer(number[2])
            if not 1 <= unit <= MAX_UNIT:
                raise ValueError(f"{name}:{value.strip()[:20]} has a note value of 1/{unit}, the shortest is 1/{MAX_UNIT}")
            _check_beats(str(beats))
            if name in "Ll":
                self.unit = Fraction(4 * beats, unit)
            else:
                self.metre = Fraction(4 * beats, unit)
        elif name == "V":
            self._next_bar()

    def line(self, line: str) -> None:
        """Processes a line of music."""
        for found in _ABC_TOKEN.finditer(line):
            if found[1]:
                self.field(found[1], found[2])
            elif found[3]:
                if max(_integer(found[n] or "0") for n in (3, 4, 5)) > MAX_TUPLET:
                    raise ValueError(f"{found[0][:20]} is a tuplet of more than {MAX_TUPLET} notes")
            elif found[6]:
                self.chord = Fraction(0)
            elif found[7] or found[8]:
                self._note(found)
            elif found[13]:
                self._next_bar()

    def _note(self, found: re.Match[str]) -> None:
        """Processes a note, a rest or the end of a chord."""
        if len(found[9] or "") > MAX_OCTAVES:
            raise ValueError(f"{found[0][:20]} is more than {MAX_OCTAVES} octaves away")
        halvings = len(found[11])
        divisor = _integer(found[12]) if found[12] else 2 ** min(halvings, 30)
        if divisor == 0 or divisor > 64 * MAX_UNIT:
            raise ValueError(f"{found[0][:20]} divides a note by {divisor}")
        factor = Fraction(_integer(found[10] or "1"), divisor)
        if found[8] in ("Z", "X"):  # rests of whole bars
            length = self.metre * factor
        elif found[7]:
            length, self.chord = (self.chord or Fraction(0)) * factor, None
        else:
            length = self.unit * factor
        if length > MAX_NOTE_QUARTERS:
            raise ValueError(f"{found[0][:20]} lasts {float(length):.0f} quarter notes, at most {MAX_NOTE_QUARTERS} are read")
        if self.chord is not None:
            self.chord = max(self.chord, length)
            return
        self.length += length
        self.shortest = min(self.shortest, length) if length else self.shortest
        if self.length > MAX_BAR_UNITS * self.shortest:
            raise ValueError(f"a bar holds more than {MAX_BAR_UNITS} times its shortest note; add bar lines (at {found[0][:20]})")


def _integer(digits: str) -> int:
    return int(digits[:12])  # more digits exceed every limit and would be slow to convert


def _check_beats(beats: str) -> None:
    numbers = [_integer(part) for part in re.findall(r"\d+", beats)]
    if sum(numbers) > MAX_BEATS:
        raise ValueError(f"a metre has {beats.strip()[:12]} beats, at most {MAX_BEATS} are read")
