"""Who may import whom, read off the code itself."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "etude"
MAY_IMPORT = {
    "moved": set(),
    "music": {"music", "moved"},
    "audio": {"audio"},
    "losses": {"losses"},
    "metrics": {"metrics", "music", "audio"},
    "models": {"models"},
    "data": {"data", "music", "audio"},
    "core": {"core", "moved"},
    "tasks": {"tasks", "core", "models", "losses", "metrics", "audio", "music"},
    "techniques": {"core", "losses", "metrics", "music"},
    "run": {"core", "music", "recipes", "command", "run_folder"},
    "command": {"core", "run_folder"},
    "run_folder": {"core"},
    "recipes": {"core", "music"},
    "cli": {"command"},  # it starts at once; a verb's module is imported when it is asked for
}
WITHOUT_LIGHTNING = {"music", "audio", "losses", "metrics", "models"}
NEUTRAL = {"etude.data.pool"}  # imports nothing of etude: whoever reads a user's files may do it in other processes
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_follow_the_floor_plan(path: Path) -> None:
    layer = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if layer == "__init__":
        return
    found = imports(path)
    own = {name.split(".")[1] for name in found - NEUTRAL if name.startswith("etude.")}
    own |= {"recipes"} if "etude" in found else set()
    assert own <= MAY_IMPORT[layer], f"{layer} may not import {own - MAY_IMPORT[layer]}"
    if ".".join(["etude", *path.relative_to(SOURCE).with_suffix("").parts]) in NEUTRAL:
        assert not own
    if layer in WITHOUT_LIGHTNING:
        assert not any(name.split(".")[0] in {"pytorch_lightning", "hydra", "omegaconf"} for name in found)
    if layer not in ("run", "recipes", "command", "run_folder", "cli"):
        assert not any(name.split(".")[0] == "hydra" for name in found), "only the programs know Hydra"
    assert "lightning" not in {name.split(".")[0] for name in found}, "pytorch_lightning and lightning are two class trees"


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=lambda p: str(p.parent.name))
def test_packages_re_export_nothing(path: Path) -> None:
    assert not path.read_text().strip()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_small(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 400, f"{path.name} has {lines} lines; what does it hide?"
