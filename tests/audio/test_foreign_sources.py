"""Sounds and sources made from one batch: the shares that are stated, and the same for the same draws."""

import torch
from torch import Tensor

from etude.audio.foreign_sources import ADDED, FOREIGN, NONE, SHARED, foreign_sources


def spectra(rows: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.complex(*(torch.randn(rows, 33, 20, generator=generator) for _ in range(2)))


def drawn(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return foreign_sources(spectra(rows), torch.Generator().manual_seed(seed))


def test_one_generator_one_result() -> None:
    (sound, source), (again, source_again) = drawn(6), drawn(6)
    assert torch.equal(sound, again) and torch.equal(source, source_again)
    assert not torch.equal(source, drawn(6, seed=1)[1])
    assert sound.shape == source.shape == (6, 33, 20) and bool((sound >= 0).all() & (source >= 0).all())


def test_the_shares_are_the_ones_that_are_stated() -> None:
    added = none = shared = 0
    own = spectra(8)
    for seed in range(60):
        sound, source = drawn(8, seed)
        absent = source.amax((1, 2)) == 0
        added += int(((sound - own.abs()).abs().amax((1, 2)) > 1e-6).sum())
        none += int(absent.sum())
        for row in range(8):  # with only its own sound in it, the gains are smooth: neighbouring bins differ little
            gain = (source[row] / own[row].abs()).clamp(min=1e-9).log()
            shared += int(not absent[row] and float(gain.diff(dim=0).abs().mean()) < 0.5)
    count = 8 * 60
    assert abs(added / count - ADDED) < 0.07 and none / count > NONE
    assert abs(none / count - (NONE + (1 - NONE) * (1 - SHARED) * (1 - FOREIGN))) < 0.06
    assert abs(shared / count - (1 - NONE) * SHARED * (1 - FOREIGN)) < 0.05


def test_a_single_row_has_itself_for_another() -> None:
    sound, source = drawn(1)
    assert sound.shape == source.shape == (1, 33, 20) and bool(torch.isfinite(source).all())
