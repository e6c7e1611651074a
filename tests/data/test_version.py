"""The version of code follows what the code does, through its imports, and nothing else."""

from pathlib import Path

import pytest

from etude.data import version


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three modules: etude.a imports etude.b, which imports nothing; etude.c stands alone."""
    (tmp_path / "etude.a").write_text("from etude.b import thing\n\nx = f(1,\n      2,\n)\n")
    (tmp_path / "etude.b").write_text("thing = 1\n")
    (tmp_path / "etude.c").write_text("other = 2\n")

    def source(name: str) -> Path | None:
        path = tmp_path / name
        return path if path.is_file() else None

    monkeypatch.setattr(version, "_source", source)
    return tmp_path


def now() -> str:
    version.code_version.cache_clear()
    return version.code_version("etude.a")


def test_code_and_imported_code_change_it(modules: Path) -> None:
    before = now()
    (modules / "etude.b").write_text("thing = 2\n")
    after = now()
    assert before != after
    (modules / "etude.a").write_text("from etude.b import thing\n\nx = f(1, 3)\n")
    assert now() not in (before, after)


def test_comments_format_and_strangers_do_not(modules: Path) -> None:
    before = now()
    (modules / "etude.a").write_text("# why\nfrom etude.b import thing\nx = f(1, 2)\n")
    (modules / "etude.c").write_text("other = 3\n")
    assert now() == before


def test_real_modules_are_found() -> None:
    version.code_version.cache_clear()
    assert version.code_version("etude.music.score") != version.code_version("etude.music.satb")
    assert version.code_version("etude.music.score", "numpy") == version.code_version("etude.music.score")
