"""Checkpoints as files: which one is meant, and what it holds, without running any code that it might hold."""

from pathlib import Path
from typing import Any


def find_checkpoint(ckpt: str, outputs: str, *, kind: str | None = None, option: str = "ckpt") -> Path:
    """Returns the checkpoint that `ckpt` names: a file, a run's folder, or `last` for the newest run's last one.

    kind: with `last`, the newest run of this task, such as style_transfer; None for any. option: the key that holds `ckpt`.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if ckpt == "last":
        found = sorted(Path(outputs).rglob("checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        found = [path for path in found if kind is None or _trained(path.parents[1], kind)]
        if not found:
            of = "" if kind is None else f" of a {kind} run"
            raise ValueError(f"{option}=last: no checkpoints/last.ckpt{of} under {outputs}/; train first or give a path")
        return found[-1]
    path = Path(ckpt).expanduser()
    if path.is_dir():
        phases = sorted(path.glob("*/checkpoints/last.ckpt"))  # of a run with stage=
        inside = path / "checkpoints" / "last.ckpt" if (path / "checkpoints").is_dir() else path / "last.ckpt"
        path = phases[-1] if phases and not inside.is_file() else inside
    if not path.is_file():
        raise ValueError(f"{option}={ckpt}: there is no such file; give a checkpoint, a run's folder, or {option}=last")
    return path


def find_stage(names: list[str], outputs: str, *, wanted: str, kind: str | None = None) -> Path:
    """Returns the best checkpoint of the newest run of the first of these stages that has one; of runs of task `kind` alone.

    Raises:
        ValueError: there is none.
    """
    for name in names:
        found = sorted(Path(outputs).rglob("checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        found = [path for path in found if f"\nstage:\n  name: {name}\n" in "\n" + _config(path.parents[1])]
        found = [path for path in found if kind is None or _trained(path.parents[1], kind)]
        if found:
            best = found[-1].with_name("best.ckpt")
            return best if best.is_file() else found[-1]
    first = names[-1] + (f" task={kind}" if kind else "")  # which needs no other
    raise ValueError(
        f"stage={wanted} starts from a run of stage={' or '.join(names)}, and {outputs}/ holds none; run `python train.py "
        f"stage={first}` first, or give weights=CHECKPOINT"
    )


def _config(folder: Path) -> str:
    config = folder / "config.yaml"
    return config.read_text(errors="replace") if config.is_file() else ""


def _trained(folder: Path, kind: str) -> bool:
    """Whether a run's folder says that it trained such a task."""
    return f"_target_: etude.tasks.{kind}." in _config(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's contents without running any code that it might hold."""
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__}); give one that Etude wrote") from error
    if "etude" not in checkpoint or not checkpoint["etude"].get("recipe"):
        raise ValueError(f"{path}: not a checkpoint of Etude; give one that train.py wrote")
    for name in _targets(checkpoint["etude"]["recipe"]):  # building the task must run no code but ours and PyTorch's
        if not _is_ours(name):
            raise ValueError(f"{path}: its recipe names {name}, which is not of Etude; don't load checkpoints you don't trust")
    return checkpoint


def _is_ours(name: str) -> bool:
    """Whether `name` stands in a module of Etude, torch.optim or Lightning, and is not reached through what one imports."""
    from importlib.util import find_spec

    try:
        found = find_spec(name.rpartition(".")[0])
    except (ImportError, ValueError):
        found = None
    return found is not None and name.startswith(("etude.", "torch.optim.", "pytorch_lightning."))


def _targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [name for value in node.values() for name in _targets(value)]
    return [name for value in node for name in _targets(value)] if isinstance(node, list) else []
