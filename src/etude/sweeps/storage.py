"""Opens the storage of a study: an SQLite file, Optuna's journal file, or any URL that Optuna knows."""

import contextlib
import sqlite3
import traceback
from collections.abc import Iterator
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

SQLITE = (".db", ".sqlite", ".sqlite3")
JOURNAL = (".log", ".journal", ".jsonl")
SECONDS = 60  # how long a writer waits for another one


def storage_url(given: str) -> str:
    """Returns the storage as it is passed to trials: a URL as it is, a file with its whole path.

    Raises: ValueError for a file whose name does not say what it is.
    """
    if "://" in given:
        return given
    path = Path(given).expanduser().absolute()
    if path.suffix in SQLITE:
        return f"sqlite:///{path}"
    if path.suffix in JOURNAL:
        return f"journal://{path}"
    raise ValueError(
        f"storage={given} must be an SQLite file ({', '.join(SQLITE)}), a journal file ({', '.join(JOURNAL)}), or a URL such as "
        "postgresql://USER@HOST/NAME"
    )


def storage_file(url: str) -> Path | None:
    """Returns the file of a storage; None for a database server."""
    for kind in ("sqlite:///", "journal://"):
        if url.startswith(kind):
            return Path(url.removeprefix(kind))
    return None


def open_storage(url: str) -> BaseStorage:
    """Returns the storage, created if it is new. Raises: ValueError in one line if it is locked, corrupt or can't be reached."""
    with one_line(url):
        if (path := storage_file(url)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        if url.startswith("journal://"):
            return JournalStorage(JournalFileBackend(url.removeprefix("journal://")))
        if url.startswith("sqlite://"):
            return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": SECONDS}})
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


@contextlib.contextmanager
def one_line(url: str) -> Iterator[None]:
    """Within this context what goes wrong with the storage is a ValueError that names it and says what to do."""
    try:
        yield
    except (ImportError, RuntimeError, OSError, ValueError, KeyError, AssertionError, sqlite3.Error) as error:
        if not _is_of_storage(error):
            raise
        raise ValueError(f"storage={url} {_told(error, url)}") from error
    except Exception as error:
        if not type(error).__module__.startswith("sqlalchemy."):  # which is not imported for this, since it takes half a second
            raise
        raise ValueError(f"storage={url} {_told(error, url)}") from error


def _is_of_storage(error: Exception) -> bool:
    """Returns whether an error comes out of Optuna's storage."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith(("optuna.storages", "sqlalchemy")) for frame, _ in frames)


REMEDY = "give another storage=, or restore a copy"


def _told(error: Exception, url: str) -> str:
    text = " ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split())
    if "locked" in text:
        return f"has been locked by another program for {SECONDS} s; end it, or give another storage="
    if "not a database" in text or "malformed" in text:
        return f"is no SQLite database or is corrupt ({text}); {REMEDY}"
    if isinstance(error, ImportError):
        return f"needs a driver that is not installed: {text}"
    if url.startswith("journal://") and isinstance(error, ValueError | KeyError | AssertionError):
        return f"is corrupt or no journal of Optuna; {REMEDY}"
    return f"can't be used: {text[:300]}; {REMEDY}"
