"""Reading scores: what a file holds is what comes back, and damaged files are refused with one line."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.music.notation import from_music21
from etude.music.score import (
    MAX_DURATION_BEATS,
    TICKS_PER_QUARTER,
    ScoreError,
    bar_ticks,
    duration_beats,
    duration_seconds,
    num_bars,
    num_notes,
    read_pieces,
    read_score,
    trim,
)

NOTE = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x40"  # middle C, 480 ticks
LONGEST_DELTA = b"\xff\xff\xff\x7f"  # 2**28 - 1 ticks


def midi(*events: bytes, ticks_per_quarter: int = 480) -> bytes:
    body = b"".join(events) + b"\x00\xff\x2f\x00"
    header = b"MThd\0\0\0\6\0\0\0\1" + ticks_per_quarter.to_bytes(2, "big")
    return header + b"MTrk" + len(body).to_bytes(4, "big") + body


def notes(score: Score) -> list[list[tuple[int, int, int]]]:
    return [[(note.time, note.duration, note.pitch) for note in track.notes] for track in score.tracks]


def musicxml(measures: str, part: str = "<part-name>Flute</part-name>", parts: str = "") -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><score-partwise version="3.1"><part-list><score-part id="P1">{part}'
        f'</score-part></part-list><part id="P1">{measures}</part>{parts}</score-partwise>'
    )


def xml_note(step: str, duration: int, extra: str = "", octave: int = 4) -> str:
    return f"<note><pitch><step>{step}</step><octave>{octave}</octave></pitch><duration>{duration}</duration>{extra}</note>"


ATTRIBUTES = (
    "<attributes><divisions>2</divisions><key><fifths>1</fifths><mode>major</mode></key><time>"
    "<beats>3</beats><beat-type>4</beat-type></time>{}</attributes>"
)


def test_midi_is_resampled_and_its_repeated_marks_are_merged(tmp_path: Path) -> None:
    metre = b"\x00\xff\x58\x04\x03\x02\x18\x08"
    path = tmp_path / "a.mid"
    path.write_bytes(midi(metre, metre, b"\x00\x90\x3c\x40\x60\x80\x3c\x40", ticks_per_quarter=96))
    [(name, score)] = read_pieces(path)
    assert name == "a" and score.ticks_per_quarter == TICKS_PER_QUARTER
    assert notes(score) == [[(0, 480, 60)]]
    assert [(m.time, m.numerator, m.denominator) for m in score.time_signatures] == [(0, 3, 4)]


def test_musicxml_upbeat_tie_transposition_chord_symbol_and_grace_note(tmp_path: Path) -> None:
    tie_start, tie_stop = '<tie type="start"/>', '<tie type="stop"/>'
    grace = "<note><grace/><pitch><step>B</step><octave>4</octave></pitch></note>"
    symbol = "<harmony><root><root-step>G</root-step></root><kind>major</kind></harmony>"
    clarinet = "<transpose><diatonic>-1</diatonic><chromatic>-2</chromatic></transpose>"
    measures = (
        f'<measure number="0">{ATTRIBUTES.format(clarinet)}{xml_note("A", 2)}</measure>'
        f'<measure number="1">{symbol}{grace}{xml_note("C", 4)}{xml_note("D", 2, tie_start)}</measure>'
        f'<measure number="2">{xml_note("D", 2, tie_stop)}{xml_note("E", 1)}{xml_note("F", 3)}</measure>'
    )
    path = tmp_path / "clarinet.musicxml"
    path.write_text(musicxml(measures))
    score = read_score(path)
    # a bar of 1440 ticks: two beats of rest, then the upbeat; sounding a whole tone below the written pitches
    assert notes(score) == [[(960, 480, 67), (1440, 960, 58), (2400, 960, 60), (3360, 240, 62), (3600, 720, 63)]]
    assert bar_ticks(score).tolist() == [0, 1440, 2880]
    assert [(k.time, k.key, k.tonality) for k in score.key_signatures] == [(0, -1, 0)]  # written G major sounds in F
    assert score.tracks[0].name == "Flute"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_mxl_is_read_whatever_its_encoding_and_its_container_says(tmp_path: Path, encoding: str) -> None:
    document = musicxml(f'<measure number="1">{ATTRIBUTES.format("")}{xml_note("G", 6)}</measure>')
    path = tmp_path / "a.mxl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container><rootfile full-path='Makin' Whoopee!.xml'/></container>")
        archive.writestr("Makin' Whoopee!.xml", document.replace("UTF-8", encoding.upper()).encode(encoding))
    assert notes(read_score(path)) == [[(0, 1440, 67)]]


def test_humdrum_parts_become_tracks(tmp_path: Path) -> None:
    path = tmp_path / "a.krn"
    path.write_text("**kern\t**kern\n*M4/4\t*M4/4\n=1\t=1\n2C\t4c\n.\t4e\n2G\t[2g\n=2\t=2\n1C\t2g]\n.\t2c\n==\t==\n*-\t*-\n")
    # Humdrum writes the lowest part first; a score has the highest on top
    assert notes(read_score(path)) == [
        [(0, 480, 60), (480, 480, 64), (960, 1920, 67), (2880, 960, 60)],
        [(0, 960, 48), (960, 960, 55), (1920, 1920, 48)],
    ]


def test_abc_tune_book_yields_its_sound_tunes_and_names_the_others(tmp_path: Path) -> None:
    path = tmp_path / "book.abc"
    path.write_text(
        "X:1\nT:First\nM:4/4\nL:1/4\nK:G\nG A B c|\n\nX:2\nT:Silence\nM:4/4\nL:1/4\nK:G\nz4|\n\n"
        "X:3\nT:Last\nM:3/4\nL:1/4\nK:Em\ne f g|\n"
    )
    pieces = {}
    with pytest.raises(ScoreError, match=r"1 of 3 tunes can't be read \(tune 2: it holds no notes\)"):
        for name, score in read_pieces(path):
            pieces[name] = score
    assert list(pieces) == ["book#1 First", "book#3 Last"]
    assert notes(pieces["book#1 First"]) == [[(0, 480, 67), (480, 480, 69), (960, 480, 71), (1440, 480, 72)]]
    assert [(n.time, n.pitch) for n in pieces["book#3 Last"].tracks[0].notes] == [(0, 76), (480, 78), (960, 79)]
    assert pieces["book#3 Last"].key_signatures[0].tonality == 1


@pytest.mark.parametrize("work", ["bach/bwv66.6.mxl", "bach/bwv227.1.mxl", "palestrina/Agnus_04.krn"])
def test_notes_equal_those_of_music21(work: str) -> None:
    from music21 import common, converter

    path = common.getCorpusFilePath() / work
    score = read_score(path)
    expected = []
    for part in converter.parse(path, forceSource=True).parts:
        elements = part.stripTies().flatten().notes
        expected.append(
            [(round(480 * float(n.offset)), round(480 * float(n.quarterLength)), p.midi) for n in elements for p in n.pitches]
        )
    shift = min(track[0][0] for track in notes(score)) - min(track[0][0] for track in expected)
    assert 0 <= shift < 4 * 2 * 480
    assert notes(score) == [[(onset + shift, *rest) for onset, *rest in sorted(part)] for part in expected]


def test_from_music21_refuses_several_pieces() -> None:
    from music21 import stream

    with pytest.raises(ValueError, match="convert each of its scores"):
        from_music21(stream.Opus())


BAD_FILES = {
    "empty.mid": (b"", "the file is empty"),
    "text.mid": (b"Dear diary, this is not music at all.", "the header 'MThd' is missing"),
    "truncated.mid": (midi(NOTE)[:-9], r"damaged .mid file"),
    "header.mid": (midi(NOTE)[:14], r"it holds no notes|damaged"),
    "silent.mid": (midi(), "it holds no notes"),
    "resolution.mid": (midi(NOTE, ticks_per_quarter=0), "0 ticks per quarter"),
    "frames.mid": (midi(NOTE, ticks_per_quarter=0xE728), "SMPTE"),
    "negative_delta.mid": (midi(b"\xff" + LONGEST_DELTA + NOTE[1:]), "damaged .mid file"),
    "wrapped.mid": (midi(*[LONGEST_DELTA + b"\xff\x01\x00"] * 9, NOTE), "negative times"),
    "ten_hours.mid": (midi(NOTE, b"\x90\xbd\xb4\x00" + NOTE[1:]), r"it is 10\.0 h or 72003 beats long"),
    "hidden_hours.mid": (midi(b"\x00\xff\x51\x03\x00\x00\x01", LONGEST_DELTA + NOTE[1:]), "over 3 h or 100000 beats"),
    "tempo.mid": (midi(b"\x00\xff\x51\x03\x00\x00\x00", NOTE), "a tempo is 0"),
    "metre.mid": (midi(b"\x00\xff\x58\x04\x00\x02\x18\x08", NOTE), "time signature"),
    "zip.mxl": (b"PK\x03\x04 and then nothing of the archive", "not a complete zip archive"),
    "cut.musicxml": (musicxml(f'<measure number="1">{ATTRIBUTES}').encode()[:-40], "damaged .musicxml file"),
    "silent.musicxml": (
        musicxml('<measure number="1"><note><rest/><duration>4</duration></note></measure>').encode(),
        "it holds no notes",
    ),
    "html.xml": (b"<html><body>404</body></html>", "damaged .xml file"),
    "noise.krn": (bytes(range(1, 256)), "no notes|damaged"),
    "noise.abc": (bytes(range(1, 256)), "1 of 1 tune"),
    "song.mp3": (b"ID3", "unknown kind of file '.mp3'; give one of .abc, .krn, .mid"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_one_line_with_its_name_and_a_remedy(tmp_path: Path, name: str) -> None:
    data, reason = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ScoreError, match=reason) as caught:
        list(read_pieces(path))
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "; " in line and line.isprintable()
    assert str(pickle.loads(pickle.dumps(caught.value))) == line


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.mid").mkdir()
    for name, told in (("missing.mid", "there is no such file"), ("folder.mid", "can't be read")):
        with pytest.raises(ScoreError, match=f"{name}: {told}"):
            read_score(tmp_path / name)


def test_a_file_name_that_is_not_utf8_is_read_and_can_be_printed(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mid"))
    path.write_bytes(midi(NOTE))
    assert num_notes(read_score(path)) == 1
    path.write_bytes(b"nothing")
    with pytest.raises(ScoreError, match=r"caf\\xe9.mid: not a MIDI file") as caught:
        read_score(path)
    str(caught.value).encode("utf-8")


def test_random_damage_never_gives_more_than_a_score_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    marks = b"\x00\xff\x58\x04\x03\x02\x18\x08\x00\xff\x51\x03\x07\xa1\x20"
    sound = np.frombuffer(midi(marks, *[NOTE] * 20), np.uint8)
    path = tmp_path / "a.mid"
    for _ in range(500):
        data = sound.copy()
        data[generator.integers(len(data), size=generator.integers(1, 6))] = generator.integers(256)
        path.write_bytes(data.tobytes()[: generator.integers(1, len(data) + 1)])
        try:
            score = read_score(path)
        except ScoreError:
            continue
        assert num_notes(score) > 0 and duration_beats(score) <= MAX_DURATION_BEATS and num_bars(score) >= 1


@pytest.fixture
def piece() -> Score:
    """Two bars of 3/4, then 6/8 from tick 2880, at 60 and from there at 120 quarters a minute; ends at 4320 + 480."""
    score = Score(480)
    track = Track(name="x", program=5)
    track.notes.extend([Note(time, 480, 60 + i, 64) for i, time in enumerate([0, 960, 1440, 2640, 2880, 4320])])
    score.tracks.append(track)
    score.time_signatures.extend([TimeSignature(0, 3, 4), TimeSignature(2880, 6, 8)])
    score.tempos.extend([Tempo(0, 60), Tempo(2880, 120)])
    return score


def test_bars_and_lengths(piece: Score) -> None:
    assert bar_ticks(piece).tolist() == [0, 1440, 2880, 4320]
    assert num_bars(piece) == 4 and num_notes(piece) == 6
    assert duration_beats(piece) == 10.0
    assert duration_seconds(piece) == pytest.approx(6 + 4 / 2)


def test_a_metre_change_within_a_bar_starts_a_bar(piece: Score) -> None:
    piece.time_signatures = [TimeSignature(480, 3, 4)]
    assert bar_ticks(piece).tolist() == [0, 480, 1920, 3360]


def test_trim_cuts_at_bar_lines_and_keeps_what_holds(piece: Score) -> None:
    part = trim(piece, first_bar=1, num_bars=1)
    assert notes(part) == [[(0, 480, 62), (1200, 240, 63)]]
    assert [(m.time, m.numerator) for m in part.time_signatures] == [(0, 3)]
    assert [(m.time, round(m.qpm)) for m in part.tempos] == [(0, 60)]
    rest = trim(piece, first_bar=2)
    assert notes(rest) == [[(0, 480, 64), (1440, 480, 65)]]
    assert [(m.time, m.numerator) for m in rest.time_signatures] == [(0, 6)]
    assert notes(trim(piece)) == notes(piece) and piece.tracks[0].notes[3].duration == 480
    for wrong in ({"first_bar": 4}, {"first_bar": -1}, {"num_bars": 0}):
        with pytest.raises(ValueError, match="must be"):
            trim(piece, **wrong)


def test_real_folder_is_read_whole(shared_data: Path) -> None:
    files = sorted((shared_data / "scores").rglob("*.m*"))[::20]
    assert len(files) > 15 and all(num_notes(read_score(file)) > 0 for file in files)
