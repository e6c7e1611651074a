"""A study notices that its data have changed, wherever they are."""

import shutil
from pathlib import Path

import pytest

from etude.sweeps.contents import BLOCK, Contents, contents_of


def test_every_byte_and_every_name_counts_but_not_the_place(tmp_path: Path) -> None:
    assert contents_of(None) == Contents("") and contents_of(str(tmp_path / "none")) == Contents(str(tmp_path / "none"))
    folder = tmp_path / "a"
    folder.mkdir()
    seen = {contents_of(str(folder)).digest}
    long = b"1" * 50_000
    changes = [
        ("x", b"1"),
        ("x", b"2"),
        ("x", long),
        ("x", long[:-1]),
        ("x", long[:40_000] + b"2" + long[40_001:]),
        ("y/x", b"1"),
    ]
    for name, content in changes:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        found = contents_of(str(folder))
        assert not found.told
        seen.add(found.digest)
    assert len(seen) == 1 + len(changes)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert contents_of(str(tmp_path / "elsewhere")) == contents_of(str(folder))
    assert contents_of(str(folder / "x")).digest.startswith("all:")
    (folder / "y" / "x").rename(folder / "y" / "z")
    assert contents_of(str(folder)) != contents_of(str(tmp_path / "elsewhere"))


def test_of_much_data_three_blocks_of_each_file_count_which_is_told(tmp_path: Path) -> None:
    path, size = tmp_path / "long.wav", 10 * BLOCK
    path.write_bytes(bytes(size))
    first = contents_of(str(tmp_path), whole=size - 1)
    assert first.digest.startswith("parts:") and f"data.root={tmp_path}" in first.told and "4,096 bytes" in first.told
    assert "\n" not in first.told and contents_of(str(tmp_path), whole=size).told == ""
    for place, noticed in ((0, True), (size // 2, True), (size - 1, True), (3 * BLOCK, False)):
        content = bytearray(size)
        content[place] = 1
        path.write_bytes(content)
        assert (contents_of(str(tmp_path), whole=size - 1) != first) is noticed
        assert contents_of(str(tmp_path), whole=size).digest != first.digest


@pytest.mark.skipif("os.geteuid() == 0", reason="root may read everything")
def test_a_file_that_can_not_be_read_counts_by_its_name_and_size(tmp_path: Path) -> None:
    path = tmp_path / "locked"
    path.write_bytes(b"1")
    path.chmod(0)
    one = contents_of(str(tmp_path))
    path.rename(tmp_path / "other")
    assert contents_of(str(tmp_path)) != one
