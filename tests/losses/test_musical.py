"""Musical terms against hand examples."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.losses import musical


def one_hot(*pitches: int) -> torch.Tensor:
    return F.one_hot(torch.tensor(pitches), musical.PITCHES).float()


def test_a_pitchs_mass_goes_to_octave_then_fifth_then_scale_and_nowhere_else() -> None:
    table = musical.pitch_smoothing()
    assert torch.allclose(table.sum(-1), torch.ones(12, 128)) and (table.diagonal(dim1=1, dim2=2) == 0).all()
    c_major = table[0, 60]
    assert c_major[72] == c_major[48] > c_major[67] == c_major[55] == c_major[65] > c_major[62] == c_major[59] > 0
    assert c_major[61] == c_major[66] == 0
    assert table[1, 60][61] > 0  # in D flat major


def test_the_scale_that_holds_most_notes_is_found() -> None:
    notes = torch.tensor([0, 2, 4, 5, 7, 9, 11])
    for tonic in range(12):
        counts = torch.bincount((notes + tonic) % 12, minlength=12)
        assert musical.best_scale(counts) == tonic


def test_places_and_lengths_prefer_what_is_near_and_strong() -> None:
    places = musical.position_smoothing(np.array([0, 1, 3, 6, 12, 24]))
    assert torch.allclose(places.sum(-1), torch.ones(6)) and (places.diagonal() == 0).all()
    assert places[0, 4] > places[0, 2] > places[0, 1] and places[0, 4] > places[0, 5]
    lengths = musical.duration_smoothing(np.array([6, 12, 13, 24]))
    assert lengths[0, 1] > lengths[0, 3] and lengths[1, 3] > lengths[1, 2]


def test_steps_and_contrary_motion_cost_nothing_leaps_crossings_and_parallels_do() -> None:
    assert musical.leap_penalty(one_hot(62, 67, 69), torch.tensor([60, 60, 60])).tolist() == pytest.approx([0, 0, 2 / 12])
    assert musical.crossing_penalty(one_hot(60, 70), torch.tensor([64, 64])).tolist() == pytest.approx([0, 0.5])
    # bass C under a soprano's G moves to D: A follows in a parallel fifth, F does not; a soprano that stays is none
    own, other, now = torch.tensor([48, 48, 48]), torch.tensor([67, 67, 67]), torch.tensor([69, 69, 67])
    found = musical.parallel_probability(one_hot(50, 47, 48), own, other, now)
    assert found.tolist() == [1, 0, 0]
    assert musical.parallel_probability(one_hot(50), torch.tensor([47]), torch.tensor([67]), torch.tensor([69])).item() == 0


def test_equivariance_is_zero_for_a_prediction_that_moves_with_the_music() -> None:
    table = torch.tensor([0, 2, 3, 4, -1])
    one = torch.randn(3, 5)
    moved = torch.zeros(3, 5)
    moved[:, table[:4]] = one[:, :4]
    assert musical.equivariance_loss(one, moved, table).abs().max() < 1e-6
    assert (musical.equivariance_loss(one, one, table) > 0).all()
