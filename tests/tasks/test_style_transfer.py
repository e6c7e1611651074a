"""The laws of style transfer: where it begins, what it gives back, whose gradients reach whom, what survives a checkpoint."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor, nn

from etude.audio.mel import MelContract
from etude.core.phases import Phase
from etude.losses.cycle import cycle_loss, identity_loss
from etude.losses.style_terms import WEIGHTS
from etude.models.mel.discriminators import FrameDiscriminator, PatchDiscriminator
from etude.models.mel.generator import MelGenerator
from etude.models.mel.image_pool import ImagePool
from etude.models.mel.style_bands import FADE_FRAMES
from etude.tasks.style_transfer import StyleTransfer
from tests.toys import trainer

CONTRACT = MelContract(n_mels=16)
STYLES = ("folk", "rock", "jazz")


def statistics(styles: int = 3) -> Tensor:
    draws = torch.Generator().manual_seed(3)
    mean = -4 + torch.randn(styles, 16, generator=draws)
    return torch.stack([mean, 0.5 + torch.rand(styles, 16, generator=draws)], dim=1)


def task(**options: Any) -> StyleTransfer:
    torch.manual_seed(0)
    options.setdefault("styles", STYLES)
    return StyleTransfer(
        **{
            "model": partial(MelGenerator, dim=8, num_blocks=2),
            "discriminator": partial(FrameDiscriminator, channels=8),
            "contract": CONTRACT,
            "statistics": statistics(len(options["styles"])),
            "optimizer": partial(torch.optim.Adam, lr=1e-3),
            **options,
        }
    )


def batch(styles: int = 3, pieces: int = 2, frames: int = 24, seed: int = 0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    white = torch.randn(styles, pieces, 16, frames, generator=draws)
    mean, deviation = statistics(styles).unbind(1)
    return {"mel": CONTRACT.normalise(white * deviation[:, None, :, None] + mean[:, None, :, None])}


def trained(made: StyleTransfer) -> StyleTransfer:
    """With weights that do something."""
    torch.manual_seed(1)
    for generator in made.generators:
        nn.init.normal_(generator.outlet.weight, std=0.1)
    return made


@pytest.mark.parametrize("shared", [False, True])
def test_before_training_it_is_the_affine_baseline(shared: bool) -> None:
    made = task(shared=shared)
    mel = torch.randn(2, 16, 9) - 4
    for source in STYLES:
        for target in STYLES:
            if source != target:
                out = made.translate(mel, source=source, target=target)
                torch.testing.assert_close(out, made.affine(mel, source=source, target=target))
    assert torch.equal(made.translate(mel, source="rock", target="rock"), mel)


@pytest.mark.parametrize(("size", "millions"), [("nano", 0.35), ("tiny", 3.7), ("small", 11.2), ("base", 28.6)])
def test_sizes_are_what_the_readme_says(size: str, millions: float) -> None:
    node = OmegaConf.load(Path(__file__).parents[2] / "conf" / "model" / f"mel_{size}.yaml")
    with torch.device("meta"):
        made = instantiate(node)(n_mels=64)
    assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_affine_baseline_matches_every_band() -> None:
    made = task()
    mean, deviation = statistics()[0, :, :, None]
    mel = mean + deviation * torch.randn(1, 16, 50_000)
    out = made.affine(mel, source="folk", target="jazz")[0]
    torch.testing.assert_close(out.mean(-1), statistics()[2, 0], atol=0.03, rtol=0)
    torch.testing.assert_close(out.std(-1), statistics()[2, 1], atol=0.03, rtol=0)


@settings(max_examples=25, deadline=None)  # the first example may take longer on a busy machine
@given(frames=st.integers(1, 70), shared=st.booleans())
def test_frames_in_are_frames_out(frames: int, shared: bool) -> None:
    made = trained(task(shared=shared))
    mel = torch.randn(1, 16, frames) - 4
    assert made.translate(mel, source="folk", target="rock").shape == mel.shape


@pytest.mark.parametrize("shared", [False, True])
def test_the_context_is_all_that_has_a_say(shared: bool) -> None:
    made = trained(task(shared=shared))
    reach = made.context_frames
    mel = torch.randn(1, 16, 4 * reach) - 4
    whole = made.translate(mel, source="folk", target="rock")
    start = reach + 3
    part = made.translate(mel[..., start - reach : start + 5 + reach], source="folk", target="rock")
    torch.testing.assert_close(part[..., reach : reach + 5], whole[..., start : start + 5], atol=1e-5, rtol=1e-5)
    changed = mel.clone()
    changed[..., start - reach - 1] += 1  # one frame beyond
    out = made.translate(changed, source="folk", target="rock")
    torch.testing.assert_close(out[..., start], whole[..., start])
    changed[..., start - reach] += 1  # the last one within
    assert not torch.equal(made.translate(changed, source="folk", target="rock")[..., start], whole[..., start])


def test_a_recording_unlike_the_training_makes_no_sound_beyond_all_sounds() -> None:
    still = statistics()
    still[0, 1] = 0.1  # bands that hardly move in folk
    made = task(statistics=still).translate(torch.zeros(1, 16, 5), source="folk", target="rock")
    assert made.max() == CONTRACT.ceiling + 2


def limited(highest: float, quiet: float) -> Tensor:
    return torch.cat([statistics(), torch.full((3, 1, 16), highest), torch.full((3, 1, 16), quiet)], 1)


def test_no_band_exceeds_the_loudest_training_frame_of_its_style() -> None:
    mel = torch.randn(2, 16, 30) - 4
    free = trained(task()).translate(mel, source="folk", target="rock")
    found = trained(task(statistics=limited(-4.5, -9.0))).translate(mel, source="folk", target="rock")
    assert (free > -4.5).any() and found.max() == -4.5
    torch.testing.assert_close(found, free.clamp(max=-4.5))
    (fakes, _), *_ = trained(task(statistics=limited(-4.5, -9.0))).restyled(batch()).values()
    assert fakes.max() <= -4.5  # what validation measures


def test_silence_becomes_the_styles_silence() -> None:
    """And fades, in nats, beside sound; a checkpoint without limits goes on as before."""
    mel = torch.randn(1, 16, 60) - 4
    mel[..., 20:] = math.log(CONTRACT.floor)
    made, free = trained(task(statistics=limited(0.0, -9.0))), trained(task())
    found, raw = (each.translate(mel, source="folk", target="rock")[0] for each in (made, free))
    assert raw[:, 30:].max() > -9
    assert found[:, 20 + FADE_FRAMES :].max() == pytest.approx(-9.0, abs=1e-5)
    torch.testing.assert_close(found[:, :20], raw[:, :20].clamp(max=0.0))
    half = 20 + FADE_FRAMES // 2 - 1
    torch.testing.assert_close(found[:, half], raw[:, half] - 0.5 * (raw[:, half] + 9).clamp(min=0))


def test_statistics_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 3, 16\].*4 or 2"):
        task(statistics=torch.zeros(3, 3, 16))


EVERY = dict.fromkeys(WEIGHTS, 1.0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("judge", [FrameDiscriminator, PatchDiscriminator])
@pytest.mark.parametrize("count", [2, 3])
def test_every_term_is_finite_and_reaches_its_own_player_alone(shared: bool, judge: Any, count: int) -> None:
    made = trained(
        task(styles=STYLES[:count], shared=shared, discriminator=partial(judge, channels=8), loss_weights=EVERY, pool_size=3)
    )
    losses = made.losses(batch(count))
    assert losses.keys() == WEIGHTS.keys()
    for name, value in losses.items():
        assert value.ndim == 0 and torch.isfinite(value), name
        made.zero_grad()
        value.backward(retain_graph=True)
        for player, modules in made.players.items():
            touched = any(p.grad is not None and p.grad.any() for module in modules for p in module.parameters())
            assert touched == (name.partition("/")[0] == player), (name, player)


def test_terms_without_weight_are_not_computed() -> None:
    made = task(loss_weights={"generator/cycle": 0.0, "discriminator/r1": 0.0})
    assert made.losses(batch()).keys() == {"generator/adversarial", "discriminator/game"}


def test_lazy_terms_come_and_go() -> None:
    made = task(loss_weights={"generator/identity": 1.0}, r1_every=3, identity_every=2, identity_until=4)
    found = []
    for made.batches_trained in range(6):
        losses = made.losses(batch())
        found.append(("discriminator/r1" in losses, "generator/identity" in losses))
    assert found == [(True, True), (False, False), (False, True), (True, False), (False, False), (False, False)]


def test_the_share_of_the_cycle_s_gradient_that_reaches_the_first_generator() -> None:
    """None of it in back-translation, all of it in CycleGAN; the second generator's is the same in all."""

    def gradients(share: float) -> list[Tensor]:
        made = trained(task(styles=("folk", "rock"), cycle_gradient=share, input_noise=0.0))
        source, target = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)
        x = made.bands.standardise(CONTRACT.denormalise(batch(2)["mel"][0]), source)
        fake = made._generate(x, source, target, None)
        made._cycle({"generator/cycle"}, x, fake, source, target)["generator/cycle"].backward()
        return [torch.zeros(1) if g.outlet.weight.grad is None else g.outlet.weight.grad for g in made.generators]

    none, some, whole = gradients(0.0), gradients(0.25), gradients(1.0)
    assert not none[0].any() and whole[0].any()
    torch.testing.assert_close(some[0], 0.25 * whole[0])
    torch.testing.assert_close(some[1], whole[1])
    torch.testing.assert_close(none[1], whole[1])


