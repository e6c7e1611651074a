"""What a task, data or an optimizer offers is asked for by protocol; looking for names is refused but for listed reasons."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "etude"
FILES = sorted(SOURCE.rglob("*.py"))
EXCEPTIONS = {  # (file, name that is looked for): why no protocol of ours can stand there
    ("report/environment.py", "sched_getaffinity"): "os has it on Linux alone",
    ("music/notation.py", "tie"): "an element of music21",
    ("music/notation.py", "partName"): "an element of music21",
    ("music/notation.py", "atSoundingPitch"): "an element of music21",
    ("music/notation.py", "percMapPitch"): "an element of music21",
    ("audio/files.py", "error_string"): "an error of libsndfile",
    ("core/clipping.py", "full_tensor"): "a tensor that trainer=fsdp splits; importing its class costs every program a second",
    ("optim/faults.py", "to_local"): "likewise",
    ("core/lightning.py", "scaler"): "a precision plugin of Lightning",
    ("report/media.py", "log_image"): "a logger of another package, which need not be installed",
    ("report/media.py", "add_image"): "likewise",
    ("report/media.py", "log_audio"): "likewise",
    ("report/media.py", "add_audio"): "likewise",
    ("techniques/loss/balance.py", "variable"): "a node of PyTorch's graph",
    ("techniques/loss/balance.py", "next_functions"): "a node of PyTorch's graph",
    ("core/phase_draws.py", "datamodule"): "a trainer of Lightning, before it has data",
    ("core/checkpoints.py", "final_weights"): "the callback also saves modules that are no tasks",
    ("run/command.py", "full_key"): "an error of OmegaConf",
    ("sweeps/storage.py", "orig"): "an error of SQLAlchemy, which is not imported for this",
    ("tokens/classes.py", "table"): "of tokenizers, which other issues give a base",
}


def probes(path: Path) -> list[str]:
    """Names that the file looks for with `hasattr` or with a default of `getattr`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.args[1] if len(node.args) > 1 else None
            if node.func.id == "hasattr":
                found.append(name.value if isinstance(name, ast.Constant) else ast.unparse(node))
            elif node.func.id == "getattr" and len(node.args) == 3 and isinstance(name, ast.Constant):
                found.append(name.value)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_looks_for_names_where_a_protocol_could_stand(path: Path) -> None:
    refused = [name for name in probes(path) if (path.relative_to(SOURCE).as_posix(), name) not in EXCEPTIONS]
    assert not refused, f"{path.name} looks for {refused}; ask with isinstance for a protocol of core/protocols.py"


def test_the_check_sees_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("hasattr(task, 'sample'); getattr(data, 'paired', None); getattr(task, 'fine')\n")
    assert probes(tmp_path / "x.py") == ["sample", "paired"]
    (tmp_path / "x.py").write_text("all(hasattr(task, name) for name in names)\n")
    assert probes(tmp_path / "x.py") == ["hasattr(task, name)"]
