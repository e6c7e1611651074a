"""A network is built from a checkpoint only as far as the checkpoint has weights for it."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from etude.core.called import program

SPARE_WEIGHTS, SPARE_TENSORS = 10_000_000, 1_000  # buffers that are not saved, such as filterbanks


@contextlib.contextmanager
def no_larger_than(weights: Mapping[str, Tensor], *, path: Path) -> Iterator[None]:
    """Stops the building of networks that are far larger than a checkpoint's `weights`, before their memory is filled.

    A recipe is a few words; a wrong number in it could ask for all memory of the machine. A network that is a little larger or
    smaller is refused when the weights are loaded. Where the memory is not even promised, PyTorch's own error comes first.

    path: the checkpoint's file.
    Raises: ValueError that names the file and both sizes.
    """
    most = 2 * sum(value.numel() for value in weights.values()) + SPARE_WEIGHTS
    most_tensors = 2 * len(weights) + SPARE_TENSORS
    seen = [0, 0]

    def count(module: nn.Module, name: str, value: Any) -> None:
        seen[0] += 0 if value is None else value.numel()
        seen[1] += value is not None
        if seen[0] > most or seen[1] > most_tensors:
            raise ValueError(
                f"{path}: its recipe asks for a network of at least {seen[0]:,} weights in {seen[1]:,} tensors, its weights are "
                f"{sum(value.numel() for value in weights.values()):,} in {len(weights):,}; "
                f"give a checkpoint that `{program('train')}` wrote, with the model= of its run"
            )

    handles = (register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
