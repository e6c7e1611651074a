"""How far an attack may change its inputs, and the geometry of that set.

Shapes: n examples; "..." are the axes of one example, such as bands and frames of a mel, or tokens and width of embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NORMS = ("linf", "l2")
TINY = 1e-12


@dataclass(frozen=True)
class Budget:
    """The largest change of each example: |change| <= size in the norm.

    size: [n], at least 0. norm: linf, the largest absolute value of the change, or l2, its Euclidean length.
    counted: [n, ...] or what broadcasts to it, 1 where inputs are real and 0 where they are padding, which is never changed;
        None if all of them are real.

    Raises: ValueError for another norm, or a size below 0.
    """

    size: Tensor
    norm: str = "linf"
    counted: Tensor | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm} is unknown; choose {' or '.join(NORMS)}")
        if bool((self.size < 0).any()):
            raise ValueError(f"a budget of {float(self.size.min())} is below 0; 0 allows no change")

    def of(self, change: Tensor) -> Tensor:
        """Returns the norm of the change of each example, [n]."""
        flat = change.flatten(1)
        return flat.abs().amax(1) if self.norm == "linf" else flat.square().sum(1).sqrt()

    def like(self, change: Tensor) -> Tensor:
        """Returns the sizes in a shape that broadcasts to the change."""
        return self.size.to(change).reshape(-1, *[1] * (change.ndim - 1))

    def real(self, change: Tensor) -> Tensor:
        """Returns the change with 0 in the padding."""
        return change if self.counted is None else change * self.counted.to(change)

    def projected(self, change: Tensor) -> Tensor:
        """Returns the nearest change within the budget, in Euclidean distance."""
        size, change = self.like(change), self.real(change)
        if self.norm == "linf":
            return torch.minimum(torch.maximum(change, -size), size)
        length = self.of(change).reshape(size.shape)
        return change * (size / length.clamp(min=TINY)).clamp(max=1.0)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Returns the change of norm 1 along which a linear function with this gradient rises most; 0 for a gradient of 0."""
        gradient = self.real(gradient)
        if self.norm == "linf":
            return gradient.sign()
        length = gradient.flatten(1).square().sum(1).sqrt().reshape(-1, *[1] * (gradient.ndim - 1))
        return gradient / length.clamp(min=TINY)

    def random(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns a random change within the budget: uniform in the cube, or of uniform direction and length."""
        if self.norm == "linf":
            draws = torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
            return self.real((2 * draws - 1) * self.like(like))
        draws = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        length = torch.rand(len(like), generator=generator, device=like.device, dtype=like.dtype)
        return self.steepest(draws) * self.like(like) * length.reshape(-1, *[1] * (like.ndim - 1))

    def take(self, rows: Tensor) -> Budget:
        """Returns the budget of some of the examples."""
        whole = self.counted is not None and len(self.counted) == len(self.size)
        return Budget(self.size[rows], self.norm, self.counted[rows] if whole and self.counted is not None else self.counted)


def within_snr(inputs: Tensor, snr_db: float, *, norm: str = "linf", counted: Tensor | None = None) -> Budget:
    """Returns the budget in which the signal-to-noise ratio of every example is at least `snr_db`.

        SNR = 10 log10(sum of input^2 / sum of change^2)

    The Euclidean length of the change is at most 10^(-snr_db / 20) times that of the input: 40 dB allow a hundredth. With
    norm=linf no value changes by more than this share of the root mean square of the example's values, which implies the same.

    Args:
        inputs: [n, ...]. snr_db: at least 0; infinity allows no change. counted: as of `Budget`.

    Raises: ValueError for a ratio below 0 dB, where the noise would be louder than the music.
    """
    check_snr(snr_db)
    share = 0.0 if math.isinf(snr_db) else 10 ** (-snr_db / 20)
    return relative(inputs, share, norm=norm, counted=counted)


def check_snr(snr_db: float, name: str = "snr_db") -> None:
    """Raises ValueError for a signal-to-noise ratio below 0 dB."""
    if not snr_db >= 0:
        raise ValueError(f"{name}={snr_db} must be at least 0 dB, where noise is as loud as music; 40 is a good start")


def relative(inputs: Tensor, share: float, *, norm: str = "linf", counted: Tensor | None = None) -> Budget:
    """Returns the budget of a share of the norm of each example's inputs (for linf: of their root mean square).

    Raises: ValueError for a share below 0.
    """
    if not share >= 0:
        raise ValueError(f"a budget of {share} times the inputs is below 0; 0 allows no change")
    values = inputs.detach() if counted is None else inputs.detach() * counted.to(inputs)
    length = values.flatten(1).square().sum(1).sqrt()
    if norm == "linf":
        number = torch.full_like(length, values[0].numel()) if counted is None else _number(values, counted)
        length = length / number.clamp(min=1).sqrt()
    return Budget(share * length, norm, counted)


def _number(values: Tensor, counted: Tensor) -> Tensor:
    return counted.to(values).expand_as(values).flatten(1).sum(1)


def snr_db(inputs: Tensor, changed: Tensor, counted: Tensor | None = None) -> Tensor:
    """Returns the signal-to-noise ratio of each example in dB, [n]; infinity where nothing has changed."""
    mask = 1.0 if counted is None else counted.to(inputs)
    signal, noise = (x.flatten(1).double().square().sum(1) for x in (inputs * mask, (changed - inputs) * mask))
    return 10 * torch.log10(signal / noise)
