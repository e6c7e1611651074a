"""Stereo as mid and side: the mid is restyled, the side gets the gains that the restyling has in each band.

With p the signs of the two channels in the mono mix (`audio.files.polarities`, both 1 unless the channels are in antiphase):

    mid = (p_0 x_0 + p_1 x_1) / 2      side = (p_0 x_0 - p_1 x_1) / 2      x_0 = p_0 (mid + side)      x_1 = p_1 (mid - side)

So the mono mix of the result is the restyled mono mix. The side keeps its phases and its width relative to the mid, bin by bin;
being scaled and not synthesised anew, a silent side stays silent.

Shapes: n samples, m mel bands, k linear frequency bins, f frames.
"""

import torch
from torch import Tensor

from etude.audio.griffin_lim import inverse_spectrum
from etude.audio.mel import MelContract

STEREO = ("mid_side", "channels")


def check_stereo(stereo: str) -> None:
    """Raises a ValueError if there is no such treatment of stereo."""
    if stereo not in STEREO:
        raise ValueError(f"stereo={stereo}: there is {' and '.join(STEREO)}; give one of them")


def side_of(samples_2n: Tensor, polarity_2: Tensor) -> Tensor:
    """Returns the side signal [1, n] of two channels; their mid is `audio.files.mono_mix`."""
    signed = polarity_2[:, None] * samples_2n
    return (signed[:1] - signed[1:]) / 2


def channels_of(mid_1n: Tensor, side_1n: Tensor, polarity_2: Tensor) -> Tensor:
    """Returns the two channels [2, n]: the inverse of mid and side."""
    return polarity_2[:, None] * torch.cat([mid_1n + side_1n, mid_1n - side_1n])


def scaled_side(spectrum_1kf: Tensor, change_1mf: Tensor, contract: MelContract) -> Tensor:
    """Returns the side signal [1, f * hop] with the gains of a change of log mels.

    A bin's gain is the mean of exp(change) over the bands that hold it, weighted by the filterbank, as in one of `GriffinLim`'s
    updates of magnitudes; bins outside all bands keep theirs.

    Args:
        spectrum_1kf: complex spectrum of the side signal. change_1mf: of the log mels of the mid, in nats.
    """
    bank = contract.filterbank(change_1mf.device)
    weights = bank.sum(0)[:, None]
    gain_1kf = torch.where(weights > 0, bank.T @ change_1mf.exp() / weights.clamp(min=1e-12), 1.0)
    return inverse_spectrum(spectrum_1kf * gain_1kf, contract)
