"""Weights as a safetensors file: nothing is lost on the way, and what comes back is checked like a checkpoint."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from etude.core.checkpoint_files import load_checkpoint, resumable
from etude.core.weights_file import _digest, read_weights, write_weights
from tests.core.test_kept_checkpoints import good


def checkpoint(tmp_path: Path) -> dict[str, Any]:
    found = load_checkpoint(good(tmp_path / "last.ckpt", weight=0.5))
    shared = torch.arange(6.0).reshape(2, 3)
    found["state_dict"] |= {
        "tied": shared, "tied_again": shared, "transposed": shared.T, "half": torch.ones(3, dtype=torch.bfloat16),
        "number": torch.tensor(7), "none": torch.zeros(0, 4),
    }  # fmt: skip
    found["etude"] |= {"statistics": torch.ones(2, 2), "pairs": (1, (2.5, None)), "numbers": {1: "a", 2: torch.tensor([True])}}
    return found | {"optimizer_states": [1]}


def test_all_that_a_model_is_built_from_comes_back(tmp_path: Path) -> None:
    saved = checkpoint(tmp_path)
    path = write_weights(
        {**saved, "etude": {**saved["etude"], "pool": {"outputs": [torch.zeros(9)]}}}, tmp_path / "w.safetensors"
    )
    found = load_checkpoint(path)
    assert found.keys() == {"etude", "global_step", "state_dict"} and found["global_step"] == 3
    assert found["state_dict"].keys() == saved["state_dict"].keys()
    for name, value in saved["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value) and found["state_dict"][name].dtype == value.dtype, name
    assert torch.equal(found["etude"].pop("statistics"), saved["etude"].pop("statistics"))
    assert found["etude"]["numbers"].pop(2) == saved["etude"]["numbers"].pop(2)
    assert found["etude"] == saved["etude"]
    assert [file.name for file in tmp_path.iterdir() if ".part" in file.name] == []


def test_a_flipped_bit_or_a_missing_part_is_noticed(tmp_path: Path) -> None:
    path = write_weights(checkpoint(tmp_path), tmp_path / "w.safetensors")
    data, expected = path.read_bytes(), load_checkpoint(path)
    random.seed(0)
    bits = [(random.randrange(len(data)), random.randrange(8)) for _ in range(100)]
    damaged = [data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :] for place, bit in bits]
    refused = 0
    for content in (*damaged, data[:-1], data[: len(data) // 2], data[:4], b""):
        path.write_bytes(content)
        try:
            found = load_checkpoint(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
        else:  # a bit of what is not read, such as the spelling of a key that is left out
            assert all(torch.equal(found["state_dict"][name], value) for name, value in expected["state_dict"].items())
            assert found["global_step"] == expected["global_step"] and found["etude"].keys() == expected["etude"].keys()
    assert refused > 100


def test_what_is_not_of_etude_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="holds weights without a recipe of Etude"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match=r"file=w.pt: the name must end in .safetensors"):
        write_weights(checkpoint(tmp_path), Path("w.pt"))
    with pytest.raises(ValueError, match="holds weights only; start a new run from them with weights="):
        resumable(path)


def edited(path: Path, key: str, change: Any) -> dict[str, str]:
    """Changes a text of a file's metadata; returns them all."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata: dict[str, str] = header["__metadata__"]
    metadata[key] = change(metadata[key])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return metadata


@pytest.mark.parametrize(
    ("key", "change"),
    [("global_step", lambda text: "4"), ("etude", lambda text: text.replace("2.5", "2.6"))],
    ids=["step", "recipe"],
)
def test_edited_metadata_are_refused(tmp_path: Path, key: str, change: Any) -> None:
    path = write_weights(checkpoint(tmp_path), tmp_path / "w.safetensors")
    edited(path, key, change)
    with pytest.raises(ValueError, match="damaged: the checksum of its weights and recipe is wrong"):
        load_checkpoint(path)


def test_a_recipe_in_the_metadata_is_checked_as_in_a_checkpoint(tmp_path: Path) -> None:
    path = write_weights(checkpoint(tmp_path), tmp_path / "w.safetensors")
    tensors = {name: value.clone() for name, value in load_file(path).items()}  # copies, since the file is overwritten
    metadata = edited(path, "etude", lambda text: text.replace("etude.tasks.language_model.LanguageModel", "os.system"))
    edited(path, "sha256", lambda _: _digest(tensors, metadata))  # as one who means harm would
    assert read_weights(path)["etude"]["recipe"]["task"]["_target_"] == "os.system"
    with pytest.raises(ValueError, match=r"task names 'os\.system', which is not a task that Etude knows"):
        load_checkpoint(path)
