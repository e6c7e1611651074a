"""Representations of audio: views of mels, masked autoencoding, resuming, and what is refused."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from etude.audio.mel import MelContract
from etude.models.mel.patches import PatchEncoder
from etude.objectives.mae import Mae
from etude.objectives.masked import Masked
from etude.objectives.views import Moco, SimClr, Swav
from etude.tasks.mel_views import MelViews
from etude.tasks.representation import Representation
from tests.paradigms.harness import KILLS, assert_resumes

CONTRACT = MelContract(n_mels=32)
NETWORK = partial(PatchEncoder, dim=16, num_layers=2, num_heads=2, patch_bands=8, patch_frames=4)
OBJECTIVES: dict[str, Any] = {
    "mae": partial(Mae, decoder_dim=16, decoder_heads=2),
    "simclr": partial(SimClr, hidden_dim=16, projection_dim=8),
    "moco": partial(Moco, hidden_dim=16, projection_dim=8, queue_size=24),
    "masked": Masked,
    "swav": partial(Swav, hidden_dim=16, projection_dim=8, num_prototypes=4, queue_size=24),
}


class Segments(pl.LightningDataModule):
    """Random mels of two styles, four of each in a batch."""

    def _loader(self, seed: int, batches: int) -> StatefulDataLoader:
        draws = torch.Generator().manual_seed(seed)
        rows = []
        for number in range(batches):
            mel = torch.randn(2, 4, 32, 32, generator=draws).mul(0.3).clamp(-1, 1)
            piece = torch.arange(8).view(2, 4) + 8 * number
            rows.append({"mel": mel, "piece": piece, "label_style": torch.tensor([[0], [1]]).expand(2, 4)})
        return StatefulDataLoader(rows, batch_size=None)

    def train_dataloader(self) -> StatefulDataLoader:
        return self._loader(0, 12)

    def val_dataloader(self) -> StatefulDataLoader:
        return self._loader(1, 2)


def task(objective: str = "mae", **options: Any) -> Representation:
    torch.manual_seed(0)
    own = {"model": NETWORK, "objective": OBJECTIVES[objective], "optimizer": partial(torch.optim.AdamW, lr=1e-3), "seed": 1}
    return Representation(**{"contract": CONTRACT, **own, **options})


def batch() -> dict[str, torch.Tensor]:
    return next(iter(Segments().val_dataloader()))


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "masked"])
def test_it_resumes(tmp_path: Path, objective: str) -> None:
    assert_resumes(tmp_path, lambda: (task(objective), Segments()), kill=KILLS[1])


def test_patches_are_cut_and_encoded_in_their_place() -> None:
    torch.manual_seed(0)
    encoder = NETWORK(n_mels=32).eval()
    mel = torch.randn(2, 32, 18)  # four columns of four frames, and two frames that are left out
    patches = encoder.patches(mel)
    assert patches.shape == (2, 16, 32)
    torch.testing.assert_close(patches[0, 6], mel[0, 16:24, 4:8].flatten())  # column 1, row 2
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encoder.of_patches(patches, everything), encoder.hidden(mel))
    shuffled = everything.flip(1)
    torch.testing.assert_close(encoder.of_patches(patches, shuffled).flip(1), encoder.hidden(mel), atol=1e-5, rtol=1e-4)
    changed = patches.clone()
    changed[:, 3] += 1
    some = torch.tensor([[0, 1, 5, 9]]).expand(2, -1)
    torch.testing.assert_close(encoder.of_patches(changed, some), encoder.of_patches(patches, some))  # does not see patch 3


def test_the_autoencoder_shows_a_quarter_and_is_judged_on_the_rest() -> None:
    torch.manual_seed(0)
    mae = Mae(dim=16, values=32, rows=4)
    shown = mae.shown(5, 64, torch.device("cpu"))
    assert shown.shape == (5, 16) and (shown.diff(dim=1) > 0).all() and not torch.equal(shown[0], shown[1])
    patches = torch.randn(5, 64, 32) * 3 + 1
    unit = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    assert float(mae.loss(unit, patches, shown)) == pytest.approx(0, abs=1e-9)
    assert float(mae.loss(torch.zeros_like(patches), patches, shown)) == pytest.approx(1, abs=1e-4)
    spoilt = unit.scatter(1, shown[..., None].expand(-1, -1, 32), 9.0)  # what is shown does not count
    assert float(mae.loss(spoilt, patches, shown)) == pytest.approx(0, abs=1e-9)
    predicted = mae.predicted(torch.randn(5, 16, 16), shown, 64)
    assert predicted.shape == patches.shape
    with pytest.raises(ValueError, match="hides all or none"):
        mae.shown(1, 1, torch.device("cpu"))


def test_the_autoencoder_learns_what_the_shown_patches_tell() -> None:
    """Each mel rises or falls over the bands of all its patches: a quarter of them tells which."""
    torch.manual_seed(0)
    model = task(model=partial(NETWORK, dim=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ramp = (torch.arange(32) % 8 / 4 - 1)[None, None, :, None].expand(1, 8, 32, 32)
    losses = []
    for _ in range(60):
        mel = ramp * (torch.randint(2, (1, 8, 1, 1)) * 2 - 1)
        loss = model.losses({"mel": mel, "piece": torch.zeros(1, 8)})["objective"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.9 and sum(losses[-10:]) / 10 < 0.1


def test_a_transposed_view_moves_the_spectrum() -> None:
    views = MelViews(CONTRACT, semitones=12, stretch=0.0, noise=0.0, mix=0.0)
    hertz = 440.0
    times = torch.arange(16_000) / 16_000
    low, high = (CONTRACT.normalise(CONTRACT.log_mel(torch.sin(2 * math.pi * f * times))) for f in (hertz, 2 * hertz))
    moved = views.moves[24] @ low  # an octave up
    bands = [int(mel.mean(1).argmax()) for mel in (low, moved, high)]
    assert abs(bands[1] - bands[2]) <= 1 and bands[2] - bands[0] >= 3
    torch.testing.assert_close(views.moves[12] @ low, low)


def test_views_show_a_share_of_the_frames_at_another_speed() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 64).expand(3, 32, 64)
    plain = MelViews(CONTRACT, semitones=0, stretch=0.0, noise=0.0, mix=0.0)
    assert torch.equal(plain.view(ramp, least=1.0), ramp)
    view = plain.view(ramp, least=0.5, most=0.5)
    step = ramp[0, 0, 1] - ramp[0, 0, 0]
    assert view.shape == (3, 32, 32)
    torch.testing.assert_close(view.diff(dim=-1), step.expand(3, 32, 31))
    fast = MelViews(CONTRACT, semitones=0, stretch=0.5, noise=0.0, mix=0.0).view(ramp, least=0.5, most=0.5)
    slope = fast[..., 8:24].diff(dim=-1) / step
    assert fast.shape == (3, 32, 32) and abs(float(slope.mean()) - 1) > 0.02 and float(slope.std()) < 1e-3


def test_noise_and_mixing_add_power() -> None:
    torch.manual_seed(0)
    quiet = torch.full((2, 32, 16), -1.0)
    quiet[0, 5] = 1.0
    mixed = MelViews(CONTRACT, semitones=0, stretch=0.0, noise=0.0, mix=0.9).view(quiet, least=1.0)
    assert mixed[1, 5].mean() > 0 and mixed[1, 6].mean() < -0.9  # the other segment is heard, in its band
    noisy = MelViews(CONTRACT, semitones=0, stretch=0.0, noise=0.5, mix=0.0).view(quiet, least=1.0)
    assert noisy[0, 6].mean() > 0 and float(noisy[0, 6].std()) > 0 and abs(float(noisy[0, 5].mean()) - 1) < 0.2


def test_features_are_of_segments() -> None:
    model = task().eval()
    found = model.features(batch())
    assert found.shape == (8, 32) and model.documents(batch()).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("mae", {"crop": [0.5, 1.0]}, "task.crop=.* is of views"),
        ("simclr", {"tempi": 1}, "task.tempi=1 is not of views of mels"),
        ("masked", {}, "objective=masked hides tokens"),
        ("mae", {"contract": MelContract(n_mels=20)}, "must be a multiple of model.patch_bands"),
        ("mae", {"contract": None}, "choose data of one of them"),
    ],
)
def test_wrong_options_are_refused(objective: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(objective, **options)
