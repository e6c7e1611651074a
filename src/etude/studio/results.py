"""The results of listening tests: an SQLite database with sessions, their questions, and one row for each answer.

Each answer is committed before the page goes on, so an interrupt or a closed tab loses none. Every call opens a connection of
its own, so threads and processes may share the file.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from etude.wording import counted

APPLICATION = 0x45747564  # "Etud": SQLite's application_id, by which other programs' databases are told
VERSION = 1  # SQLite's user_version
WAIT_SECONDS = 30.0  # for another process that writes
HEARD = {"file": "TEXT", "piece": "TEXT", "sha256": "TEXT", "start_seconds": "REAL"}
SIDES = ",".join(f"{side}_{name}" for side in ("real", "generated") for name in HEARD)  # columns of what was heard
ITEM = "".join(f", {side}_{name} {kind}" for side in ("real", "generated") for name, kind in HEARD.items())
SCHEMA = f"""
CREATE TABLE sessions (session TEXT PRIMARY KEY, listener TEXT NOT NULL, kind TEXT NOT NULL, questions INTEGER NOT NULL,
  seconds REAL NOT NULL, seed INTEGER NOT NULL, test TEXT NOT NULL, started TEXT NOT NULL, finished TEXT);
CREATE TABLE questions (session TEXT NOT NULL REFERENCES sessions, number INTEGER NOT NULL, run TEXT NOT NULL,
  run_folder TEXT NOT NULL, genre TEXT, right_answer TEXT NOT NULL, heard_before INTEGER NOT NULL{ITEM},
  PRIMARY KEY (session, number));
CREATE TABLE answers (session TEXT NOT NULL REFERENCES sessions, number INTEGER NOT NULL, listener TEXT NOT NULL,
  kind TEXT NOT NULL, run TEXT NOT NULL, run_folder TEXT NOT NULL, genre TEXT, heard_before INTEGER NOT NULL{ITEM},
  answer TEXT NOT NULL, right_answer TEXT NOT NULL, is_right INTEGER NOT NULL, seconds_taken REAL NOT NULL,
  answered TEXT NOT NULL, PRIMARY KEY (session, number));
"""


@dataclass(frozen=True)
class Heard:
    """What was heard: a file, the piece in it, the file's SHA-256 in hex, and where in the piece the excerpt starts."""

    file: str
    piece: str
    sha256: str
    start_seconds: float


@dataclass(frozen=True)
class Question:
    """A question as it is planned: the run that it tests, and what is heard.

    Attributes:
        run, run_folder: the label and the folder of the run whose music is compared with real music.
        genre: of the music; None if it is not known.
        right_answer: "real" or "generated" for a single excerpt; "first" or "second" for the real one of a pair.
        real, generated: the real and the generated excerpt; one of them is None for a single excerpt.
        heard_before: whether the listener heard one of these pieces in an earlier session.
    """

    run: str
    run_folder: str
    genre: str | None
    right_answer: str
    real: Heard | None
    generated: Heard | None
    heard_before: bool = False


@dataclass(frozen=True)
class SessionRow:
    """A session: one listener, one list of questions.

    Attributes:
        session: its random id.
        kind: "single" or "pairs".
        questions: how many.
        seconds: length of each excerpt.
        test: a digest of the options and the music; an unfinished session goes on only with the same ones.
    """

    session: str
    listener: str
    kind: str
    questions: int
    seconds: float
    seed: int
    test: str


class Answer(NamedTuple):
    """An answer as reports need it."""

    session: str
    number: int
    listener: str
    kind: str
    run: str
    run_folder: str
    genre: str | None
    heard_before: bool
    answer: str
    right_answer: str
    seconds_taken: float

    @property
    def is_right(self) -> bool:
        """Whether it is the right one."""
        return self.answer == self.right_answer


class OutOfOrder(Exception):
    """An answer to a question that is not the next one, such as from a second tab with the same session."""


