"""Each page docs/guides/adding_a_*.md, followed to the letter in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = {path.stem: path for path in sorted((ROOT / "docs" / "guides").glob("adding_a_*.md"))}
SHOWN = {"adding_a_technique": r"gradient_noise +Adds noise to the gradients that dies away\."}  # by scripts/choices.py


def follow(guide: str, root: Path) -> list[str]:
    """Does what the numbered headings with a file in them say, and returns the Python files that are new.

    A block in such a section is the new file's text; a `diff` block adds its + lines after its other ones.
    """
    written = []
    for name, section in re.findall(r"^## \d\. [^\n]*: `(\S+)`$(.*?)(?=^## )", guide, re.MULTILINE | re.DOTALL):
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            if language == "diff":
                insert(root / name, text)
            else:
                assert not (root / name).exists()
                (root / name).write_text(text)
                written.append(name)
    return [name for name in written if name.endswith(".py")]


def insert(path: Path, change: str) -> None:
    lines = change.splitlines(keepends=True)
    context = "".join(line[1:] for line in lines if line.startswith(" "))
    added = "".join(line[1:] for line in lines if line.startswith("+"))
    text = path.read_text()
    assert text.count(context) == 1, f"{path.name} has not once: {context}"
    path.write_text(text.replace(context, context + added))


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_works_to_the_letter(tmp_path: Path, page: str) -> None:
    for name in ("src", "conf", "tests", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    guide = GUIDES[page].read_text()
    written = " ".join(follow(guide, tmp_path))
    commands = re.findall(r"^python (-m pytest .*)$", guide, re.MULTILINE)
    assert written and commands
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{tmp_path}"}
    for command in [f"-m ruff check {written}", f"-m ruff format --check {written}", *commands]:
        done = subprocess.run(
            [sys.executable, *shlex.split(command)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    if page in SHOWN:
        shown = subprocess.run([sys.executable, "scripts/choices.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert re.search(SHOWN[page], shown.stdout)


def test_there_is_a_guide_for_each_kind_of_part() -> None:
    assert list(GUIDES) == ["adding_a_dataset", "adding_a_metric", "adding_a_task", "adding_a_technique"]
