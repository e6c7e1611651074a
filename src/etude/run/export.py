"""The program export: a checkpoint's weights as a safetensors file."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from etude.core import bundled
from etude.run.before_after import STARTED, start_file
from etude.run.command import one_line_errors


@one_line_errors
def export(cfg: DictConfig) -> None:
    """Writes the weights and the recipe of a checkpoint to `file`; prints its path and size."""
    from etude.core.checkpoint_files import load_checkpoint
    from etude.core.checkpoint_search import find_checkpoint
    from etude.core.weights_file import write_weights

    path = find_checkpoint(cfg.ckpt or "last", cfg.outputs, best=True)
    folder = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    file = Path(cfg.file).expanduser() if cfg.file else folder / ("adapter.safetensors" if cfg.adapter else "weights.safetensors")
    if file.exists() and not cfg.overwrite:
        raise ValueError(f"file={file} exists; give another name, or overwrite=true")
    base = None if cfg.base is None else find_checkpoint(cfg.base, cfg.outputs, option="base", best=True)
    if cfg.adapter:
        _write_adapter(load_checkpoint(path), base, file)
    else:
        write_weights(load_checkpoint(path, base=base), file)
    print(f"weights of {path}: {file} ({file.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)


def _write_adapter(checkpoint: dict[str, Any], base: Path | None, file: Path) -> None:
    """Writes the adapters of a run, for `base` or what the run started from. Raises: ValueError if that is not there."""
    from etude.core.adapter_file import write_adapter
    from etude.core.checkpoint_files import load_checkpoint

    started = checkpoint["etude"]["recipe"].get(STARTED)
    if base is None and started is not None:
        base = start_file(started)
    if base is None or not base.is_file():
        raise ValueError(f"adapter=true needs what the run started from ({started or 'random weights'}); give it as base=")
    name = bundled.NAME if base == bundled.PATH else str(base.resolve())
    write_adapter(checkpoint, load_checkpoint(base), file, name=name)