def test_cycle_consistency_is_measured_in_nats() -> None:
    bands, style = task(styles=("folk", "rock")).bands, torch.ones(2, dtype=torch.long)
    one, other = torch.zeros(2, 16, 5), torch.ones(2, 16, 5)
    expected = (bands.destandardise(other, style) - bands.destandardise(one, style)).abs().mean()
    torch.testing.assert_close(cycle_loss(other, one, scale_nm1=bands.deviation(style)), expected)
    torch.testing.assert_close(expected, statistics(2)[1, 1].mean())


@pytest.mark.parametrize(("huber", "expected"), [(0.0, 0.6), (0.5, (0.1**2 / 1 + 1.1 - 0.25) / 2), (9.0, (0.1**2 + 1.1**2) / 36)])
@pytest.mark.parametrize("loss", [cycle_loss, identity_loss])
def test_huber_squares_what_is_small(loss: Any, huber: float, expected: float) -> None:
    bands = task(styles=("folk", "rock")).bands
    nats = torch.tensor([0.1, -1.1]).expand(1, 16, 2)
    white = nats / statistics(2)[1, 1][:, None]
    found = loss(white, torch.zeros_like(white), scale_nm1=bands.deviation(torch.ones(1, dtype=torch.long)), huber=huber)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_hidden_frames_say_nothing() -> None:
    made = trained(task(input_noise=0.0))
    one, other = batch(), batch()
    visible = torch.ones(3, 2, 1, 24)
    visible[..., 5:15] = 0
    other["mel"][..., 5:15] = 0.7

    def fooled(**given: Tensor) -> Tensor:
        torch.manual_seed(5)
        return made.losses(given)["generator/adversarial"]

    assert torch.equal(fooled(**one, visible=visible), fooled(**other, visible=visible))
    assert not torch.equal(fooled(**one), fooled(**other))


