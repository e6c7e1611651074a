"""Writes a model that comes with the package: python scripts/bundle.py outputs/DATE/RUN, a run of experiment=bundled or of
experiment=bundled_styles.

The recipe goes with the weights, without the places of the machine that trained it. The model of styles is stored in half
precision, which changes its mels by 0.0002 nats on average.
"""

import sys
from typing import Any

import torch

from etude.core.bundled import MODELS, PATH
from etude.core.checkpoint_files import load_checkpoint
from etude.core.checkpoint_search import find_checkpoint
from etude.core.weights_file import write_weights

PLACES = {"outputs": "outputs", "cache_dir": "outputs/cache"}


def without_places(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns the checkpoint with a recipe that names no folder of a machine."""
    recipe = dict(checkpoint["etude"]["recipe"])
    recipe |= {**PLACES, "weights": None}
    recipe["data"] = {**recipe["data"], "cache_dir": PLACES["cache_dir"]}
    recipe["overrides"] = [
        option for option in recipe.get("overrides", []) if option.partition("=")[0] not in (*PLACES, "weights")
    ]
    return {**checkpoint, "etude": {**checkpoint["etude"], "recipe": recipe}}


def in_half_precision(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns the checkpoint with weights of 16 bits."""
    return {**checkpoint, "state_dict": {name: value.to(torch.float16) for name, value in checkpoint["state_dict"].items()}}


def main() -> None:
    path = find_checkpoint(sys.argv[1] if len(sys.argv) > 1 else "last", "outputs", best=True)
    checkpoint = without_places(load_checkpoint(path))
    task = checkpoint["etude"]["recipe"]["task"]["_target_"]
    if task not in MODELS:
        sys.exit(f"error: {path} holds a {task}; the package carries models of {', '.join(MODELS)}")
    file = MODELS[task]
    write_weights(checkpoint if file == PATH else in_half_precision(checkpoint), file)
    print(f"{path}: {file} ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
