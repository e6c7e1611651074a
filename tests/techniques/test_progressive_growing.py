"""Mels begin in blocks, become finer without a jump, and are whole after the warm-up."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from etude.techniques.data.progressive_growing import ProgressiveGrowing, blocks
from tests.tasks.test_style_transfer import batch, task
from tests.toys import ToyGan, trainer


def test_a_block_is_its_mean_and_smaller_ones_at_the_ends_too() -> None:
    mel = torch.arange(2 * 3 * 5.0).view(2, 3, 5)
    found = blocks(mel, 2)
    assert found.shape == mel.shape
    assert (found[0, :2, :2] == mel[0, :2, :2].mean()).all()
    assert (found[1, :2, 4] == mel[1, :2, 4].mean()).all()  # half a block
    assert found[1, 2, 4] == mel[1, 2, 4]
    assert torch.equal(blocks(mel, 1), mel)
    even = torch.randn(4, 8, 16)
    torch.testing.assert_close(blocks(even, 4).mean((-2, -1)), even.mean((-2, -1)))
    torch.testing.assert_close(blocks(blocks(even, 4), 4), blocks(even, 4))


def test_it_begins_coarse_never_jumps_and_ends_whole() -> None:
    technique, mel = ProgressiveGrowing(coarsest=8), torch.randn(2, 16, 24)
    assert torch.equal(technique.blurred(mel, 0.0), blocks(mel, 8))
    assert torch.equal(technique.blurred(mel, 0.5), blocks(mel, 4))  # at the border to blocks of 2, which fade in
    assert torch.equal(technique.blurred(mel, 0.625), blocks(mel, 2))
    assert torch.equal(technique.blurred(mel, 0.999), mel)
    shares = torch.linspace(0, 0.9999, 2001).tolist()
    found = [technique.blurred(mel, share) for share in shares]
    largest = max(float((one - other).abs().max()) for one, other in itertools.pairwise(found))
    assert largest < 0.05  # of values up to about 3
    detail = torch.stack([each.std() for each in found[::100]])
    assert (detail.diff() > -1e-6).all() and detail[-1] > 3 * detail[0]


def test_the_warm_up_is_a_share_of_the_run(tmp_path: Path) -> None:
    technique, given = ProgressiveGrowing(coarsest=2, end=0.5), batch()
    technique.setup(trainer(tmp_path, max_steps=8), task(), "fit")

    def at(step: int) -> Any:
        model = task()
        fake: Any = SimpleNamespace(batches_trained=step, inputs=model.inputs, with_inputs=model.with_inputs)
        return technique.transform_batch(fake, given)["mel"]

    assert torch.equal(at(0), blocks(given["mel"], 2))
    assert torch.equal(at(3), given["mel"]) and torch.equal(at(4), given["mel"])
    assert not torch.equal(at(1), given["mel"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coarsest": 1}, r"progressive_growing\.coarsest is 1, must be a power of 2"),
        ({"coarsest": 12}, r"progressive_growing\.coarsest is 12, must be a power of 2"),
        ({"end": 0.0}, r"progressive_growing\.end is 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgressiveGrowing(**options)


def test_only_style_transfer_has_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"technique progressive_growing blurs the mels of a style transfer, and ToyGan"):
        ProgressiveGrowing().setup(trainer(tmp_path, max_steps=8), ToyGan(), "fit")
