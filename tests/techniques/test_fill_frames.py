"""Stretches are hidden where and as long as the formula says, the mel stays whole, each batch has draws of its own."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from etude.techniques.data.fill_frames import FillFrames
from tests.toys import ToyGan

TASK: Any = SimpleNamespace(global_rank=0)


def visible(technique: FillFrames, *, frames: int = 20, pieces: int = 4, task: Any = TASK) -> torch.Tensor:
    return technique.transform_batch(task, {"mel": torch.zeros(2, pieces, 5, frames)})["visible"]


def test_one_stretch_of_each_piece_at_most_the_share_long_anywhere_in_it() -> None:
    technique, lengths, seen = FillFrames(max_share=0.4), [], torch.zeros(20)
    for _ in range(200):
        mask = visible(technique)
        assert mask.shape == (2, 4, 1, 20) and mask.dtype == torch.float32
        for row in mask.reshape(-1, 20):
            hidden = (row == 0).nonzero().flatten()
            lengths.append(len(hidden))
            seen += row == 0
            if len(hidden):
                assert hidden[-1] - hidden[0] + 1 == len(hidden)  # in one piece
    counts = torch.bincount(torch.tensor(lengths), minlength=9)
    assert len(counts) == 9  # 0 .. 8 of 20 frames
    expected = len(lengths) / 9
    assert ((counts - expected).abs() < 5 * expected**0.5).all()  # each as often
    assert (seen > 0).all()


def test_the_mel_stays_whole_and_other_entries_stay() -> None:
    batch = {"mel": torch.randn(2, 3, 5, 8), "samples": torch.zeros(1)}
    found = FillFrames().transform_batch(TASK, batch)
    assert found["mel"] is batch["mel"] and found["samples"] is batch["samples"] and "visible" not in batch


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_very_short_pieces_keep_a_frame(frames: int) -> None:
    technique = FillFrames(max_share=0.9)
    assert all(visible(technique, frames=frames).amax(dim=-1).min() == 1 for _ in range(50))


def test_draws_depend_on_seed_batch_and_rank_alone() -> None:
    one, other = FillFrames(seed=3), FillFrames(seed=3)
    first, second = visible(one), visible(one)
    assert not torch.equal(first, second)
    torch.rand(7)  # the stream of others is of no account
    assert torch.equal(visible(other), first)
    resumed = FillFrames(seed=3)
    resumed.load_state_dict(other.state_dict())
    assert torch.equal(visible(resumed), second)
    assert not torch.equal(visible(FillFrames(seed=4)), first)
    assert not torch.equal(visible(FillFrames(seed=3), task=SimpleNamespace(global_rank=1)), first)


def test_a_task_without_mels_is_told_at_setup() -> None:
    with pytest.raises(ValueError, match=r"technique fill_frames .* ToyGan has none that supports `visible`"):
        FillFrames().setup(None, ToyGan(), "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_share_out_of_range_is_told(share: float) -> None:
    with pytest.raises(ValueError, match=rf"fill_frames\.max_share is {share}, must be in \(0, 1\)"):
        FillFrames(max_share=share)
