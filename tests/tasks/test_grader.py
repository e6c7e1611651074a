"""The grader: what its losses are, what it fits in validation, what its checkpoint carries, and that it resumes bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import Dataset

from etude.audio.grades import GradesAudio
from etude.audio.mel import MelContract
from etude.losses.focal import focal_loss
from etude.models.mel.grader import GraderNetwork
from etude.tasks.grader import NUM_BANDS, Grader
from tests.toys import PairsData, same, trainer, weights

CONTRACT = MelContract(n_mels=16)
DEFECTS = ("click", "hiss", "hum")
FRAMES = 20


def task(**options: Any) -> Grader:
    torch.manual_seed(0)
    return Grader(
        **{
            "model": partial(GraderNetwork, channels=4, dim=16, num_layers=2),
            "contract": CONTRACT,
            "defects": DEFECTS,
            "segment_frames": FRAMES,
            "optimizer": partial(torch.optim.AdamW, lr=5e-3),
            **options,
        }
    )


class Graded(Dataset[dict[str, Tensor]]):
    """Mels of noise in which a defect is a raised band: click in a few frames, hiss and hum everywhere."""

    def __init__(self, length: int = 64) -> None:
        draws = torch.Generator().manual_seed(2)
        strength = torch.rand(length, 3, generator=draws) * (torch.rand(length, 3, generator=draws) < 0.4)
        self.mel = 0.1 * torch.randn(length, 16, FRAMES, generator=draws) - 0.5
        self.defects = torch.zeros(length, 3, FRAMES)
        self.defects[:, 0, 5:8], self.defects[:, 1:] = 1, 1
        self.defects *= (strength > 0)[..., None]
        for place, band in enumerate((slice(0, 16), slice(8, 16), slice(0, 2))):
            self.mel[:, band] += (self.defects[:, place] * (0.3 + strength[:, place, None]))[:, None]
        self.quality = 1 + 9 * (1 - strength).prod(1)
        self.marks = torch.zeros(length, 2, FRAMES)
        self.marks[torch.arange(length), 0, torch.randint(FRAMES, (length,), generator=draws)] = 1
        self.marks[::3, 1, 10] = 1

    def __len__(self) -> int:
        return len(self.mel)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        bands = self.defects[index, 1:, None].repeat(1, NUM_BANDS, 1)
        onsets, sections = self.marks[index]
        truth = {"defects": self.defects[index], "bands": bands, "quality": self.quality[index]}
        return {"mel": self.mel[index], **truth, "onsets": onsets, "sections": sections}


def as_batch(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rows as a batch of one style."""
    return {name: torch.stack([row[name] for row in rows])[None] for name in rows[0]}


class GradedData(PairsData):
    dataset = Graded
    collate = staticmethod(as_batch)


def batch(rows: int = 8) -> dict[str, Tensor]:
    data = Graded()
    return as_batch([data[index] for index in range(rows)])


def test_the_terms_are_their_formulas() -> None:
    made, given = task().eval(), batch()
    terms, grades = made.losses(given), made.grades(given)
    assert set(terms) == {"frames", "clip", "bands", "quality", "onsets", "sections"}
    assert torch.allclose(terms["frames"], focal_loss(grades.frames, given["defects"][0]).mean())
    assert torch.allclose(terms["clip"], focal_loss(grades.clip, given["defects"][0].amax(-1)).mean())
    perfect = (given["quality"][0] - 1) / 9
    assert torch.allclose(terms["quality"], torch.nn.functional.huber_loss(grades.quality.sigmoid(), perfect, delta=0.1))
    near = task(gamma=0.0).eval().losses(given)
    assert all(near[name] > terms[name] for name in ("frames", "clip", "bands", "onsets", "sections"))


def test_it_learns_what_a_defect_is_and_how_strong(tmp_path: Path) -> None:
    made = task()
    run = trainer(tmp_path, max_steps=250, val_check_interval=250, check_val_every_n_epoch=None)
    run.fit(made, GradedData())
    assert run.callback_metrics["val/map"] > 0.95 and run.callback_metrics["val/quality_error"] < 1.9
    assert made.temperatures != [1.0] * 3 and all(0.05 <= value <= 20 for value in made.temperatures)
    grades = made.eval().grades(batch(32))
    probability = made.calibrated(grades.clip.detach())
    truth = batch(32)["defects"][0].amax(-1)
    assert ((probability > 0.5) == (truth > 0.5)).float().mean() > 0.9
    frames = grades.frames.sigmoid()[truth[:, 0] > 0, 0]
    assert frames[:, 5:8].mean() > frames[:, 12:].mean() + 0.2  # a click has its place


