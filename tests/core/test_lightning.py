"""Only core/lightning.py touches what Lightning keeps to itself."""

import ast
from pathlib import Path

import pytorch_lightning as pl

from tests.toys import ToyGan, trainer

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "etude"
# of no underscore, and documented nowhere either
UNDOCUMENTED = {"fit_loop", "epoch_loop", "val_loop", "val_check_batch", "precision_plugin", "setup_optimizers"}


def private_names(folder: Path) -> set[str]:
    """Names with one underscore that Lightning's trainer, loops, strategy, connectors and module have."""
    run: pl.Trainer = trainer(folder, max_steps=1)
    loop = run.fit_loop
    inner = (loop.epoch_loop, loop.epoch_loop.val_loop, loop.epoch_loop.automatic_optimization)
    connectors = (run._data_connector, run._checkpoint_connector, run._logger_connector)
    found = {name for owner in (run, loop, *inner, *connectors, run.strategy) for name in (*dir(owner), *vars(owner))}
    found |= {name for name in dir(pl.LightningModule()) if name not in dir(__import__("torch").nn.Module())}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def touched(path: Path, private: set[str]) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return [
        f"{path.name}:{n.lineno} {n.attr}" for n in nodes if n.attr in UNDOCUMENTED or (n.attr in private and n.attr not in own)
    ]


def test_no_other_file_touches_lightnings_inside(tmp_path: Path) -> None:
    private = private_names(tmp_path)
    assert {"_should_check_val_fx", "_data_fetcher", "_data_connector", "_trainer", "_should_accumulate"} <= private
    files = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "core" / "lightning.py"]
    assert len(files) > 100 and [hit for path in files for hit in touched(path, private)] == []
    assert touched(SOURCE / "core" / "lightning.py", private)  # the search finds what there is


def test_lightning_is_kept_below_its_next_minor_release() -> None:
    major, minor = map(int, pl.__version__.split(".")[:2])
    assert f'"pytorch-lightning>={major}.{minor},<{major}.{minor + 1}"' in (ROOT / "pyproject.toml").read_text()


def test_core_has_no_circle_of_imports() -> None:
    """Not even for type checkers: what knows of each other can't be read one after the other."""
    core = {path.stem: path for path in (SOURCE / "core").glob("*.py") if path.stem != "__init__"}
    knows: dict[str, set[str]] = {}
    for name, path in core.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found = {n.module.removeprefix("etude.core.") for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
        found |= {a.name for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "etude.core" for a in n.names}
        knows[name] = found & core.keys()
    while free := [name for name, others in knows.items() if not others]:
        knows = {name: others - set(free) for name, others in knows.items() if name not in free}
    assert not knows, f"these know each other: {knows}"


def test_a_task_without_a_trainer_has_none() -> None:
    from etude.core import lightning

    assert lightning.trainer_of(ToyGan()) is None
