"""The laws of synthesis: its terms, what it learns, what survives a checkpoint; and playing in blocks is playing whole."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from etude.audio.mel import MelContract
from etude.core.batch import num_examples, take
from etude.core.protocols import HasFeatures, TakesInputs
from etude.core.score_protocols import PlaysScores
from etude.models.mel.generator import MelGenerator
from etude.models.mel.score_vae import ScoreVae
from etude.music.roll import DRUMS
from etude.tasks import synthesis
from etude.tasks.synthesis import Synthesis
from tests.toys import Played, PlayedData, as_played, same, trainer, weights

CONTRACT = MelContract(n_mels=16)
FRAME = CONTRACT.hop_length / CONTRACT.sample_rate
INSTRUMENTS = (0, 40)


def statistics() -> Tensor:
    mel = CONTRACT.denormalise(Played(8).mel)  # [n, s, m, f]
    return torch.stack([mel.mean((0, 3)), mel.std((0, 3))], dim=1)


def task(**options: Any) -> Synthesis:
    torch.manual_seed(0)
    return Synthesis(
        **{
            "model": partial(ScoreVae, dim=12, num_blocks=2, voices=2, latent_dim=3),
            "contract": CONTRACT,
            "instruments": INSTRUMENTS,
            "statistics": statistics(),
            "optimizer": partial(torch.optim.AdamW, lr=1e-2),
            **options,
        }
    )


def batch(rows: int = 3) -> dict[str, Tensor]:
    played = Played(rows)
    return as_played([played[index] for index in range(rows)])


def stirred(made: Synthesis) -> Synthesis:
    """With weights that do something."""
    torch.manual_seed(1)
    for layer in (made.model.outlet, made.model.end, made.model.encoder.out):
        nn.init.normal_(layer.weight, std=0.3)  # type: ignore[union-attr]
    return made


def notes(seconds: float = 1.0, instrument: int = 0) -> np.ndarray:
    return np.array([[0.1, seconds, instrument, 62, 90], [0.3, 0.5, 40, 65, 90]], np.float64)


def test_the_terms_are_mel_kl_and_stop_without_weights() -> None:
    made = task(loss_weights={"mel": 45.0, "kl": 1.0})
    terms = made.losses(batch())
    assert tuple(terms) == made.terms == ("mel", "kl", "stop")
    assert terms["kl"].item() == 0.0  # the posterior begins as the prior
    expected = 45 * terms["mel"] + terms["kl"] + terms["stop"]
    assert made.weighted_sum(terms).item() == pytest.approx(expected.item())


def test_before_training_it_is_the_mean_spectrum() -> None:
    made, given = task(), batch()
    mean = statistics()[:, 0].mean(0)[:, None]
    counted = (1 - given["stop"].flatten(0, 1))[:, None]
    error = (CONTRACT.denormalise(given["mel"].flatten(0, 1)) - mean).abs() * counted
    assert made.losses(given)["mel"].item() == pytest.approx((error.sum() / counted.sum() / 16).item(), rel=1e-5)


def test_what_follows_the_end_is_neither_learned_nor_heard_by_the_encoder() -> None:
    made, given = stirred(task()).eval(), batch()
    assert given["stop"].sum() > 0
    other = {**given, "mel": torch.where(given["stop"][:, :, None] > 0, 3.0, given["mel"])}
    assert same(made.losses(given), made.losses(other))


def test_stop_labels_are_learned_from_the_logits_alone() -> None:
    made, given = task(), batch()
    logits = torch.where(given["stop"].flatten(0, 1) > 0, 20.0, -20.0)
    score = made.model.read(given["roll"].flatten(0, 1))  # type: ignore[operator]
    made.model.decode = lambda *_: (torch.zeros(6, 16, 14), logits)  # type: ignore[method-assign,assignment]
    assert score.shape == (6, 12, 14) and made.losses(given)["stop"].item() < 1e-6
    assert made.measure(given)["stop_error"].mean.item() == 0.0


def test_latents_are_drawn_in_training_alone() -> None:
    made, given = stirred(task()), batch()
    assert not torch.equal(made.losses(given)["mel"], made.losses(given)["mel"])
    made.eval()
    assert torch.equal(made.losses(given)["mel"], made.losses(given)["mel"])


@pytest.mark.parametrize(("options", "name"), [({"huber": 0.6}, "mel"), ({"mel_smoothing": 0.2}, "mel"),
                                               ({"stop_smoothing": 0.3}, "stop"), ({"free_bits": 0.5}, "kl")])  # fmt: skip
def test_an_option_changes_its_term_alone(options: dict[str, float], name: str) -> None:
    plain, changed = (stirred(made).eval().losses(batch()) for made in (task(), task(**options)))
    assert {key for key in plain if not torch.equal(plain[key], changed[key])} == {name}


@torch.no_grad()
def measured(made: Synthesis) -> dict[str, float]:
    return {name: float(value.mean) for name, value in made.eval().measure(batch(8)).items()}


def test_it_learns_notes_and_ends(tmp_path: Path) -> None:
    made = task(loss_weights={"kl": 0.01}, optimizer=partial(torch.optim.AdamW, lr=2e-2))
    run = trainer(tmp_path, max_steps=100, val_check_interval=16)
    before = measured(made)
    run.fit(made.train(), PlayedData())
    after = measured(made)
    assert after["mel_l1"] < 0.8 * before["mel_l1"] and after["stop_error"] < before["stop_error"]
    assert {f"val/{measure.name}" for measure in made.measures()} <= run.callback_metrics.keys()


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = task(), task()
    half, rest = (
        ModelCheckpoint(tmp_path / name, filename="half", every_n_train_steps=5, save_top_k=-1) for name in ("one", "two")
    )
    trainer(tmp_path, max_steps=10, callbacks=[half]).fit(whole, PlayedData())
    trainer(tmp_path, max_steps=10, callbacks=[rest]).fit(
        resumed, PlayedData(), ckpt_path=tmp_path / "one" / "half.ckpt", weights_only=True
    )
    assert same(weights(whole), weights(resumed))


def test_mixed_precision_keeps_the_losses_exact_enough() -> None:
    made, given = stirred(task()).eval(), batch()
    exact = made.losses(given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made.losses(given)
    for name, value in exact.items():
        assert mixed[name].dtype == torch.float32 and mixed[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02)


def test_its_public_face() -> None:
    made, given = stirred(task()), batch()
    assert isinstance(made, PlaysScores) and isinstance(made, TakesInputs) and isinstance(made, HasFeatures)
    assert made.features(given).shape == (6, 12) and len(made.residual_blocks) == 2
    silent = made.with_inputs(given, {"roll": torch.zeros_like(given["roll"])})
    assert not torch.equal(made.eval().losses(silent)["mel"], made.losses(given)["mel"])
    assert num_examples(given, of=made) == 3 and take(given, [1], of=made)["roll"].shape[1] == 1


# --- playing ---


def test_playing_in_blocks_is_playing_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stirred(task())
    whole = made.play(notes(2.0))
    monkeypatch.setattr(synthesis, "FRAMES_AT_ONCE", 7)
    torch.testing.assert_close(made.play(notes(2.0)), whole, atol=1e-4, rtol=1e-4)
    assert made.training


def test_the_sound_ends_where_the_network_says_but_not_before_the_last_note() -> None:
    made = task()
    last = int(np.ceil(1.0 / FRAME))
    for bias, frames in ((5.0, last), (-5.0, last + round(4.0 / FRAME))):
        nn.init.constant_(made.model.end.bias, bias)  # type: ignore[union-attr]
        assert made.play(notes(1.0)).shape == (16, frames)


def test_unknown_instruments_are_played_by_known_ones_and_drums_alone_are_refused() -> None:
    made = stirred(task())
    assert torch.equal(made.play(notes(instrument=3)), made.play(notes(instrument=0)))
    with pytest.raises(ValueError, match="no notes for the instruments that the model knows"):
        made.play(notes(instrument=DRUMS)[:1])


def test_a_rolls_mel_is_the_decoders_at_the_priors_mean() -> None:
    made = stirred(task()).eval()
    roll = batch(1)["roll"][0, 0]
    read = made.model.read(roll[None])  # type: ignore[operator]
    expected = made._decoded(read, torch.zeros(1, 3))[0][0]
    torch.testing.assert_close(made.play_roll(roll), expected)
    mel = CONTRACT.denormalise(batch(1)["mel"][0, 0])
    assert not torch.allclose(made.reconstruct(roll, mel), expected)


# --- the checkpoint, refusals ---


def saved(made: Synthesis) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {}
    made.on_save_checkpoint(checkpoint)
    return checkpoint


def test_the_checkpoint_carries_contract_instruments_and_statistics() -> None:
    made = task()
    arguments = Synthesis.constructor_arguments_from(saved(made)["etude"])
    assert arguments["contract"] == CONTRACT and arguments["instruments"] == INSTRUMENTS
    again = task(**arguments)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.mean, made.mean) and torch.equal(again.deviation, made.deviation)


def test_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trained on other data: instruments \[0, 40\], here \[0, 41\]"):
        task(instruments=(0, 41)).on_load_checkpoint(saved(task()))
    with pytest.raises(ValueError, match="trained on other data: floor"):
        task(contract=MelContract(n_mels=16, floor=1e-4)).on_load_checkpoint(saved(task()))
    with pytest.raises(ValueError, match=r"weights=x\.ckpt: it plays the instruments \[0, 40\]"):
        task(instruments=(0, 41)).weights_from({**saved(task()), "state_dict": {}}, Path("x.ckpt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"huber": -1}, r"task\.huber is -1, must be at least 0"),
        ({"free_bits": -0.1}, r"task\.free_bits is -0\.1"),
        ({"mel_smoothing": 1.0}, r"task\.mel_smoothing is 1\.0, must be in \[0, 1\)"),
        ({"stop_smoothing": -0.5}, r"task\.stop_smoothing is -0\.5"),
        ({"instruments": ()}, "no instruments"),
        ({"model": partial(ScoreVae, kernel_size=4)}, r"model\.kernel_size=4 must be odd"),
        ({"model": partial(ScoreVae, voices=-1)}, "voices=-1 at least 0"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="task=synthesis trains model=score_vae, not MelGenerator"):
        task(model=lambda n_mels, num_instruments: MelGenerator(n_mels))


def test_a_batch_without_notes_is_told() -> None:
    with pytest.raises(ValueError, match=r"data\.score=true"):
        task().losses({"mel": batch()["mel"]})