@pytest.mark.parametrize("frames", [7, 20, 33])
def test_the_network_takes_any_length(frames: int) -> None:
    found = task().eval().model(torch.randn(2, 16, frames))
    assert found.frames.shape == (2, 3, frames) and found.bands.shape == (2, 2, NUM_BANDS, frames)
    assert (
        found.clip.shape == (2, 3) and found.quality.shape == (2,) and found.onsets.shape == found.sections.shape == (2, frames)
    )


def test_pooling_is_between_the_mean_and_the_maximum() -> None:
    made = task().eval()
    for sharpness, expected in ((0.0, "mean"), (1e4, "amax")):
        torch.nn.init.constant_(made.model.sharpness, sharpness)
        found = made.model(torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(1)))
        assert torch.allclose(found.clip, getattr(found.frames, expected)(-1), atol=1e-3)


def test_one_defect_without_a_place_in_the_spectrum_has_no_term_for_it() -> None:
    made = task(defects=["click"], loss_weights={"bands": 2.0, "clip": 1.0})
    given = batch()
    given = {**given, "defects": given["defects"][:, :, :1], "bands": given["bands"][:, :, :0]}
    assert "bands" not in made.losses(given) and "bands" not in made.loss_weights
    assert made.grades(given).bands.shape == (8, 0, NUM_BANDS, FRAMES)


def test_it_trains_validates_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 8, "val_check_interval": 4}
    whole, resumed = task(), task()
    one, other = (ModelCheckpoint(tmp_path / name, filename="half", every_n_train_steps=3, save_top_k=-1) for name in "ab")
    trainer(tmp_path, callbacks=[one], **options).fit(whole, GradedData())
    trainer(tmp_path, callbacks=[other], **options).fit(
        resumed, GradedData(), ckpt_path=tmp_path / "a" / "half.ckpt", weights_only=True
    )
    assert same(weights(whole), weights(resumed))
    assert whole.temperatures == resumed.temperatures and whole.border_thresholds == resumed.border_thresholds


def test_grading_needs_no_gradient_and_leaves_the_mode(tmp_path: Path) -> None:
    made = task().train()
    samples = 0.1 * torch.randn(3, FRAMES * 256, generator=torch.Generator().manual_seed(0))
    found = made.grade(samples)
    assert made.training and not any(value.requires_grad for value in found.values())
    assert all(((value >= 0) & (value <= 1)).all() for name, value in found.items() if name != "quality")
    assert ((found["quality"] >= 1) & (found["quality"] <= 10)).all() and isinstance(made, GradesAudio)
    made.temperatures = [2.0, 1.0, 0.5]
    logits = torch.tensor([[1.0, 1.0, 1.0]])
    assert torch.allclose(made.calibrated(logits), torch.tensor([[0.5, 1.0, 2.0]]).sigmoid())


def saved(made: Grader) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {}
    made.on_save_checkpoint(checkpoint)
    return checkpoint


def test_the_checkpoint_carries_what_grading_needs() -> None:
    made = task()
    made.temperatures, made.border_thresholds = [0.5, 2.0, 1.5], {"onsets": 0.3, "sections": 0.6}
    found = Grader.constructor_arguments_from(saved(made)["etude"])
    assert found == {"contract": CONTRACT, "defects": list(DEFECTS), "segment_frames": FRAMES, "temperatures": [0.5, 2.0, 1.5],
                     "border_thresholds": {"onsets": 0.3, "sections": 0.6}}  # fmt: skip
    again = task(**found)
    assert again.temperatures == made.temperatures and again.border_thresholds == made.border_thresholds


def test_another_contract_and_other_defects_are_refused() -> None:
    with pytest.raises(ValueError, match="another mel contract: n_mels 24, here 16"):
        task().on_load_checkpoint(saved(task(contract=MelContract(n_mels=24))))
    with pytest.raises(ValueError, match=r"data\.defects=\['hum'\], here are \['click', 'hiss', 'hum'\]"):
        task().on_load_checkpoint(saved(task(defects=["hum"])))


@pytest.mark.parametrize(
    ("options", "told"),
    [({"gamma": -1.0}, r"task\.gamma is -1"), ({"defects": ["noise"]}, "'noise' is not one of"),
     ({"model": partial(GraderNetwork, dim=12)}, "must be multiples of 8")],
)  # fmt: skip
def test_options_out_of_range_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        task(**options)
