"""Read notation (MusicXML, ABC, Humdrum) into a `symusic.Score` with music21.

Times are ticks, `TICKS_PER_QUARTER` to a quarter note. Tied notes are merged, transposing instruments are converted to
concert pitch, chord symbols and grace notes are left out, and repeats are not expanded. A piece with an upbeat starts with
a rest that completes the first bar. Parsing happens in memory: music21's pickle cache is neither read nor written.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from symusic import KeySignature, Score, Tempo, TimeSignature, Track
from symusic.core import NoteTickList

from etude.music.bounds import check_abc, check_humdrum, check_musicxml

if TYPE_CHECKING:
    from music21.stream import Stream

TICKS_PER_QUARTER = 480
DEFAULT_VELOCITY = 70  # music21's mezzo forte: 0.55 of 127
SNARE_DRUM = 38  # General MIDI drum key for unpitched notes whose instrument the file does not name
MAX_XML_BYTES = 256 * 2**20  # a full opera is about 100 MB; a larger document may be a decompression bomb


def musicxml_text(data: bytes) -> bytes:
    """Returns the MusicXML document in `data`, which is the document itself or an .mxl archive with it.

    Raises:
        ValueError: the archive contains no score, or one larger than `MAX_XML_BYTES`.
        zipfile.BadZipFile: the archive is damaged.
    """
    if not data.startswith(b"PK"):
        return _utf8(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # META-INF/container.xml is not used: some exporters write file names into it without escaping them
        paths = [
            name
            for name in archive.namelist()
            if name.lower().endswith((".xml", ".musicxml")) and not name.startswith(("META-INF", "__MACOSX"))
        ]
        if not paths:
            raise ValueError("the archive holds no MusicXML document")
        if archive.getinfo(paths[0]).file_size > MAX_XML_BYTES:
            raise ValueError(f"the archive's score is larger than {MAX_XML_BYTES // 2**20} MB")
        return _utf8(archive.read(paths[0]))


def _utf8(document: bytes) -> bytes:
    """Converts an XML document to UTF-8, since music21 can't read the UTF-16 of older exporters."""
    if not document.startswith((b"\xff\xfe", b"\xfe\xff")):
        return document
    text = document.decode("utf-16")
    return re.sub(r"""(<\?xml[^>]*?)\s+encoding=["'][^"']*["']""", r"\1", text, count=1).encode("utf-8")


def read_musicxml(data: bytes) -> Score:
    """Reads the score of a MusicXML document or .mxl archive; any exception of the parser is passed on."""
    from music21.musicxml.xmlObjects import MusicXMLWarning
    from music21.musicxml.xmlToM21 import MusicXMLImporter

    importer: Any = MusicXMLImporter()  # type: ignore[no-untyped-call]
    document = musicxml_text(data)
    check_musicxml(document)
    importer.xmlText = document
    with warnings.catch_warnings():
        # music21 warns about hairpins, pedals and brackets that it leaves out; a `Score` has none of them anyway
        warnings.simplefilter("ignore", MusicXMLWarning)
        importer.parseXMLText()
    return from_music21(importer.stream)


def read_humdrum(text: str) -> Score:
    """Reads the score of a Humdrum **kern document."""
    from music21.humdrum.spineParser import HumdrumDataCollection

    check_humdrum(text)
    document = HumdrumDataCollection(text)
    document.parse()
    return from_music21(document.stream)


def split_abc(text: str) -> list[tuple[str, str]]:
    """Splits an ABC tune book into tunes (title, text), each from its `X:` field on; the header of the book is left out."""
    starts = [match.start() for match in re.finditer(r"^X:", text, flags=re.MULTILINE)]
    if not starts:
        return [("", text)]
    tunes = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    titles = [re.search(r"^T:[ \t]*(.*)$", tune, flags=re.MULTILINE) for tune in tunes]
    return [(title.group(1).strip() if title else "", tune) for title, tune in zip(titles, tunes, strict=True)]


def read_abc(text: str) -> Score:
    """Reads the score of one ABC tune."""
    from music21 import converter

    check_abc(text)
    return from_music21(converter.parseData(text, format="abc"))


def from_music21(stream: "Stream[Any]") -> Score:
    """Converts a music21 stream to a score: a track for each part, and the metre, key and tempo marks.

    Args:
        stream: a Score, Part or any stream with notes; an Opus (several pieces) is refused: convert its scores.

    Returns:
        A sorted score of `TICKS_PER_QUARTER` without empty tracks; it has no notes if the stream has none.
    """
    from music21 import stream as m21

    if isinstance(stream, m21.Opus):
        raise ValueError("stream is an Opus, which holds several pieces; convert each of its scores instead")
    parts = list(stream.parts) if isinstance(stream, m21.Score) and stream.parts else [stream]
    upbeat = max((_upbeat_rest(part) for part in parts), default=0)
    score = Score(TICKS_PER_QUARTER)
    marks = _Marks()
    for part in parts:
        events = sorted(_walk(part, 0.0), key=lambda event: event[:2])
        track = _convert_part(part, [(_ticks(offset), element) for offset, _, element in events], upbeat, marks)
        if len(track.notes):
            score.tracks.append(track)
    score.time_signatures.extend(marks.metres.values())
    score.key_signatures.extend(marks.keys.values())
    score.tempos.extend(marks.tempos.values())
    score.sort()
    return score


