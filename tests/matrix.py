"""Which techniques the composition tests try: all of them, or those that a submission touched and a few drawn at random.

`pytest --matrix touched` is what `make test` and CI run, `make test-all` tries all. The draw depends on the seed alone, which
is the commit unless `--matrix-seed` says otherwise; the last lines of the run print it.
"""

import ast
import random
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DRAWN = 6  # techniques tried beside the touched ones
RECENT = 20  # commits that count as one submission where no branch tells what is new
PLACES = ("conf/technique/", "src/etude/techniques/", "tests/techniques/")


@dataclass(frozen=True)
class Selection:
    """The techniques that changed, those drawn beside them, and the seed of the draw."""

    touched: frozenset[str]
    drawn: frozenset[str]
    seed: str

    @property
    def names(self) -> frozenset[str]:
        return self.touched | self.drawn

    def __str__(self) -> str:
        touched, drawn = (", ".join(sorted(names)) or "none" for names in (self.touched, self.drawn))
        return f"touched: {touched}; drawn: {drawn}; again with --matrix touched --matrix-seed {self.seed}"


def select(root: Path, names: Sequence[str], *, seed: str | None = None) -> Selection:
    """Chooses from `names`: what changed in the repository at `root`, and DRAWN others that `seed` decides."""
    changed = touched(root, names, changed_files(root))
    others = sorted(set(names) - changed)
    seed = seed or git(root, "rev-parse", "--short=12", "HEAD").strip() or "0"
    drawn = random.Random(seed).sample(others, min(DRAWN, len(others)))
    return Selection(frozenset(changed), frozenset(drawn), seed)


def git(root: Path, *arguments: str) -> str:
    """Returns what git prints, or nothing where there is no git, no repository or no such commit."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def changed_files(root: Path) -> set[str]:
    """Returns the files that differ from where this branch left the main one, uncommitted and new ones too.

    On the main branch itself, or in a clone that knows no other, the last RECENT commits stand for the submission.
    """
    head = git(root, "rev-parse", "HEAD").strip()
    bases = (git(root, "merge-base", "HEAD", branch).strip() for branch in ("origin/HEAD", "origin/main", "main"))
    base = next((commit for commit in bases if commit and commit != head), "")
    if not base:
        commits = git(root, "rev-list", "--first-parent", f"--max-count={RECENT + 1}", "HEAD").split()
        base = commits[-1] if commits else ""
    listed = git(root, "diff", "--name-only", base).split("\n") if base else []
    return {name for name in [*listed, *git(root, "ls-files", "--others", "--exclude-standard").split("\n")] if name}


def touched(root: Path, names: Iterable[str], changed: set[str]) -> set[str]:
    """Returns the techniques whose module, configuration, test or own helpers are among the changed files.

    A module that most techniques import, such as the core, touches none in particular: the drawn ones stand for all.
    """
    needs = {name: dependencies(root, name) for name in names}
    counts: dict[str, int] = {}
    for files in needs.values():
        for file in files:
            counts[file] = counts.get(file, 0) + 1
    own = {name: {file for file in files if 2 * counts[file] <= max(len(needs), 2)} for name, files in needs.items()}
    stems = {Path(file).stem.removeprefix("test_") for file in changed if file.startswith(PLACES)}
    return {name for name in needs if name in stems or own[name] & changed}


def dependencies(root: Path, name: str) -> set[str]:
    """Returns the files of this repository that a technique's module imports, directly or not, itself included."""
    waiting = list((root / "src" / "etude" / "techniques").rglob(f"{name}.py"))
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if (file := path.relative_to(root).as_posix()) in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            files = [root / "src" / f"{module.replace('.', '/')}.py" for module in modules if module.startswith("etude.")]
            waiting += [file for file in files if file.is_file()]
    return found
