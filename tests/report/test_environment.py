"""What a run's folder says about the code that made it."""

import subprocess
from pathlib import Path

import pytest

from etude.report.environment import write_environment


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.invalid", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with one commit."""
    folder = tmp_path / "clone"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "First")
    return folder


def test_the_patch_makes_the_code_of_the_run_from_its_commit(clone: Path, tmp_path: Path) -> None:
    before = git(clone, "status", "--porcelain")
    (clone / "src" / "a.py").write_text("a = 2\n")
    (clone / "src" / "new.py").write_text("b = 'ü'\n")
    (clone / "my_song.mid").write_bytes(b"no code")
    status, run = git(clone, "status", "--porcelain"), tmp_path / "run"
    assert write_environment(run, source=clone / "src") == run / "environment.txt"
    assert git(clone, "status", "--porcelain") == status != before  # the user's index is as it was
    commit = git(clone, "rev-parse", "HEAD").strip()
    assert f"commit: {commit} with uncommitted changes" in (run / "environment.txt").read_text()
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(clone), str(again))
    git(again, "apply", str(run / "code.patch"))
    assert {path.name: path.read_text() for path in (again / "src").iterdir()} == {"a.py": "a = 2\n", "new.py": "b = 'ü'\n"}


def test_clean_code_has_no_patch_and_a_folder_that_is_no_clone_says_so(clone: Path, tmp_path: Path) -> None:
    write_environment(tmp_path / "clean", source=clone)
    assert [path.name for path in (tmp_path / "clean").iterdir()] == ["environment.txt"]
    assert "uncommitted" not in (tmp_path / "clean" / "environment.txt").read_text()
    (tmp_path / "plain").mkdir()
    write_environment(tmp_path / "run", source=tmp_path / "plain")
    assert "commit: unknown (not a git checkout, or no git)" in (tmp_path / "run" / "environment.txt").read_text()
    assert not (tmp_path / "run" / "code.patch").exists()


def test_a_run_that_goes_on_with_other_code_keeps_what_it_began_with(clone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (clone / "src" / "a.py").write_text("a = 2\n")
    write_environment(run, source=clone)
    first = (run / "code.patch").read_text()
    write_environment(run, source=clone)
    assert sorted(path.name for path in run.iterdir()) == ["code.patch", "environment.txt"]
    (clone / "src" / "a.py").write_text("a = 3\n")
    write_environment(run, source=clone)
    assert (run / "code_1.patch").read_text() == first != (run / "code.patch").read_text()
    git(clone, "commit", "-qam", "Second")
    write_environment(run, source=clone)
    assert not (run / "code.patch").exists() and (run / "code_2.patch").exists() and (run / "environment_1.txt").exists()
