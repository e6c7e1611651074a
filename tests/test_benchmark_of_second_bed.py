"""benchmarks/second_bed.py: the arranger keeps the tune in every style, and the folder keeps its splits."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from symusic import Note, Score, TimeSignature, Track

from tests.data.audio.files import module, sound, write

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # type: ignore[no-untyped-call]
    return importlib.import_module("second_bed")


def tune() -> Score:
    score = Score(480)
    score.time_signatures.append(TimeSignature(0, 4, 4))
    track = Track()
    for number, pitch in enumerate([67, 69, 71, 72, 74, 78, 71, 67] * 10):
        track.notes.append(Note(240 * number, 240, pitch, 80))
    score.tracks.append(track)
    return score


def test_every_style_plays_the_same_tune_and_ends_with_it(bed: ModuleType) -> None:
    lines = {}
    for style in bed.STYLES:
        made = bed.arranged(tune(), style)
        melody = made.tracks[0]
        lines[style] = [(note.pitch - melody.notes[0].pitch) for note in melody.notes]
        assert (
            len(made.tracks) >= 3 and max(n.end for t in made.tracks for n in t.notes) <= 480 * bed.SECONDS * bed.BPM / 60 + 480
        )
        assert all(0 <= note.pitch <= 127 and note.duration > 0 for track in made.tracks for note in track.notes)
    assert lines["folk"] == lines["rock"] == lines["jazz"] and len(lines["folk"]) > 60
    assert len({tuple(track.program for track in bed.arranged(tune(), style).tracks) for style in bed.STYLES}) == 3
    swung, straight = (bed.arranged(tune(), style).tracks[0].notes for style in ("jazz", "folk"))
    assert [n.start for n in straight[:4]] == [0, 240, 480, 720] and [n.start for n in swung[:4]] == [0, 312, 480, 792]


def test_the_tonic_ends_a_tune_and_chords_hold_its_notes(bed: ModuleType) -> None:
    line, bar = bed.melody_of(tune())
    chords = bed.harmony(line, bar, 10)
    assert bar == 4 and len(chords) == 10
    assert chords[-1] == (7, 11, 2)  # G major


def test_a_folder_keeps_its_splits_and_pairs(bed: ModuleType, tmp_path: Path) -> None:
    root = tmp_path / "bed"
    for split, names in (("val", "ab"), ("test", "cd"), ("train", "")):
        for place, style in enumerate(("folk", "rock")):
            for number, name in enumerate(names or ("efg", "hij")[place]):
                write(root / split / style / f"{name}.wav", sound(100 * place + number))
    with pytest.raises(ValueError, match="holds no bed"):
        bed.SplitFolder(root=str(tmp_path)).available()
    data = module(root, tmp_path / "cache", corpus=bed.SplitFolder(root=str(root)))
    assert data.styles == ("folk", "rock") and data.paired
    assert {piece["song"] for piece in data.manifest("test").to_pylist()} == {"c", "d"}
    assert {piece["song"] for piece in data.manifest("train").to_pylist() if piece["style"] == "rock"} == set("hij")
