"""The vocoder task: its two players, its checkpoint, its vocoder face."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from etude.audio.mel import MelContract
from etude.core.checkpoint_search import find_checkpoint
from etude.models.wave.vocos import Vocos
from etude.tasks.vocoder import NeuralVocoder, Vocoder, open_vocoder
from tests.toys import same, trainer, weights

CONTRACT = MelContract(sample_rate=8000, n_fft=256, hop_length=64, n_mels=20, f_max=4000.0)
OTHER = MelContract(sample_rate=8000, n_fft=256, hop_length=64, n_mels=24, f_max=4000.0)
PLAIN = {"generator/adversarial": 0.0}
GAME = {"generator/adversarial": 1.0, "generator/feature_matching": 2.0}


def vocoder(
    contract: MelContract = CONTRACT, loss_weights: dict[str, float] = PLAIN, lr: float = 2e-3, **options: Any
) -> Vocoder:
    torch.manual_seed(0)
    return Vocoder(
        model=partial(Vocos, dim=32, num_layers=2, hidden_dim=64),
        contract=contract,
        optimizer=partial(torch.optim.AdamW, lr=lr),
        loss_weights=loss_weights,
        discriminator_channels=4,
        **options,
    )


def batch(num_frames: int = 32, rows: int = 1) -> dict[str, Tensor]:
    """Decaying tones, two styles of so many rows."""
    time = torch.arange(num_frames * 64) / 8000
    pitches = 220 * 2 ** (torch.arange(2 * rows).view(2, rows, 1) / 3)
    samples = 0.4 * torch.sin(2 * torch.pi * pitches * time) * torch.exp(-8 * time)
    return {"samples": samples, "mel": CONTRACT.normalise(CONTRACT.log_mel(samples))}


class Tones(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader([batch()] * 4, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([{"mel": batch()["mel"]}], batch_size=None)


def step(task: Vocoder, terms: dict[str, Tensor]) -> None:
    task.zero_grad()
    task.weighted_sum(terms).backward()


def test_it_learns_a_tone_in_few_steps() -> None:
    task = vocoder(loss_weights={**PLAIN, "generator/stft": 0.5})
    optimizer = task.configure_optimizers()
    first = task.losses(batch())
    for _ in range(160):
        step(task, task.losses(batch()))
        optimizer.step()
    last = task.losses(batch())
    assert last["generator/mel"] < 0.35 * first["generator/mel"]
    assert last["generator/stft"] < 0.75 * first["generator/stft"]


def test_the_losses_are_nothing_where_the_output_is_the_truth() -> None:
    task, given = vocoder(loss_weights=GAME), batch()
    task.model.forward = lambda mel: given["samples"].flatten(0, 1)  # type: ignore[method-assign]
    terms = task.losses(given)
    for name in ("generator/mel", "generator/stft", "generator/feature_matching"):
        assert terms[name].item() == pytest.approx(0.0, abs=1e-6), name


def test_edges_that_the_mel_knows_more_of_are_not_counted() -> None:
    """A segment's mel is cut from a longer one; its samples alone would give other frames at the edges."""
    task, long = vocoder(), torch.randn(1, 64 * 40, generator=torch.Generator().manual_seed(0))
    mel = CONTRACT.normalise(CONTRACT.log_mel(long))[..., 10:30]
    assert task.mel_l1(long[:, 64 * 10 : 64 * 30], mel).item() == pytest.approx(0.0, abs=1e-4)
    assert task.mel_l1(0.5 * long[:, 64 * 10 : 64 * 30], mel).item() == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_a_players_gradients_come_from_its_own_losses_alone(player: str) -> None:
    task = vocoder(loss_weights=GAME)
    terms = task.losses(batch())
    step(task, {name: value for name, value in terms.items() if name.startswith(player)})
    for name, modules in task.players.items():
        found = [p.grad is not None and bool(p.grad.abs().sum() > 0) for m in modules for p in m.parameters()]
        assert any(found) == (name == player)
    assert {name.partition("/")[0] for name in terms} == set(task.players)


def test_without_an_adversarial_weight_there_is_no_discriminator() -> None:
    weights = {**PLAIN, "generator/feature_matching": 2.0, "discriminator/all": 1.0, "generator/mel": 3.0}
    task = vocoder(loss_weights=weights)
    assert list(task.players) == ["generator"] and not any("discriminator" in name for name in task.state_dict())
    terms = task.losses(batch())
    assert set(terms) == {"generator/mel", "generator/stft"}
    expected = 3 * terms["generator/mel"].item() + terms["generator/stft"].item()
    assert task.weighted_sum(terms).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss_weights", [PLAIN, GAME], ids=["plain", "game"])
def test_it_trains_validates_and_resumes_bit_for_bit(tmp_path: Path, loss_weights: dict[str, float]) -> None:
    whole = vocoder(loss_weights=loss_weights)
    one, other = (
        ModelCheckpoint(tmp_path / name, filename="half", every_n_train_steps=4, save_top_k=-1) for name in ("one", "other")
    )
    run = trainer(tmp_path, max_steps=8, callbacks=[one])
    run.fit(whole, Tones())
    assert 0 < run.callback_metrics["val/mel_l1"] < 5 and run.global_step == 8
    resumed = vocoder(loss_weights=loss_weights)
    again = trainer(tmp_path, max_steps=8, callbacks=[other])
    again.fit(resumed, Tones(), ckpt_path=tmp_path / "one" / "half.ckpt", weights_only=True)
    assert same(weights(whole), weights(resumed))


