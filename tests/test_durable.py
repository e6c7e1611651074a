"""A file is written whole or not at all, and is on the disk before it has its name."""

import os
from pathlib import Path

import pytest

from etude.durable import copy_durably, replacing, write_durably


def test_a_reader_finds_the_earlier_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_durably(path, b"old")
    with replacing(path) as aside:
        aside.write_bytes(b"half")
        assert path.read_bytes() == b"old" and aside.parent == path.parent and aside.name.endswith(".part")
        aside.write_bytes(b"new")
    copy_durably(path, tmp_path / "copy")
    assert path.read_bytes() == (tmp_path / "copy").read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_fails_leaves_nothing(tmp_path: Path, is_folder: bool) -> None:
    write_durably(tmp_path / "file", b"old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file") as aside:
        if is_folder:
            aside.mkdir()
        (aside / "part" if is_folder else aside).write_bytes(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_all_is_synced_before_it_has_its_name_and_the_name_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        named = " there" if (tmp_path / "made").exists() else ""
        synced.append(("aside" if name.endswith(".part") else name) + named)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    with replacing(tmp_path / "made") as aside:
        aside.mkdir()
        for name in ("a", "b"):
            (aside / name).write_text(name)
    assert sorted(synced[:3]) == ["a", "aside", "b"] and synced[3:] == [f"{tmp_path.name} there"]
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"a", "b"}
