"""Past outputs of a generator, so that a discriminator does not forget what it has learned to see."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class ImagePool:
    """Hands a discriminator a past output in place of every second new one.

    Keeps up to `size` outputs, each with its style. While there is room, an output is kept and given back; then, with
    probability 1/2, it takes the place of a random one, which is given back instead. Draws come from torch's generator.

    Args:
        size: outputs to keep; 0 gives every output back.

    Source: Shrivastava et al. 2017, section 2.3; the pool of Zhu et al. 2017 (CycleGAN), which keeps 50.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: list[tuple[Tensor, int]] = []

    def swap(self, output_nmf: Tensor, style_n: Tensor) -> tuple[Tensor, Tensor]:
        """Returns outputs and their styles, as many as came in: new ones and past ones."""
        if not self.size:
            return output_nmf, style_n
        given: list[tuple[Tensor, int]] = []
        for output, style in zip(output_nmf, style_n.tolist(), strict=True):
            if len(self._kept) < self.size:
                self._kept.append((output.clone(), style))
                given.append((output, style))
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(len(self._kept), ()))
                past, its_style = self._kept[place]
                same = past.shape == output.shape  # segments may grow in training
                given.append((past.to(output), its_style) if same else (output, style))
                self._kept[place] = (output.clone(), style)
            else:
                given.append((output, style))
        return torch.stack([output for output, _ in given]), torch.tensor([style for _, style in given], device=style_n.device)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Puts back what it holds now when it is left."""
        kept = list(self._kept)
        try:
            yield
        finally:
            self._kept = kept

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {"outputs": [output.cpu() for output, _ in self._kept], "styles": [style for _, style in self._kept]}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self._kept = list(zip(state["outputs"], state["styles"], strict=True))
