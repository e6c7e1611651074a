"""A run's checkpoint, altered as a stranger may have done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.test_run import TINY

SMALL = [option for option in TINY if not option.startswith("sampling.")]


def altered(home: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the run's checkpoint whose contents `change` has edited."""
    saved = torch.load(home / "outputs" / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    change(saved)
    torch.save(saved, target)
    return target


def recipe_of(saved: dict[str, Any]) -> dict[str, Any]:
    recipe: dict[str, Any] = saved["etude"]["recipe"]
    return recipe
