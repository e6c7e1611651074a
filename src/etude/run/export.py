"""The program export: a checkpoint's weights as a safetensors file."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from etude.run.command import one_line_errors


@one_line_errors
def export(cfg: DictConfig) -> None:
    """Writes the weights and the recipe of a checkpoint to `file`; prints its path and size."""
    from etude.core.checkpoint_files import load_checkpoint
    from etude.core.checkpoint_search import find_checkpoint
    from etude.core.weights_file import write_weights

    path = find_checkpoint(cfg.ckpt or "last", cfg.outputs, best=True)
    folder = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    file = Path(cfg.file).expanduser() if cfg.file else folder / "weights.safetensors"
    if file.exists() and not cfg.overwrite:
        raise ValueError(f"file={file} exists; give another name, or overwrite=true")
    write_weights(load_checkpoint(path), file)
    print(f"weights of {path}: {file} ({file.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
