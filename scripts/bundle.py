"""Writes the model that comes with the package: python scripts/bundle.py outputs/DATE/RUN (a run of experiment=bundled).

The recipe goes with the weights, without the places of the machine that trained it.
"""

import sys
from typing import Any

from etude.core.bundled import PATH
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


def main() -> None:
    path = find_checkpoint(sys.argv[1] if len(sys.argv) > 1 else "last", "outputs", best=True)
    write_weights(without_places(load_checkpoint(path)), PATH)
    print(f"{path}: {PATH} ({PATH.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
