"""Weights as a safetensors file, with the recipe of their run as metadata; read back as a checkpoint without a trainer's state.

The file holds the weights that the checkpoint's `state_dict` has, such as an average. The metadata, all text, hold:

    etude           the entry "etude" of the checkpoint as JSON: recipe, tokenizer or mel contract, steps; its tensors stand in
                    the file under names that begin with "etude."
    global_step     optimizer steps
    sha256          of all tensors and of the other metadata, by which a damaged or edited file is noticed
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.core.disk_space import check_space, size_of
from etude.durable import replacing

SUFFIX = ".safetensors"
OWN = "etude."  # begins the names of tensors that are not weights
LEFT_OUT = ("pool",)  # of the entry "etude": state of training


def write_weights(checkpoint: Mapping[str, Any], path: Path) -> Path:
    """Writes the weights and the recipe of a checked checkpoint to `path`, atomically; returns the path.

    Raises: ValueError for a name without the suffix .safetensors; OSError if there is no space.
    """
    from safetensors.torch import save_file

    if path.suffix != SUFFIX:
        raise ValueError(f"file={path}: the name must end in {SUFFIX}")
    tensors: dict[str, Tensor] = {}
    own = {key: value for key, value in checkpoint["etude"].items() if key not in LEFT_OUT}
    text = json.dumps(_packed(own, tensors, OWN))
    # copies, since the format has no place for weights that share memory
    tensors |= {name: value.detach().cpu().clone().contiguous() for name, value in checkpoint["state_dict"].items()}
    metadata = {"format": "pt", "etude": text, "global_step": str(checkpoint["global_step"])}
    metadata["sha256"] = _digest(tensors, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path, size_of(tensors))
    with replacing(path) as aside:
        save_file(tensors, aside, metadata=metadata)
    return path


def read_weights(path: Path) -> dict[str, Any]:
    """Returns what a file of `write_weights` holds as a checkpoint: etude, global_step, state_dict; nothing in it is checked.

    Raises: ValueError for a file that is damaged or not of Etude, in one line that names it.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
    except OSError as error:
        raise ValueError(
            f"{path}: can't be read ({error.strerror or error}); give a file that you have permission to read"
        ) from error
    except Exception as error:  # the library has an error class of its own
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: not a readable file of weights, or a damaged one ({reason}); copy it again") from error
    if "etude" not in metadata or "sha256" not in metadata:
        raise ValueError(f"{path}: holds weights without a recipe of Etude; give a file that `etude export` wrote")
    if metadata["sha256"] != _digest(tensors, metadata):
        raise ValueError(
            f"{path}: damaged: the checksum of its weights and recipe is wrong; copy the file again, or export it again"
        )
    try:
        own = _unpacked(json.loads(metadata["etude"]), tensors)
        step = int(metadata.get("global_step", ""))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: its recipe is not one that Etude writes; export it again") from error
    weights = {name: value for name, value in tensors.items() if not name.startswith(OWN)}
    return {"etude": own, "global_step": step, "state_dict": weights}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Returns a SHA-256 of tensors in hex: their names, precisions, shapes and values."""
    return _digest(tensors, {})


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for key in ("etude", "global_step"):
        text = metadata.get(key, "").encode()
        digest.update(f"{key} {len(text)}\n".encode() + text)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def _packed(node: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Returns nested values as JSON has them; tensors are put into `tensors`, what JSON lacks into marked dictionaries."""
    if isinstance(node, Tensor):
        tensors[name] = node.detach().cpu().clone().contiguous()
        return {"$tensor": name}
    if isinstance(node, dict):
        values = {key: _packed(value, tensors, f"{name}{key}.") for key, value in node.items()}
        plain = all(isinstance(key, str) and not key.startswith("$") for key in values)
        return values if plain else {"$items": [[key, value] for key, value in values.items()]}
    if isinstance(node, list | tuple):
        found = [_packed(value, tensors, f"{name}{number}.") for number, value in enumerate(node)]
        return found if isinstance(node, list) else {"$tuple": found}
    return node


def _unpacked(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpacked(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if "$tensor" in node:
        return tensors[node["$tensor"]]
    if "$tuple" in node:
        return tuple(_unpacked(value, tensors) for value in node["$tuple"])
    if "$items" in node:
        return {key: _unpacked(value, tensors) for key, value in node["$items"]}
    return {key: _unpacked(value, tensors) for key, value in node.items()}