def test_a_reference_clip_is_followed_by_a_shared_generator_alone() -> None:
    made = trained(task(shared=True))
    nn.init.normal_(made.generators[0].blocks[0].film.weight)
    mel, clip, other = torch.randn(3, 1, 16, 30) - 4
    by_clip = made.translate(mel, source="folk", target="rock", reference=clip[0])
    assert not torch.equal(by_clip, made.translate(mel, source="folk", target="rock", reference=other[0]))
    with pytest.raises(ValueError, match="shared"):
        task().translate(mel, source="folk", target="rock", reference=clip[0])


def test_the_nearest_style_is_the_one_whose_bands_it_has_at_any_level() -> None:
    made = task()
    for index, style in enumerate(STYLES):
        mean, deviation = statistics()[index, :, :, None]
        clip = mean + deviation * torch.randn(16, 2000) - 2.0  # two nats softer
        distances = made.style_distances(clip)
        assert min(distances, key=lambda name: distances[name]) == style


def test_a_single_frame_has_finite_distances_to_the_styles() -> None:
    assert all(math.isfinite(distance) for distance in task().style_distances(torch.randn(16, 1)).values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss_weights": {"generator/cicle": 1.0}}, "generator/cycle"),
        ({"input_noise": -1.0}, "input_noise"),
        ({"reference_share": 1.5}, "reference_share"),
        ({"cycle_gradient": 1.5}, "cycle_gradient"),
        ({"cycle_transposed": -1.0}, "cycle_transposed"),
        ({"styles": ("folk",)}, "two styles"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        task(**options)


def test_an_unknown_style_is_told_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"polka.*folk, rock, jazz"):
        task().translate(torch.zeros(1, 16, 3), source="folk", target="polka")


def test_a_checkpoint_of_another_contract_or_style_is_refused() -> None:
    checkpoint: dict[str, Any] = {"global_step": 0}  # Lightning writes it
    task().on_save_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="n_fft"):
        task(contract=MelContract(n_mels=16, n_fft=512)).on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="styles"):
        task(styles=("folk", "rock")).on_load_checkpoint(checkpoint)
    parts = StyleTransfer.constructor_arguments_from(checkpoint["etude"])
    assert parts["contract"] == CONTRACT and parts["styles"] == STYLES and torch.equal(parts["statistics"], statistics())


