"""A file with the adapters of a run alone, a tenth of a model or less, and a model put together from such a file and its base.

The file is one of `etude.core.weights_file`. Its weights are A and B of each adapted layer, and whatever else differs from the
base, such as embeddings that were trained, too. Its entry "adapter" names the base, with a fingerprint of the base's weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.core import bundled
from etude.core.adapters import ENTRY, PLACE, merged
from etude.core.called import program
from etude.core.weights_file import digest_of, write_weights

OWN = "adapter"  # in the entry "etude" of the file


def write_adapter(checkpoint: Mapping[str, Any], base: Mapping[str, Any], path: Path, *, name: str) -> Path:
    """Writes what a run with adapters added to its base to a file; returns the path.

    checkpoint, base: checked checkpoints of the run and of what it started from. name: `bundled`, or the path of the base.

    Raises: ValueError if the run had no adapters, or if they are not those of this base.
    """
    if ENTRY not in checkpoint:
        raise ValueError("adapter=true: this checkpoint has no adapters; train with technique=[lora], or leave adapter out")
    saved, theirs = checkpoint[ENTRY], base["state_dict"]
    parts: dict[str, Tensor] = saved["parts"]
    kept: dict[str, Tensor] = {}
    for layer in saved["scales"]:
        original, a, b = (parts[f"{layer}.{PLACE}.{part}"] for part in ("original", "0.a", "0.b"))
        if not _same(original, theirs.get(f"{layer}.weight")):
            raise ValueError(f"adapter=true: {layer} was adapted from other weights than those of {name}; give base= of this run")
        kept |= {f"{layer}.a": a, f"{layer}.b": b}
    adapted = {f"{layer}.weight" for layer in saved["scales"]}
    kept |= {key: v for key, v in checkpoint["state_dict"].items() if key not in adapted and not _same(v, theirs.get(key))}
    entry = {"base": name, "fingerprint": digest_of(theirs), "scales": dict(saved["scales"])}
    return write_weights({**checkpoint, "etude": {**checkpoint["etude"], OWN: entry}, "state_dict": kept}, path)


def base_of(checkpoint: Mapping[str, Any]) -> Path | None:
    """Returns the file of the base that an adapter file names; None if the checkpoint is whole."""
    entry = checkpoint["etude"].get(OWN)
    if entry is None:
        return None
    return bundled.PATH if entry["base"] == bundled.NAME else Path(entry["base"])


def joined(checkpoint: Mapping[str, Any], base: Mapping[str, Any], *, at: Path) -> dict[str, Any]:
    """Returns the whole model of an adapter file: the checkpoint of its run, bit for bit.

    base: the checkpoint of the base, at the path `at`.
    Raises: ValueError if the base has other weights than the one that was adapted.
    """
    own, found = dict(checkpoint["etude"]), dict(checkpoint["state_dict"])
    entry, theirs = own.pop(OWN), base["state_dict"]
    if digest_of(theirs) != entry["fingerprint"]:
        raise ValueError(
            f"it adapts the weights {entry['fingerprint'][:12]} of {entry['base']}, and {at} has {digest_of(theirs)[:12]}; "
            f"`{program('export')} ckpt=ADAPTER base=RUN` joins it with the model that it was made from"
        )
    weights = {}
    for layer, scale in entry["scales"].items():
        a, b = found.pop(f"{layer}.a"), found.pop(f"{layer}.b")
        weights[f"{layer}.weight"] = merged(theirs[f"{layer}.weight"], a, b, scale=scale)
    return {**checkpoint, "etude": own, "state_dict": {**theirs, **found, **weights}}


def _same(mine: Tensor, other: Tensor | None) -> bool:
    return other is not None and mine.shape == other.shape and mine.dtype == other.dtype and torch.equal(mine.cpu(), other.cpu())
