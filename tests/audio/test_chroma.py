"""A line belongs to its pitch class in every octave; a broad band says nothing."""

import pytest
import torch

from etude.audio.chroma import chroma_filterbank, mel_chroma_filterbank
from etude.audio.mel import MelContract


@pytest.mark.parametrize("octave", range(5))
def test_a_line_is_its_class(octave: int) -> None:
    pitches = torch.arange(36, 48) + 12 * octave  # C first
    bank = chroma_filterbank(440 * 2 ** ((pitches - 69) / 12), widths_hz=torch.zeros(12), f_min=1, f_max=1e5)
    assert (bank.argmax(dim=0) == torch.arange(12)).all()
    assert (bank.diagonal() > 0.95).all()


def test_columns_are_shares_and_circular() -> None:
    bank = chroma_filterbank(torch.tensor([10.0, 440.0, 466.1638, 9000.0]), widths_hz=torch.zeros(4))
    torch.testing.assert_close(bank.sum(dim=0), torch.tensor([0.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(bank[:, 1].roll(1), bank[:, 2], atol=1e-5, rtol=0)


def test_a_broad_band_says_nothing() -> None:
    bank = chroma_filterbank(torch.tensor([100.0]), widths_hz=torch.tensor([40.0]))
    torch.testing.assert_close(bank, torch.full((12, 1), 1 / 12), atol=1e-3, rtol=0)


def test_more_mel_bands_say_more() -> None:
    sharp = [mel_chroma_filterbank(MelContract(n_mels=n)).amax(dim=0).max().item() for n in (40, 64, 128)]
    assert sharp == sorted(sharp) and sharp[2] > 0.6
