"""Who may import whom, read off the code itself."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "etude"
MUSICAL = {"music", "tokens", "audio", "render"}
TRAINED = {"core", "data", "metrics", "report"} | MUSICAL  # what works with a trained task
EVERYWHERE = {"durable", "wording"}  # import nothing of Etude themselves
MAY_IMPORT = {  # besides its own folder
    "durable": set(),
    "moved": set(),
    "wording": set(),
    "music": set(),
    "audio": set(),
    "losses": set(),
    "attacks": set(),
    "models": set(),
    "tokens": {"music", "moved"},
    "render": {"music", "audio"},
    "metrics": {"music", "tokens", "audio"},
    "data": MUSICAL | {"metrics"},
    "core": {"moved"},
    "objectives": {"losses"},
    "optim": {"core"},
    "report": set(),
    "tasks": {"core", "losses", "objectives", "models", "metrics", "music", "tokens", "audio"},
    "techniques": {"core", "optim", "attacks", "losses", "metrics", "evaluation", "report", "music", "tokens"},
    "evaluation": TRAINED | {"attacks"},
    "generation": TRAINED,
    "transfer": TRAINED,
    "synthesis": TRAINED | {"transfer"},
    "sweeps": {"core", "report"},
    "run": {"core", "report", "sweeps"},
    "studio": TRAINED | {"run"},
}
WITHOUT_LIGHTNING = {"music", "tokens", "audio", "render", "losses", "attacks", "objectives", "metrics", "models"}
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
    own = {name.split(".")[1] for name in found if name.startswith("etude.")}
    inside = set() if layer == "techniques" else {layer}  # techniques don't know each other
    allowed = MAY_IMPORT[layer] | inside | (set() if layer in EVERYWHERE else EVERYWHERE)
    assert own <= allowed, f"{layer} may not import {own - allowed}"
    assert "etude" not in found, f"{path}: name the module that is imported"
    if layer in WITHOUT_LIGHTNING:
        assert not any(name.split(".")[0] in {"pytorch_lightning", "hydra", "omegaconf"} for name in found)
    if layer != "run":
        assert not any(name.split(".")[0] == "hydra" for name in found), "only run/ knows Hydra"
    assert "lightning" not in {name.split(".")[0] for name in found}, "pytorch_lightning and lightning are two class trees"


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=lambda p: str(p.parent.name))
def test_packages_re_export_nothing(path: Path) -> None:
    assert not path.read_text().strip()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_small(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 400, f"{path.name} has {lines} lines; what does it hide?"