class _Marks:
    """Metre, key and tempo marks by tick; of several parts with a mark at the same tick, the first one counts."""

    def __init__(self) -> None:
        self.metres: dict[int, TimeSignature] = {}
        self.keys: dict[int, KeySignature] = {}
        self.tempos: dict[int, Tempo] = {}

    def add(self, tick: int, element: Any, transposition: int) -> None:
        """Adds `element` if it is such a mark; a key is transposed to concert pitch by `transposition` semitones."""
        from music21 import key, meter, tempo

        if isinstance(element, meter.TimeSignature):
            self.metres.setdefault(tick, TimeSignature(tick, element.numerator, element.denominator))
        elif isinstance(element, key.KeySignature):
            minor = int(isinstance(element, key.Key) and element.mode == "minor")
            # a semitone is seven steps on the circle of fifths, modulo 12; the result is within the usual -7..7 sharps
            sharps = element.sharps if transposition % 12 == 0 else (element.sharps + 7 * transposition + 6) % 12 - 6
            if -7 <= sharps <= 7:
                self.keys.setdefault(tick, KeySignature(tick, sharps, minor))
        elif isinstance(element, tempo.MetronomeMark) and not element.numberImplicit:
            tempo_bpm = element.getQuarterBPM()
            if tempo_bpm:
                self.tempos.setdefault(tick, Tempo(tick, tempo_bpm))


def _ticks(quarters: Any) -> int:
    """Converts a length or offset of music21, in quarters as float, int or Fraction, to ticks."""
    return round(float(quarters) * TICKS_PER_QUARTER)


def _walk(stream: "Stream[Any]", start: Any) -> Iterator[tuple[Any, int, Any]]:
    """Yields every element of nested measures and voices as (offset in quarters, 0 for marks or 1 for notes, element).

    Unlike music21's `flatten()`, it does not build a second tree of the same objects.
    """
    for element in stream.elements:
        offset = start + stream.elementOffset(element)
        if element.isStream:
            yield from _walk(element, offset)
        else:
            yield offset, int(hasattr(element, "tie")), element


def _upbeat_rest(part: "Stream[Any]") -> int:
    """Returns the ticks of rest that complete a first measure shorter than its metre; 0 if it is complete."""
    from music21 import meter, stream

    measures = [element for element in part.elements if isinstance(element, stream.Measure)]
    if len(measures) < 2:
        return 0
    metre = next((element for element in measures[0].elements if isinstance(element, meter.TimeSignature)), None)
    if metre is None:
        return 0
    length = part.elementOffset(measures[1]) - part.elementOffset(measures[0])
    return max(0, _ticks(metre.barDuration.quarterLength) - _ticks(length)) if length > 0 else 0


def _convert_part(part: Any, events: list[tuple[int, Any]], upbeat: int, marks: _Marks) -> Track:
    """Converts one part to a track and adds its marks to `marks`.

    Notes and marks are moved by `upbeat` ticks, except for marks at tick 0.
    """
    from music21 import chord, dynamics, harmony, instrument, note

    rows: list[list[int]] = []  # onset, end, pitch, velocity
    tied: dict[int, int] = {}  # sounding pitch -> row of the note that a following tied note prolongs
    name = getattr(part, "partName", None) or ""
    program, is_drum, transposition, velocity = 0, False, 0, DEFAULT_VELOCITY
    for tick, element in events:
        if isinstance(element, instrument.Instrument):
            program = element.midiProgram if element.midiProgram is not None else program
            is_drum = is_drum or element.midiChannel == 9 or isinstance(element, instrument.UnpitchedPercussion)
            name = name or element.partName or element.instrumentName or ""
            if element.transposition is not None and getattr(part, "atSoundingPitch", "unknown") is not True:
                transposition = int(element.transposition.semitones)
        elif isinstance(element, dynamics.Dynamic):
            velocity = min(127, max(1, round(127 * element.volumeScalar)))
        elif isinstance(element, note.NotRest) and not isinstance(element, harmony.Harmony):
            if element.duration.isGrace or not element.duration.quarterLength:
                continue
            onset, end = tick + upbeat, upbeat + tick + max(1, _ticks(element.duration.quarterLength))
            members: tuple[Any, ...] = element.notes if isinstance(element, chord.ChordBase) else (element,)
            for member in members:
                if isinstance(member, note.Unpitched):
                    is_drum, pitch = True, _drum_key(member)
                else:
                    pitch = member.pitch.midi + (0 if is_drum else transposition)
                _add_note(rows, tied, [onset, end, pitch, velocity], member.tie.type if member.tie else None)
        else:
            marks.add(tick + upbeat if tick else 0, element, transposition)
    track = Track(name=name, program=0 if is_drum else min(127, max(0, program)), is_drum=is_drum)
    table = np.array(sorted(row for row in rows if 0 <= row[2] <= 127), dtype=np.int32).reshape(-1, 4)
    track.notes = NoteTickList.from_numpy(
        table[:, 0].copy(), table[:, 1] - table[:, 0], table[:, 2].astype(np.int8), table[:, 3].astype(np.int8)
    )
    return track


def _add_note(rows: list[list[int]], tied: dict[int, int], row: list[int], tie: str | None) -> None:
    """Appends `row`, or prolongs the note that is tied to it; `tie` is None, 'start', 'continue', 'stop' or 'let-ring'.

    A note that begins where a tied note of the same pitch ends prolongs it even without a tie mark of its own, since many
    files do not mark the end of ties.
    """
    onset, end, pitch, _ = row
    before = tied.pop(pitch, None)
    if before is not None and rows[before][1] == onset:
        rows[before][1] = end
    else:
        before = len(rows)
        rows.append(row)
    if tie in ("start", "continue"):
        tied[pitch] = before


def _drum_key(member: Any) -> int:
    """Returns the General-MIDI drum key of an unpitched note: that of its instrument, or else the snare drum."""
    key = getattr(member.storedInstrument, "percMapPitch", None)
    return SNARE_DRUM if key is None else int(key)
