"""docs/guides/adding_a_technique.md, followed to the letter in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guides" / "adding_a_technique.md").read_text()


@pytest.mark.slow
def test_the_guide_adds_a_technique(tmp_path: Path) -> None:
    for name in ("src", "conf", "tests", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = re.findall(r"^## \d\. [^\n]*: `(\S+)`$.*?^```\w+\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(files) == 3
    for name, text in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{tmp_path}"}
    commands = re.findall(r"^python (-m pytest .*)$", GUIDE, re.MULTILINE)
    assert len(commands) == 2
    written = " ".join(name for name, _ in files if name.endswith(".py"))
    for command in [f"-m ruff check {written}", f"-m ruff format --check {written}", *commands]:
        done = subprocess.run(
            [sys.executable, *shlex.split(command)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    shown = subprocess.run([sys.executable, "scripts/choices.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r"gradient_noise +Adds noise to the gradients that dies away\.", shown.stdout)
