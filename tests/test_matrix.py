"""The composition tests of a submission: what it touched, and a draw that can be repeated."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import matrix

ROOT = Path(__file__).parents[1]
NAMES = sorted("abcdefghijkl")  # a imports helper.py, all import core.py


def commit(root: Path, *files: str, text: str = "changed") -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.read_text() if path.exists() else ''}# {text}\n")
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    for command in (["add", "-A"], [*who, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Twelve techniques on the branch main, and a branch that has just left it."""
    root = tmp_path / "repository"
    folder = root / "src" / "etude"
    (folder / "techniques" / "weights").mkdir(parents=True)
    (folder / "core.py").write_text("")
    (folder / "helper.py").write_text("import os\n")
    for name in NAMES:
        helper = "from etude import helper\nimport etude.helper\n" if name == "a" else ""
        place = folder / "techniques" / ("weights" if name == "l" else "") / f"{name}.py"
        place.write_text(f"import etude.core\n{helper}")
        (root / "conf" / "technique").mkdir(parents=True, exist_ok=True)
        (root / "conf" / "technique" / f"{name}.yaml").write_text(f"{name}:\n")
    subprocess.run(["git", "init", "-q", "-b", "main", str(root)], check=True)
    commit(root)
    subprocess.run(["git", "-C", str(root), "checkout", "-q", "-b", "work"], check=True)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["README.md"], set()),
        (["conf/technique/b.yaml"], {"b"}),
        (["src/etude/techniques/c.py", "tests/techniques/test_d.py"], {"c", "d"}),
        (["src/etude/techniques/weights/l.py"], {"l"}),
        (["src/etude/helper.py"], {"a"}),  # the only one that imports it
        (["src/etude/core.py"], set()),  # all import it: the draw stands for them
        (["conf/technique/new.yaml", "src/etude/techniques/new.py"], {"new"}),
    ],
)
def test_what_changed_since_the_main_branch_is_touched(repository: Path, files: list[str], expected: set[str]) -> None:
    names = [*NAMES, "new"] if "new" in expected else NAMES
    commit(repository, *files)
    commit(repository)  # a later commit that changes nothing hides nothing
    chosen = matrix.select(repository, names)
    assert chosen.touched == expected
    assert len(chosen.drawn) == matrix.DRAWN and not chosen.drawn & expected


def test_what_is_not_yet_committed_is_touched(repository: Path) -> None:
    (repository / "conf" / "technique" / "e.yaml").write_text("e: 1\n")
    (repository / "tests" / "techniques").mkdir(parents=True)
    (repository / "tests" / "techniques" / "test_f.py").write_text("")  # new, not added
    assert matrix.select(repository, NAMES).touched == {"e", "f"}


def test_on_the_main_branch_the_last_commits_count(repository: Path) -> None:
    commit(repository, "conf/technique/b.yaml")
    for _ in range(matrix.RECENT - 1):
        commit(repository)
    subprocess.run(["git", "-C", str(repository), "branch", "-q", "-f", "main", "work"], check=True)
    assert matrix.select(repository, NAMES).touched == {"b"}
    commit(repository)
    subprocess.run(["git", "-C", str(repository), "branch", "-q", "-f", "main", "work"], check=True)
    assert matrix.select(repository, NAMES).touched == set()


def test_the_draw_repeats_with_its_seed_and_follows_the_commit(repository: Path) -> None:
    first = matrix.select(repository, NAMES)
    assert matrix.select(repository, NAMES) == first == matrix.select(repository, NAMES, seed=first.seed)
    assert first.seed in str(first) and git_head(repository).startswith(first.seed)
    draws = {matrix.select(repository, NAMES, seed=str(seed)).drawn for seed in range(20)}
    assert len(draws) > 10 and frozenset().union(*draws) == set(NAMES)


def git_head(root: Path) -> str:
    return subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout


def test_without_git_a_draw_is_left(repository: Path) -> None:
    shutil.rmtree(repository / ".git")
    chosen = matrix.select(repository, NAMES)
    assert chosen.touched == set() and len(chosen.drawn) == matrix.DRAWN and chosen.seed == "0"


def test_the_option_leaves_out_the_others_alone(repository: Path) -> None:
    commit(repository, "conf/technique/b.yaml")
    tests = repository / "tests"
    tests.mkdir(exist_ok=True)
    for name in ("__init__.py", "conftest.py", "matrix.py"):
        shutil.copy(ROOT / "tests" / name, tests)
    (tests / "test_composition.py").write_text(
        f"import pytest\n@pytest.mark.parametrize('name', [None, *{NAMES}])\ndef test_one(name): pass\ndef test_all(): pass\n"
    )
    (tests / "test_other.py").write_text(f"import pytest\n@pytest.mark.parametrize('name', {NAMES})\ndef test_two(name): pass\n")
    counts = {}
    for option in ("touched", "all"):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--matrix", option, "tests"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, env={**environment, "PYTHONPATH": "."})
        assert done.returncode == 0, done.stdout + done.stderr
        counts[option] = done.stdout
    assert f"{2 * len(NAMES) + 2} passed" in counts["all"] and "deselected" not in counts["all"]
    kept = 1 + matrix.DRAWN  # b, and the draw
    assert f"{len(NAMES) + 2 + kept} passed, {len(NAMES) - kept} deselected" in counts["touched"]
    assert "touched: b; drawn: " in counts["touched"] and "--matrix-seed" in counts["touched"]
