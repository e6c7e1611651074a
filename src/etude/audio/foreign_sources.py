"""Pairs of a sound and a source that shares some of its notes, made from recordings without pairs.

Shapes: b rows, k linear frequency bins, f frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ADDED, SHARED, FOREIGN, NONE = 0.3, 0.5, 0.8, 0.12  # probabilities
GAIN_NATS = 1.2  # deviation of the random gains over frequency and time: other instruments, other envelopes
GRID, GRID_FRAMES = 16, 16  # of these gains: values over the frequencies, frames from one to the next


def foreign_sources(spectrum_bkf: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Returns magnitudes of sounds, and of a source for each, both [b, k, f]; a source of zeros is none.

        sound = |X + u Y|      source = |s (E X) + t (E' Z)|

    X, Y and Z are rows of the batch, E and E' smooth random gains over frequency and time; u, s and t are 0 or a random level. So
    a source has some notes of the sound, in another timbre, lacks others and adds others, as a recording and what a style
    transfer makes of it.

    Args:
        spectrum_bkf: complex spectra, at least 2 rows for Y and Z to be others than X.
        generator: draws everything; None for PyTorch's.
    """
    rows, num_bins, frames = spectrum_bkf.shape
    kind = {"generator": generator, "device": spectrum_bkf.device if generator is None else generator.device}

    def draw(function: object, *sizes: int) -> Tensor:
        found: Tensor = function(sizes, **kind)  # type: ignore[operator]
        return found.to(spectrum_bkf.device)

    def happens(chance: float) -> Tensor:
        return (draw(torch.rand, rows, 1, 1) < chance).float()

    def level() -> Tensor:
        return (0.5 * draw(torch.randn, rows, 1, 1)).exp()

    def gains() -> Tensor:
        grid = GAIN_NATS * draw(torch.randn, rows, 1, GRID, max(2, frames // GRID_FRAMES))
        return F.interpolate(grid, size=(num_bins, frames), mode="bilinear", align_corners=True)[:, 0].exp()

    others = [spectrum_bkf.roll(1 + i % max(1, rows - 1), 0) for i in (0, 1 + int(draw(torch.rand, 1) * max(1, rows - 2)))]
    sound = spectrum_bkf + happens(ADDED) * 0.6 * level() * others[0]
    source = happens(SHARED) * gains() * spectrum_bkf + happens(FOREIGN) * 0.7 * level() * gains() * others[1]
    return sound.abs(), source.abs() * level() * (1 - happens(NONE))
