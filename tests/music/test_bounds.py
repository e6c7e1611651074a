"""What notation may ask for is bounded before a parser expands it: no file hangs its reader."""

import time
from pathlib import Path

import numpy as np
import pytest

from etude.data.scores.reading import read_guarded, read_prompt
from etude.music.bounds import MAX_BEATS, check_abc, reading_limits
from etude.music.score import ScoreError, read_all, read_pieces

HEAD = "X:1\nT:t\nM:4/4\nL:1/8\nK:C\n"
MUSICXML = (
    '<?xml version="1.0" encoding="UTF-8"?><score-partwise version="3.1"><part-list><score-part id="P1"><part-name>F'
    '</part-name></score-part></part-list><part id="P1"><measure number="1"><attributes><divisions>2</divisions><time>'
    "<beats>{}</beats><beat-type>4</beat-type></time></attributes><note><pitch><step>C</step><octave>4</octave></pitch>"
    "<duration>8</duration></note></measure></part></score-partwise>"
)
TOO_MUCH = {
    "long.abc": (HEAD + "A9999 | B4 C4|", "A9999 lasts 5000 quarter notes, at most 256"),
    "longer.abc": (HEAD + "A" + "9" * 5000 + " | B4|", "quarter notes, at most 256"),
    "chord.abc": (HEAD + "[CEG]9999 | B4 C4|", "quarter notes, at most 256"),
    "rests.abc": (HEAD + "Z9999 | B4 C4|", "quarter notes, at most 256"),
    "metre.abc": (HEAD.replace("4/4", "9999/4") + "A4 | B4 C4|", "a metre has 9999 beats, at most 64"),
    "inline.abc": (HEAD + "A4 [M:511/8] B4 C4|", "a metre has 511 beats"),
    "unit.abc": (HEAD.replace("1/8", "1/99999999") + "A4 | B4 C4|", "note value of 1/99999999"),
    "bar.abc": (HEAD + "A4 | " + "B/4 C3/4 " * 600 + "|", "512 times its shortest note; add bar lines"),
    "tuplet.abc": (HEAD + "(9999:2:9999 ABC | B4|", "a tuplet of more than 32 notes"),
    "octave.abc": (HEAD + "A" + "," * 999 + " B4|", "octaves away"),
    "metre.musicxml": (MUSICXML.format(5000), "a metre has 5000 beats, at most 64"),
    "metre.krn": ("**kern\n*M5000/4\n=1\n1C\n=2\n1C\n==\n*-\n", "a metre has 5000 beats"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_no_score_needs_is_refused_at_once_and_by_name(tmp_path: Path, name: str) -> None:
    from music21 import converter  # noqa: F401  (imported before the clock starts)

    text, reason = TOO_MUCH[name]
    path = tmp_path / name
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(ScoreError, match=reason) as caught:
        list(read_pieces(path))
    assert time.monotonic() - start < 5
    assert str(caught.value).startswith(f"{path}: ") and "; " in str(caught.value)


def test_metres_and_bars_of_real_scores_pass() -> None:
    for line in (
        "(3ABC (5:4:5ABCDE A/2 B// c3/2|",
        "Z16|",
        "[CEG]8 | z8 |",
        '"Am7"A8 !trill!B8|',
        "[M:2+3/8] A4 B|",
        "A,,,8 a'''8|",
    ):
        check_abc(HEAD + line)
    check_abc("X:1\nM:C|\nL:1/4\nK:none\n" + "A B c d " * 100)
    check_abc(HEAD.replace("4/4", f"{MAX_BEATS}/8") + "A8|")


def test_every_tune_of_the_wheel_passes() -> None:
    from music21 import common

    books = sorted((common.getCorpusFilePath() / "airdsAirs").glob("*.abc"))
    assert books
    for book in books:
        check_abc(book.read_text(encoding="latin-1"))


def test_limits_grow_with_the_file(tmp_path: Path) -> None:
    small, large, packed = (tmp_path / name for name in ("a.abc", "b.musicxml", "c.mxl"))
    small.write_bytes(b"X:1")
    large.write_bytes(bytes(2**20))
    packed.write_bytes(bytes(2**20))
    assert [round(reading_limits(path)[0]) for path in (small, large, packed)] == [60, 80, 260]
    assert reading_limits(packed)[1] > reading_limits(large)[1] > reading_limits(small)[1]


def test_a_prompt_and_a_folder_are_read_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.abc"
    path.write_text(HEAD + "A4 B4 | B4 C4|")
    assert len(read_prompt(path).tracks[0].notes) == 4
    monkeypatch.setattr("etude.data.scores.reading.reading_limits", lambda path: (0.0, 2**30))  # this parser takes for ever
    [(found, pieces, problem)] = read_guarded([path])
    assert (found, pieces) == (path, []) and problem.startswith(f"{path}: can't be read (took longer than 0 s); ")
    with pytest.raises(ValueError, match="took longer"):
        read_prompt(path)
    monkeypatch.setattr("etude.data.scores.reading.reading_limits", lambda path: (60.0, 2**20))  # and this one all memory
    with pytest.raises(ValueError, match="memory"):
        read_prompt(path)


def test_the_sound_tunes_of_a_damaged_book_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "book.abc"
    path.write_text(f"{HEAD}A8|\n\n{HEAD}A9999|\n\n{HEAD}B8|\n")
    pieces, problem = read_all(path)
    assert len(pieces) == 2 and "1 of 3 tunes can't be read (tune 2: ValueError: A9999 lasts" in problem


def mutants(text: str, generator: np.random.Generator, count: int) -> list[str]:
    """Copies of `text` with digits repeated, tokens doubled, swapped or dropped at random places."""
    found = []
    for _ in range(count):
        letters = list(text)
        for _ in range(int(generator.integers(1, 5))):
            at = int(generator.integers(len(letters)))
            kind = int(generator.integers(4))
            if kind == 0:
                letters[at] = letters[at] * int(generator.integers(2, 7))
            elif kind == 1:
                letters[at] = str(generator.choice(list("0123456789|:[](){}/,'^_=zZABC\n")))
            elif kind == 2:
                letters[at] = letters[int(generator.integers(len(letters)))]
            else:
                letters[at : at + int(generator.integers(1, 8))] = []
            letters = letters or [" "]
        found.append("".join(letters))
    return found


FUZZED = {
    "abc": "X:1\nT:t\nM:6/8\nL:1/8\nQ:1/4=90\nK:Dm\n|:A3 BcB|(3ABc d2 [FA]e4|1 f2 z4:|2 D99|\nV:2\nD6|Z2|\n",
    "musicxml": MUSICXML.format(4),
    "krn": "**kern\t**kern\n*M4/4\t*M4/4\n=1\t=1\n2C\t4c\n.\t4e\n2G\t[2g\n=2\t=2\n1C\t2g]\n.\t2c\n==\t==\n*-\t*-\n",
}
SECONDS = 10.0  # for each file, where most take 0.01


@pytest.mark.parametrize("suffix", FUZZED)
def test_no_mutation_of_a_score_takes_long(tmp_path: Path, suffix: str) -> None:
    from music21 import converter  # noqa: F401

    generator = np.random.default_rng(11)
    path = tmp_path / f"a.{suffix}"
    for text in mutants(FUZZED[suffix], generator, 60):
        path.write_text(text)
        start = time.monotonic()
        pieces, problem = read_all(path)
        assert time.monotonic() - start < SECONDS, text
        assert pieces or problem