class Results:
    """A file of results, made if it does not exist.

    Raises:
        ValueError: the file is no SQLite database, another program's, or of another version; or it can't be written.
    """

    def __init__(self, path: Path, *, make: bool = True) -> None:
        self.path = path
        if not make and not path.is_file():
            raise ValueError(f"results={path}: there is no such file; take a test first, or give the results= of one")
        try:
            if make:
                path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as database:
                self._check(database, empty=path.stat().st_size == 0)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"results={path}: {_reason(error)}; give another file") from error
        except OSError as error:
            raise ValueError(f"results={path}: can't be made ({error.strerror}); give another file") from error

    def _check(self, database: sqlite3.Connection, *, empty: bool) -> None:
        (application,), (version,) = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if (application, version) == (APPLICATION, VERSION):
            return
        if application == APPLICATION:
            raise ValueError(
                f"results={self.path}: it is of version {version}, this Etude reads version {VERSION}; give another file, or "
                "read it with the Etude that wrote it"
            )
        if not empty:
            raise ValueError(f"results={self.path}: it is another program's database; give another file")
        with _changes(database):  # another process may have been faster
            if database.execute("PRAGMA user_version").fetchone() == (0,):
                for statement in SCHEMA.split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {APPLICATION}")
                database.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Opens the file in autocommit; `_changes` begins a transaction."""
        with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)) as database:
            yield database

    # --- sessions ---

    def begin(self, row: SessionRow, questions: Sequence[Question]) -> None:
        """Saves a new session with its questions."""
        with self._open() as database, _changes(database):
            database.execute("INSERT INTO sessions VALUES (?,?,?,?,?,?,?,?,NULL)", (*astuple(row), _now()))
            for number, question in enumerate(questions):
                plain = (question.run, question.run_folder, question.genre, question.right_answer, int(question.heard_before))
                values = (row.session, number, *plain, *_columns(question.real), *_columns(question.generated))
                database.execute(f"INSERT INTO questions VALUES ({','.join('?' * len(values))})", values)

    def unfinished(self, listener: str, test: str) -> SessionRow | None:
        """Returns the newest session of a listener with this test whose result was not shown yet."""
        names = ",".join(field.name for field in fields(SessionRow))
        query = (
            f"SELECT {names} FROM sessions WHERE listener = ? AND test = ? AND finished IS NULL ORDER BY started DESC, rowid DESC"
        )
        with self._open() as database:
            found = database.execute(query, (listener, test)).fetchone()
        return None if found is None else SessionRow(*found)

    def count(self, listener: str, test: str) -> int:
        """Returns the number of sessions that a listener has begun with this test."""
        with self._open() as database:
            query = "SELECT COUNT(*) FROM sessions WHERE listener = ? AND test = ?"
            return int(database.execute(query, (listener, test)).fetchone()[0])

    def questions(self, session: str) -> list[Question]:
        """Returns the questions of a session in their order."""
        query = (
            f"SELECT run, run_folder, genre, right_answer, heard_before, {SIDES} FROM questions WHERE session = ? ORDER BY number"
        )
        with self._open() as database:
            rows = database.execute(query, (session,)).fetchall()
        return [Question(row[0], row[1], row[2], row[3], _heard(row[5:9]), _heard(row[9:13]), bool(row[4])) for row in rows]

    def times_heard(self, listener: str) -> Counter[tuple[str, str]]:
        """Returns how often a listener has answered about each piece, by (SHA-256 of the file, piece)."""
        found: Counter[tuple[str, str]] = Counter()
        with self._open() as database:
            for side in ("real", "generated"):
                query = f"SELECT {side}_sha256, {side}_piece FROM answers WHERE listener = ? AND {side}_sha256 IS NOT NULL"
                found.update(tuple(row) for row in database.execute(query, (listener,)))
        return found

    def finish(self, session: str) -> None:
        """Notes that a session's result is shown; from then on its answers stay as they are."""
        with self._open() as database:
            database.execute("UPDATE sessions SET finished = ? WHERE session = ? AND finished IS NULL", (_now(), session))

    def is_finished(self, session: str) -> bool:
        """Returns whether a session's result was shown."""
        with self._open() as database:
            return database.execute("SELECT finished FROM sessions WHERE session = ?", (session,)).fetchone()[0] is not None

    # --- answers ---

    def answer(self, session: str, number: int, answer: str, *, seconds: float) -> None:
        """Saves the answer to the next question; when this returns it is on the disk.

        Raises: OutOfOrder if `number` is not the next question, or the result was shown.
        """
        query = f"""INSERT INTO answers
            SELECT session, number, listener, kind, run, run_folder, genre, heard_before, {SIDES}, ?, right_answer,
            right_answer = ?, ?, ? FROM questions JOIN sessions USING (session) WHERE session = ? AND number = ?"""
        with self._open() as database, _changes(database):
            (next_one,) = database.execute("SELECT COUNT(*) FROM answers WHERE session = ?", (session,)).fetchone()
            if number != next_one or self._is_over(database, session):
                raise OutOfOrder
            if not database.execute(query, (answer, answer, float(seconds), _now(), session, number)).rowcount:
                raise OutOfOrder  # all are answered

    def undo(self, session: str) -> None:
        """Removes the last answer of a session, if there is one.

        Raises: OutOfOrder if the result was shown.
        """
        with self._open() as database, _changes(database):
            if self._is_over(database, session):
                raise OutOfOrder
            last = "SELECT MAX(number) FROM answers WHERE session = ?"
            database.execute(f"DELETE FROM answers WHERE session = ? AND number = ({last})", (session, session))

    def answers(self, session: str | None = None) -> list[Answer]:
        """Returns the answers of a session in their order, or of all sessions."""
        chosen, values = ("", ()) if session is None else ("WHERE session = ?", (session,))
        with self._open() as database:
            rows = database.execute(f"SELECT {','.join(Answer._fields)} FROM answers {chosen} ORDER BY rowid", values).fetchall()
        return [Answer(*row)._replace(heard_before=bool(row[7])) for row in rows]

    def summary(self) -> str:
        """Returns in words how much the file holds."""
        with self._open() as database:
            ((answers, sessions),) = database.execute("SELECT COUNT(*), COUNT(DISTINCT session) FROM answers").fetchall()
        return f"{counted(answers, 'answer')} of {counted(sessions, 'session')}"

    @staticmethod
    def _is_over(database: sqlite3.Connection, session: str) -> bool:
        return bool(database.execute("SELECT finished FROM sessions WHERE session = ?", (session,)).fetchone() != (None,))


@contextmanager
def _changes(database: sqlite3.Connection) -> Iterator[None]:
    """Begins a transaction that locks out other writers, and commits it; an error takes all its changes back."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _columns(heard: Heard | None) -> tuple[str | float | None, ...]:
    return (None,) * len(HEARD) if heard is None else astuple(heard)


def _heard(row: tuple[str, str, str, float]) -> Heard | None:
    return None if row[0] is None else Heard(*row)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _reason(error: sqlite3.DatabaseError) -> str:
    text = str(error)
    return {
        "file is not a database": "it is not an SQLite database",
        "unable to open database file": "it can't be opened; it may be a folder, or one that may not be written",
        "attempt to write a readonly database": "it can't be written",
        "database disk image is malformed": "it is damaged",
    }.get(text, f"SQLite says: {text}")
