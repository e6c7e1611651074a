"""Notated music (MusicXML, ABC, Humdrum) as a `symusic.Score`, through music21.

Times are ticks, `TICKS_PER_QUARTER` to a quarter note. What notation says beyond notes in time is resolved as a
player would: ties are merged, transposing instruments sound at concert pitch, chord symbols and grace notes are left
out, repeats are played once. A piece that starts with an upbeat starts with a rest, so that bar lines fall on multiples
of the bar. Parsing happens in memory: music21's pickle cache is neither read nor written.
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
SNARE_DRUM = 38  # General MIDI; sounds an unpitched note whose instrument the file does not name
MAX_XML_BYTES = 256 * 2**20  # a full opera is about 100 MB; beyond is a decompression bomb


def musicxml_text(data: bytes) -> bytes:
    """The MusicXML document in `data`, which is one or a compressed .mxl archive of one.

    Raises ValueError (also as zipfile.BadZipFile) when the archive holds no score or one beyond `MAX_XML_BYTES`.
    """
    if not data.startswith(b"PK"):
        return _utf8(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # not by META-INF/container.xml: exporters write file names into it without escaping, which no parser reads
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
    """An XML document as UTF-8: older exporters wrote UTF-16, which music21 does not take."""
    if not document.startswith((b"\xff\xfe", b"\xfe\xff")):
        return document
    text = document.decode("utf-16")
    return re.sub(r"""(<\?xml[^>]*?)\s+encoding=["'][^"']*["']""", r"\1", text, count=1).encode("utf-8")


def read_musicxml(data: bytes) -> Score:
    """The score in a MusicXML document or .mxl archive; raises what the parser raises on a damaged one."""
    from music21.musicxml.xmlObjects import MusicXMLWarning
    from music21.musicxml.xmlToM21 import MusicXMLImporter

    importer: Any = MusicXMLImporter()  # music21 leaves it untyped
    document = musicxml_text(data)
    check_musicxml(document)
    importer.xmlText = document
    with warnings.catch_warnings():
        # music21 says so when it leaves out a wedge, a pedal or a bracket; none of them is in a score of notes
        warnings.simplefilter("ignore", MusicXMLWarning)
        importer.parseXMLText()
    return from_music21(importer.stream)


def read_humdrum(text: str) -> Score:
    """The score in a Humdrum **kern document."""
    from music21.humdrum.spineParser import HumdrumDataCollection

    check_humdrum(text)
    document = HumdrumDataCollection(text)
    document.parse()
    return from_music21(document.stream)


def split_abc(text: str) -> list[tuple[str, str]]:
    """The tunes of an ABC tune book as (title, text): each starts at its `X:` field, after the book's own header."""
    starts = [match.start() for match in re.finditer(r"^X:", text, flags=re.MULTILINE)]
    if not starts:
        return [("", text)]
    tunes = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    titles = [re.search(r"^T:[ \t]*(.*)$", tune, flags=re.MULTILINE) for tune in tunes]
    return [(title.group(1).strip() if title else "", tune) for title, tune in zip(titles, tunes, strict=True)]


def read_abc(text: str) -> Score:
    """The score in one ABC tune."""
    from music21 import converter

    check_abc(text)
    return from_music21(converter.parseData(text, format="abc"))


def from_music21(stream: "Stream[Any]") -> Score:
    """Convert a music21 stream: every part a track, with name, program, metre, key and tempo marks.

    Args:
        stream: a Score, Part or any stream with notes; an Opus (several pieces) is refused, convert its scores.

    Returns:
        a score of `TICKS_PER_QUARTER`, sorted, without empty tracks; it has no notes where the stream has none.
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
    """Metre, key and tempo marks by tick; the first part that writes one at a tick has the say."""

    def __init__(self) -> None:
        self.metres: dict[int, TimeSignature] = {}
        self.keys: dict[int, KeySignature] = {}
        self.tempos: dict[int, Tempo] = {}

    def add(self, tick: int, element: Any, transposition: int) -> None:
        """Record `element` if it is such a mark; `transposition` in semitones takes a written key to concert pitch."""
        from music21 import key, meter, tempo

        if isinstance(element, meter.TimeSignature):
            self.metres.setdefault(tick, TimeSignature(tick, element.numerator, element.denominator))
        elif isinstance(element, key.KeySignature):
            minor = int(isinstance(element, key.Key) and element.mode == "minor")
            # a semitone is seven fifths; the circle closes after twelve, and sharps are kept within the usual -7..7
            sharps = element.sharps if transposition % 12 == 0 else (element.sharps + 7 * transposition + 6) % 12 - 6
            if -7 <= sharps <= 7:
                self.keys.setdefault(tick, KeySignature(tick, sharps, minor))
        elif isinstance(element, tempo.MetronomeMark) and not element.numberImplicit:
            tempo_bpm = element.getQuarterBPM()
            if tempo_bpm:
                self.tempos.setdefault(tick, Tempo(tick, tempo_bpm))


def _ticks(quarters: Any) -> int:
    """Ticks of a length or offset that music21 gives in quarters, as float, int or Fraction."""
    return round(float(quarters) * TICKS_PER_QUARTER)


def _walk(stream: "Stream[Any]", start: Any) -> Iterator[tuple[Any, int, Any]]:
    """Every element of nested measures and voices as (offset in quarters, 0 for marks or 1 for notes, element).

    One walk over the tree: `flatten()` would build a second tree of the same objects.
    """
    for element in stream.elements:
        offset = start + stream.elementOffset(element)
        if element.isStream:
            yield from _walk(element, offset)
        else:
            yield offset, int(hasattr(element, "tie")), element


def _upbeat_rest(part: "Stream[Any]") -> int:
    """Ticks of rest that complete the first measure where it is shorter than its metre, 0 where it is not."""
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
    """One part as a track; its marks go to `marks`. Notes are `upbeat` ticks later; marks at the very start are not."""
    from music21 import chord, dynamics, harmony, instrument, note

    rows: list[list[int]] = []  # onset, end, pitch, velocity
    tied: dict[int, int] = {}  # sounding pitch -> row that a coming tie stop prolongs
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
    """Append `row`, or prolong the note that is tied to it; `tie` is None, 'start', 'continue', 'stop' or 'let-ring'.

    A note of the pitch that a tie started on, right where that one ends, prolongs it even when it has no tie mark of
    its own: real files leave many ends of ties unmarked.
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
    """The General-MIDI drum key of an unpitched note: what its instrument says, else a snare drum."""
    key = getattr(member.storedInstrument, "percMapPitch", None)
    return SNARE_DRUM if key is None else int(key)
