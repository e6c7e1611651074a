"""Storages: files and URLs, and what is told of one that can't be used."""

import sqlite3
from pathlib import Path

import pytest

from etude.sweeps import storage as storages
from etude.sweeps.plan import Plan
from etude.sweeps.storage import one_line, open_storage, storage_file, storage_url
from etude.sweeps.study import open_study


def used(path: Path) -> None:
    url = storage_url(str(path))
    with one_line(url):
        open_study(open_storage(url), "s", Plan(["a:min"]))


def test_the_name_says_what_a_file_is(tmp_path: Path) -> None:
    assert storage_url(str(tmp_path / "a.db")) == f"sqlite:///{tmp_path}/a.db"
    assert storage_url(str(tmp_path / "a.log")) == f"journal://{tmp_path}/a.log"
    assert storage_url("postgresql://me@host/db") == "postgresql://me@host/db"
    assert storage_file(storage_url(str(tmp_path / "a.db"))) == tmp_path / "a.db" and storage_file("mysql://x/y") is None
    with pytest.raises(ValueError, match=r"storage=a.txt must be an SQLite file"):
        storage_url("a.txt")


@pytest.mark.parametrize("name", ["a.db", "a.journal"])
def test_a_corrupt_file_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x00\xffthis is no storage\n" * 50)
    with pytest.raises(ValueError, match=rf"storage=\S+{name} is .*corrupt.*give another storage=") as error:
        used(path)
    assert "\n" not in str(error.value)


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("step 1 loss 2\n" * 10)
    with pytest.raises(ValueError, match="is corrupt or no journal of Optuna"):
        used(path)


def test_a_locked_file_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "SECONDS", 0.1)
    path = tmp_path / "a.db"
    used(path)
    holding = sqlite3.connect(path, isolation_level=None)
    holding.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match=r"has been locked by another program for 0.1 s; end it"):
        used(path)
    holding.close()
    used(path)


def test_a_server_without_a_driver_or_an_answer_is_told_in_one_line() -> None:
    for url in ("mysql://me@localhost:1/db", "nothing://x"):
        with pytest.raises(ValueError, match=f"storage={url}") as error, one_line(url):
            open_storage(url)
        assert "\n" not in str(error.value)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match=r"^mine$"), one_line("sqlite:///a.db"):
        raise ValueError("mine")