def test_mixed_precision_keeps_the_losses_exact_enough() -> None:
    task, given = vocoder(loss_weights=GAME), batch()
    exact = task.losses(given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = task.losses(given)
    for name, value in exact.items():
        assert mixed[name].dtype == torch.float32
        assert mixed[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name


def test_a_batch_without_samples_is_told() -> None:
    with pytest.raises(ValueError, match=r"data\.waveform=true"):
        vocoder().losses({"mel": batch()["mel"]})


# --- the checkpoint ---


def saved(task: Vocoder) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {}
    task.on_save_checkpoint(checkpoint)
    return checkpoint


def test_the_checkpoint_carries_the_contract() -> None:
    task = vocoder()
    assert Vocoder.constructor_arguments_from(saved(task)["etude"]) == {"contract": CONTRACT}
    task.on_load_checkpoint(saved(task))


def test_a_checkpoint_of_another_contract_is_refused() -> None:
    with pytest.raises(ValueError, match="another mel contract: n_mels 24, here 20"):
        vocoder().on_load_checkpoint(saved(vocoder(OTHER)))


# --- the vocoder face ---


def find(ckpt: str, option: str, offers: type) -> Path:
    return find_checkpoint(ckpt, "outputs", option=option, offers=offers)


def opened(tmp_path: Path, task: nn.Module, contract: MelContract = CONTRACT) -> NeuralVocoder:
    path = tmp_path / "best.ckpt"
    path.touch()
    return open_vocoder(contract=contract, ckpt=str(path), find=find, load=lambda found: (task, {}))


@pytest.mark.parametrize("frames", [1, 2, 50])
def test_the_face_gives_a_hop_of_samples_for_every_frame(tmp_path: Path, frames: int) -> None:
    task = vocoder().train()
    voice = opened(tmp_path, task)
    log_mel = CONTRACT.log_mel(0.1 * torch.randn(3, frames * 64, generator=torch.Generator().manual_seed(0)))
    samples = voice(log_mel, source=None)
    assert samples.shape == (3, frames * 64) and not samples.requires_grad and task.training
    assert (voice.contract, voice.context_frames) == (CONTRACT, task.model.context_frames)
    assert torch.allclose(samples, task.model(CONTRACT.normalise(log_mel)), atol=1e-6)


@pytest.mark.parametrize("frames", [1, 3, 40])
def test_the_mels_of_the_source_give_the_source_back(tmp_path: Path, frames: int) -> None:
    source = 0.2 * torch.randn(2, frames * 64, generator=torch.Generator().manual_seed(0))
    samples = opened(tmp_path, vocoder())(CONTRACT.log_mel(source), source=CONTRACT.spectrum(source))
    assert torch.allclose(samples, source, atol=1e-5)


def test_what_the_mels_change_comes_from_the_network(tmp_path: Path) -> None:
    voice = opened(tmp_path, vocoder())
    source = 0.2 * torch.randn(1, 40 * 64, generator=torch.Generator().manual_seed(0))
    log_mel = CONTRACT.log_mel(source) + torch.tensor(2.0)
    found = voice(log_mel, source=CONTRACT.spectrum(source))
    assert torch.allclose(found, voice(log_mel), atol=1e-5)
    half = torch.cat([CONTRACT.log_mel(source)[..., :20], log_mel[..., 20:]], -1)
    found, reach = voice(half, source=CONTRACT.spectrum(source)), voice.context_frames * 64
    assert torch.allclose(found[:, : 1280 - reach], source[:, : 1280 - reach], atol=1e-5)
    assert torch.allclose(found[:, 1280 + reach :], voice(half)[:, 1280 + reach :], atol=1e-5)


def test_a_source_of_another_length_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source has the shape \[1, 129, 4\]"):
        opened(tmp_path, vocoder())(torch.zeros(1, 20, 5), source=torch.zeros(1, 129, 4, dtype=torch.complex64))


@pytest.mark.parametrize("shape", [(1, 21, 5), (1, 20, 0), (20, 5)])
def test_mels_that_do_not_fit_are_told(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="20 bands"):
        opened(tmp_path, vocoder())(torch.zeros(shape))


def test_a_vocoder_of_another_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another mel contract: n_mels 20, here 24"):
        opened(tmp_path, vocoder(), OTHER)


def test_a_missing_file_and_another_task_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocoder\.ckpt=nowhere\.ckpt: there is no such file"):
        open_vocoder(contract=CONTRACT, ckpt="nowhere.ckpt", find=find, load=lambda path: (None, None))
    with pytest.raises(ValueError, match=r"vocoder\.ckpt is missing: give a checkpoint"):
        open_vocoder(contract=CONTRACT, find=find, load=lambda path: (None, None))
    with pytest.raises(ValueError, match="holds a Linear"):
        opened(tmp_path, nn.Linear(1, 1))
