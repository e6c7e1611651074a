"""Finding linear magnitudes of mels: it learns, keeps what is unchanged, and gives transfer what it needs."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from etude.audio.mel import MelContract
from etude.models.wave.magnitudes import Magnitudes
from etude.tasks.mel_inverter import MelInverter
from etude.tasks.vocoder import NeuralVocoder, open_vocoder
from tests.toys import same, trainer, weights

CONTRACT = MelContract(sample_rate=8000, n_fft=256, hop_length=64, n_mels=20, f_max=4000.0)
OTHER = MelContract(sample_rate=8000, n_fft=256, hop_length=64, n_mels=24, f_max=4000.0)


def inverter(contract: MelContract = CONTRACT, **options: Any) -> MelInverter:
    torch.manual_seed(0)
    return MelInverter(
        model=partial(Magnitudes, dim=32, num_layers=2, hidden_dim=64),
        contract=contract,
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        loss_weights={"convergence": 2.0},
        num_iters=4,
        **options,
    )


def tones(rows: int = 4, num_frames: int = 32, *, seed: int = 0) -> Tensor:
    """Chords of three decaying tones, [1, rows, n]."""
    generator, time = torch.Generator().manual_seed(seed), torch.arange(num_frames * 64) / 8000
    pitches = 220 * 2 ** (torch.randint(0, 25, (rows, 3, 1), generator=generator) / 12)
    return 0.2 * (torch.sin(2 * torch.pi * pitches * time) * torch.exp(-4 * time)).sum(1)[None]


class Tones(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader([{"samples": tones()}] * 4, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([{"samples": tones()}], batch_size=None)


@torch.no_grad()
def measured(task: MelInverter) -> dict[str, float]:
    return {name: float(value.mean) for name, value in task.measure({"samples": tones()}).items()}


def test_it_learns_to_invert() -> None:
    task = inverter()
    optimizer = task.configure_optimizers()
    first = measured(task)
    for step in range(150):
        task.zero_grad()
        task.weighted_sum(task.losses({"samples": tones(12, seed=step)})).backward()
        optimizer.step()
    last = measured(task)
    assert last["log_magnitude"] < 0.75 * first["log_magnitude"], (first, last)


def test_measuring_draws_the_same_sources_each_time_and_training_does_not() -> None:
    task, batch = inverter(), {"samples": tones()}
    assert measured(task) == measured(task)
    assert float(task.losses(batch)["convergence"].detach()) != float(task.losses(batch)["convergence"].detach())


def test_noise_reaches_half_of_the_mels() -> None:
    task, mel = inverter(noise_nats=0.5), torch.zeros(400, 20, 32)
    noisy = task._noise(mel)
    assert 0.4 < float((noisy.abs().amax((1, 2)) > 0).float().mean()) < 0.6
    touched = noisy[noisy.abs().amax((1, 2)) > 0]
    assert 0.25 < float(touched.std()) < 0.5
    with pytest.raises(ValueError, match="noise_nats is -1, must be at least 0"):
        inverter(noise_nats=-1)


def test_an_unchanged_mel_gives_the_source_back() -> None:
    task, samples = inverter(), tones(2)[0]
    spectrum = CONTRACT.spectrum(samples)
    mel = CONTRACT.bands(spectrum.abs()).clamp(min=CONTRACT.floor).log()
    torch.testing.assert_close(task.synthesise(mel, spectrum)[:, 256:-256], samples[:, 256:-256], atol=2e-4, rtol=0)
    assert not torch.allclose(task.synthesise(mel + 0.5, spectrum), samples, atol=1e-2)
    assert task.training  # synthesis is not a matter of training


def test_a_frame_depends_on_the_frames_that_are_told() -> None:
    task, frames, at = inverter(), 120, 60
    generator = torch.Generator().manual_seed(0)
    spectrum = CONTRACT.spectrum(torch.randn(1, frames * 64, generator=generator))
    mel = CONTRACT.bands(spectrum.abs()).log() + 0.5
    moved = mel.clone()
    moved[..., at] += 0.7
    reach = (task.synthesise(moved, spectrum) - task.synthesise(mel, spectrum)).abs()[0].unflatten(0, (-1, 64)).amax(1)
    touched = (reach > 1e-7).nonzero()[:, 0]
    assert at - task.context_frames <= touched.min() and touched.max() <= at + task.context_frames
    assert touched.max() - touched.min() >= task.context_frames


def test_a_row_of_zeros_is_no_source() -> None:
    model, mel = inverter().model.eval(), CONTRACT.log_mel(tones(2)[0])
    source = CONTRACT.spectrum(tones(2, seed=3)[0]).abs()
    source[0] = 0
    with torch.no_grad():
        mixed, none = model(mel, source), model(mel)
    torch.testing.assert_close(mixed[0], none[0])
    assert not torch.allclose(mixed[1], none[1], atol=1e-2)


def test_it_serves_transfer_through_its_checkpoint(tmp_path: Path) -> None:
    task, path = inverter(), tmp_path / "last.ckpt"
    run = trainer(tmp_path, max_steps=2)
    run.fit(task, Tones())
    run.save_checkpoint(path)
    saved = torch.load(path, weights_only=False)
    again = inverter(**MelInverter.constructor_arguments_from(saved["etude"]))
    again.load_state_dict(saved["state_dict"])
    assert same(weights(task), weights(again))
    with pytest.raises(ValueError, match="another mel contract: n_mels 20, here 24"):
        inverter(OTHER).on_load_checkpoint(saved)

    given: dict[str, Any] = {"find": lambda ckpt, key, kind: path, "load": lambda found: (task, None), "ckpt": "last"}
    vocoder = open_vocoder(contract=CONTRACT, **given)
    assert isinstance(vocoder, NeuralVocoder) and vocoder.context_frames == task.context_frames
    mel = CONTRACT.log_mel(tones(1)[0])
    assert torch.equal(vocoder(mel, source=None), task.synthesise(mel)) and vocoder(mel).shape == (1, 32 * 64)
    with pytest.raises(ValueError, match="another mel contract"):
        open_vocoder(contract=OTHER, **given)


def test_bad_input_is_told() -> None:
    task = inverter()
    with pytest.raises(ValueError, match=r"no samples.*data.waveform=true"):
        task.losses({"mel": torch.zeros(1, 1, 20, 8)})
    with pytest.raises(ValueError, match="20 bands"):
        task.synthesise(torch.zeros(1, 24, 8))
    with pytest.raises(ValueError, match="the mels need"):
        task.synthesise(torch.zeros(1, 20, 8), torch.zeros(1, 129, 9, dtype=torch.complex64))
    with pytest.raises(ValueError, match="kernel_size=4"):
        Magnitudes(contract=CONTRACT, kernel_size=4)