def test_training_brings_shifted_styles_together(tmp_path: Any) -> None:
    """A style that is another turned upside down in time-constant bands: the game must find more than the affine map."""

    class Data(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            for seed in range(150):
                mel = batch(2, pieces=8, frames=32, seed=seed)["mel"]
                draws = torch.Generator().manual_seed(seed)
                common = torch.randn(8, 1, 32, generator=draws)  # all bands of the second style move together
                mean, deviation = statistics(2)[1, :, :, None]
                mel[1] = CONTRACT.normalise(mean + deviation * (0.2 * torch.randn(8, 16, 32, generator=draws) + common))
                yield {"mel": mel}

    made = task(styles=("folk", "rock"), optimizer=partial(torch.optim.Adam, lr=3e-3, betas=(0.5, 0.9)))
    run = trainer(tmp_path, max_steps=150, limit_val_batches=3)
    loaders = [torch.utils.data.DataLoader(Data(), batch_size=None) for _ in range(2)]
    run.fit(made, *loaders)
    assert 0 < run.callback_metrics["val/frechet"] < 10 and "val/l1" not in run.callback_metrics
    made.eval()
    source = CONTRACT.denormalise(batch(2, pieces=16, frames=64, seed=999)["mel"][0])

    def togetherness(mel: Tensor) -> float:
        return float(
            torch.corrcoef(made.bands.standardise(mel, torch.ones(16, dtype=torch.long)).transpose(0, 1).flatten(1)).mean()
        )

    before = togetherness(made.affine(source, source="folk", target="rock"))
    after = togetherness(made.translate(source, source="folk", target="rock"))
    assert before < 0.15 and after > 0.5


def test_the_pool_hands_out_past_outputs_with_their_styles() -> None:
    torch.manual_seed(0)
    pool = ImagePool(4)
    seen = []
    for number in range(30):
        out, styles = pool.swap(torch.full((2, 1, 1), float(number)), torch.tensor([number % 3, number % 3]))
        assert all(int(value) % 3 == style for value, style in zip(out.flatten().tolist(), styles.tolist(), strict=True))
        seen += [(number, int(value)) for value in out.flatten().tolist()]
    assert any(past < now for now, past in seen) and all(past <= now for now, past in seen)
    copy = ImagePool(4)
    copy.restore(pool.state())
    torch.manual_seed(7)
    one = pool.swap(torch.zeros(2, 1, 1), torch.tensor([0, 1]))
    torch.manual_seed(7)
    other = copy.swap(torch.zeros(2, 1, 1), torch.tensor([0, 1]))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_a_batch_of_some_styles_trains_the_ways_between_these() -> None:
    whole = batch()
    for left in ([0, 2], [1, 2]):
        made = trained(task(loss_weights={"generator/cycle": 1.0, "discriminator/game": 1.0}))
        style = torch.tensor(left)[:, None].repeat(1, 2)
        sum(made.losses({"mel": whole["mel"][left], "style": style}).values()).backward()  # type: ignore[union-attr]
        assert made.trace["source"].tolist() == style.flatten().tolist()
        assert made.trace["target"].tolist() == style.flip(0).flatten().tolist()
        moved = {pair for pair, net in zip(made.pairs, made.generators, strict=True) if net.outlet.weight.grad is not None}
        assert moved == {(left[0], left[1]), (left[1], left[0])}


class Pieces(LightningDataModule):
    """A table of pieces of three styles, from which phases choose."""

    def __init__(self) -> None:
        super().__init__()
        self.styles, self.lookahead, self.epoch_batches = list(STYLES), 0, 10
        self.rules: list[str] = []

    def pieces(self) -> dict[str, np.ndarray]:
        return {"genre": np.array(STYLES)}

    def admit(self, name: str, rule: object) -> None:
        self.rules.append(name)

    def may_leave_styles_out(self, name: str) -> None:
        self.rules.append(name)


@pytest.mark.parametrize(("shared", "devices"), [(False, 2), (True, 2), (False, 1)])
def test_a_phase_that_leaves_networks_untrained_is_refused_on_several_devices(tmp_path: Path, shared: bool, devices: int) -> None:
    made, run = task(shared=shared), Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    made.trainer, run.datamodule = run, Pieces()  # type: ignore[attr-defined]
    phases = [Phase(name="two", data={"genre": ["folk", "rock"]}, max_steps=2), Phase(name="all")]
    if devices == 2 and not shared:
        with pytest.raises(
            ValueError, match=r"data of two leaves pieces of folk, rock only; on several devices .*task\.shared=true"
        ):
            made.phases.set_sequence(made, phases)
    else:
        made.phases.set_sequence(made, phases)
        assert run.datamodule.rules == ["phases", "phases"]  # type: ignore[attr-defined]
