"""A pool of past generator outputs, which keeps a discriminator from specialising on the latest ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class ImagePool:
    """Replaces about half of the generator's outputs by past ones before the discriminator gets them.

    Stores up to `size` outputs, each with its style. Until it is full, every output is stored and returned. After that, with
    probability 1/2 an output takes the place of a random stored one, which is returned instead; otherwise the output itself
    is returned. Random numbers come from torch's global generator.

    Args:
        size: number of outputs to store; with 0 every output is returned as it is.

    Source: Shrivastava et al. 2017, section 2.3; the pool of Zhu et al. 2017 (CycleGAN), which keeps 50.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._stored: list[tuple[Tensor, int]] = []

    def swap(self, output_nmf: Tensor, style_n: Tensor) -> tuple[Tensor, Tensor]:
        """Returns as many outputs and styles as given, some of them replaced by past ones."""
        if not self.size:
            return output_nmf, style_n
        returned: list[tuple[Tensor, int]] = []
        for output, style in zip(output_nmf, style_n.tolist(), strict=True):
            if len(self._stored) < self.size:
                self._stored.append((output.clone(), style))
                returned.append((output, style))
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(len(self._stored), ()))
                past, its_style = self._stored[place]
                same = past.shape == output.shape  # segments may grow in training
                returned.append((past.to(output), its_style) if same else (output, style))
                self._stored[place] = (output.clone(), style)
            else:
                returned.append((output, style))
        return torch.stack([output for output, _ in returned]), torch.tensor(
            [style for _, style in returned], device=style_n.device
        )

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Restores the present contents of the pool at the end of the `with` block."""
        kept = list(self._stored)
        try:
            yield
        finally:
            self._stored = kept

    def state(self) -> dict[str, Any]:
        """Returns the contents of the pool, for `restore`."""
        return {"outputs": [output.cpu() for output, _ in self._stored], "styles": [style for _, style in self._stored]}

    def restore(self, state: dict[str, Any]) -> None:
        """Sets the contents of the pool to those of a `state`."""
        self._stored = list(zip(state["outputs"], state["styles"], strict=True))
