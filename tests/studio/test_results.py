"""Answers are on the disk as soon as they are given, sessions go on, and files of others are left alone."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from etude.studio.results import APPLICATION, Heard, OutOfOrder, Question, Results, SessionRow

REAL, GENERATED = Heard("real/a.mid", "a", "a" * 64, 0.0), Heard("run/samples/000.mid", "000", "b" * 64, 2.5)
ROW = SessionRow("s1", "Ann", "single", 3, 10.0, 0, "test")
PLAN = [
    Question("run", "outputs/run", "folk", "real", REAL, None),
    Question("run", "outputs/run", None, "generated", None, GENERATED),
    Question("run", "outputs/run", None, "generated", None, GENERATED, heard_before=True),
]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path / "deep" / "r.sqlite")
    made.begin(ROW, PLAN)
    return made


def rows(results: Results, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(results.path) as database:
        found = database.execute(query).fetchall()
    database.close()
    return found


def test_an_answer_is_a_row_with_all_that_was_heard(results: Results) -> None:
    results.answer("s1", 0, "real", seconds=4.25)
    results.answer("s1", 1, "real", seconds=1)
    columns = "listener, kind, run, run_folder, genre, real_file, real_sha256, generated_file, answer, is_right, seconds_taken"
    assert rows(results, f"SELECT {columns} FROM answers") == [
        ("Ann", "single", "run", "outputs/run", "folk", "real/a.mid", "a" * 64, None, "real", 1, 4.25),
        ("Ann", "single", "run", "outputs/run", None, None, None, "run/samples/000.mid", "real", 0, 1.0),
    ]
    first, second = results.answers("s1")
    assert first.is_right and not second.is_right and results.answers() == [first, second]
    assert results.times_heard("Ann") == {("a" * 64, "a"): 1, ("b" * 64, "000"): 1} and not results.times_heard("Bob")


def test_questions_come_back_as_they_were_planned(results: Results) -> None:
    assert Results(results.path).questions("s1") == PLAN


def test_only_the_next_question_can_be_answered_and_the_last_answer_taken_back(results: Results) -> None:
    with pytest.raises(OutOfOrder):
        results.answer("s1", 1, "real", seconds=1)
    results.answer("s1", 0, "real", seconds=1)
    with pytest.raises(OutOfOrder):
        results.answer("s1", 0, "generated", seconds=1)
    results.undo("s1")
    assert not results.answers()
    results.undo("s1")  # nothing is left to take back
    results.answer("s1", 0, "generated", seconds=1)
    for number in (1, 2):
        results.answer("s1", number, "generated", seconds=1)
    with pytest.raises(OutOfOrder):
        results.answer("s1", 3, "real", seconds=1)
    results.finish("s1")
    with pytest.raises(OutOfOrder):
        results.undo("s1")
    assert [answer.answer for answer in results.answers()] == ["generated"] * 3


def test_an_unfinished_session_is_found_by_listener_and_test(results: Results) -> None:
    assert results.unfinished("Ann", "test") == ROW
    assert results.unfinished("Ann", "other") is None is results.unfinished("Bob", "test")
    results.finish("s1")
    assert results.unfinished("Ann", "test") is None and results.is_finished("s1")
    assert (results.count("Ann", "test"), results.count("Bob", "test")) == (1, 0)


def test_an_answer_survives_a_process_that_is_killed(results: Results) -> None:
    code = (
        "import os, sys; from pathlib import Path; from etude.studio.results import Results;"
        "Results(Path(sys.argv[1])).answer('s1', 0, 'real', seconds=1); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(results.path)])
    assert ended.returncode == -9 and [answer.number for answer in Results(results.path).answers()] == [0]


def test_listeners_at_the_same_time_lose_nothing(results: Results) -> None:
    names = [f"listener {number}" for number in range(6)]
    for name in names:
        results.begin(SessionRow(name, name, "single", 3, 10.0, 0, "test"), PLAN)

    def listen(name: str) -> None:
        own = Results(results.path)
        for number in range(3):
            own.answer(name, number, "real", seconds=1)

    threads = [threading.Thread(target=listen, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([answer.number for answer in results.answers(name)] == [0, 1, 2] for name in names)
    assert results.summary() == "18 answers of 6 sessions"


def test_several_may_make_the_same_file_at_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def make() -> None:
        try:
            Results(tmp_path / "r.sqlite")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and Results(tmp_path / "r.sqlite").answers() == []


def test_files_of_others_are_refused_in_one_line_and_left_as_they_are(tmp_path: Path) -> None:
    text, foreign, later, folder = (tmp_path / name for name in ("text", "foreign", "later", "folder"))
    text.write_text("no database, but long enough that SQLite looks at it\n" * 40)
    folder.mkdir()
    for path, statement in (
        (foreign, "CREATE TABLE mine (a)"),
        (later, f"PRAGMA application_id = {APPLICATION}"),
    ):
        with sqlite3.connect(path) as database:
            database.execute(statement)
            database.execute("PRAGMA user_version = 7" if path == later else "SELECT 1")
        database.close()
    before = {path: path.read_bytes() for path in (text, foreign, later)}
    for path, told in (
        (text, "it is not an SQLite database; give another file"),
        (foreign, "it is another program's database; give another file"),
        (later, "it is of version 7, this Etude reads version 1; give another file"),
        (folder, "give another file"),
        (text / "r.sqlite", "give another file"),
    ):
        with pytest.raises(ValueError, match=rf"results=.*{path.name}: .*{told}") as error:
            Results(path)
        assert "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in before}
    with pytest.raises(ValueError, match="there is no such file; take a test first"):
        Results(tmp_path / "gone.sqlite", make=False)
    assert not (tmp_path / "gone.sqlite").exists()
