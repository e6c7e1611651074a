"""Any length is judged; a style has a logit of its own; the core's `frozen` and spectral norm go together."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core.task import frozen
from etude.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from etude.models.mel.discriminators import PatchDiscriminator


def build(**options: Any) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(3, **{"channels": 4, "num_layers": 2, **options})


@settings(max_examples=25)
@given(frames=st.integers(1, 40), bands=st.integers(1, 20), num_scales=st.integers(1, 3), num_layers=st.integers(1, 3))
def test_any_length_is_judged_at_every_scale(frames: int, bands: int, num_scales: int, num_layers: int) -> None:
    net = build(num_scales=num_scales, num_layers=num_layers)
    logits, features = net(torch.randn(2, bands, frames), torch.tensor([0, 2]))
    whole = [-(-size // net.stride) * net.stride for size in (bands, frames)]
    for scale in range(num_scales):
        assert logits[scale].shape == (2, 1, *(size >> (scale + num_layers) for size in whole))
        assert len(features[scale]) == num_layers + 1
        assert all(torch.isfinite(x).all() for x in [logits[scale], *features[scale]])


def test_silence_after_the_end_is_what_a_piece_is_extended_with() -> None:
    net, mel, style = build(), torch.randn(1, 8, 13), torch.tensor([1])
    longer = torch.cat([mel, torch.full((1, 8, 3), -1.0)], dim=-1)
    assert torch.equal(net(mel, style)[0][0], net(longer, style)[0][0])


def test_each_row_is_judged_in_its_own_style_alone() -> None:
    net, mel = build(num_scales=2), torch.randn(3, 8, 16)
    mixed, _ = net(mel, torch.tensor([0, 1, 2]))
    for style in range(3):
        alone, _ = net(mel[style : style + 1], torch.tensor([style]))
        for scale in range(2):
            torch.testing.assert_close(mixed[scale][style], alone[scale][0])
    others, _ = net(mel, torch.tensor([1, 2, 0]))
    assert not torch.allclose(mixed[0], others[0])
    sum(x.sum() for x in net(mel, torch.tensor([0, 0, 0]))[0]).backward()
    gradient = net.scales[0][-1].weight.grad  # type: ignore[index, union-attr]
    assert gradient[0].abs().sum() > 0 and gradient[1:].abs().sum() == 0  # type: ignore[index]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_patch_sees_what_the_docstring_says(layers: int) -> None:
    net = build(num_layers=layers, frequency_channel=False)
    mel = torch.randn(1, 128, 128, requires_grad=True)
    logits, _ = net(mel, torch.tensor([0]))
    middle = logits[0].shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0][0, 0, middle, middle], mel)
    seen = gradient[0].abs().sum(dim=0).nonzero().flatten()
    assert seen[-1] - seen[0] + 1 == 7 * 2**layers - 2


def test_without_the_frequency_channel_a_shift_in_frequency_is_not_seen_with_it_is() -> None:
    low = torch.full((1, 128, 64), -1.0)
    low[:, 40:48] = 1
    high = low.roll(32, dims=1)
    for channel in (False, True):
        net = build(frequency_channel=channel)
        one = net(low, torch.tensor([0]))[0][0][..., 8:16, 8]
        shifted = net(high, torch.tensor([0]))[0][0][..., 16:24, 8]
        assert torch.allclose(one, shifted, atol=1e-6) != channel


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_frozen_passes_gradients_on_but_not_in_and_the_sum_equals_two_steps(spectral_norm: bool) -> None:
    real, fake, style = torch.randn(2, 8, 16), torch.randn(2, 8, 16), torch.tensor([0, 1])

    def generator_term(net: PatchDiscriminator, mel: torch.Tensor) -> torch.Tensor:
        with frozen(net):
            return generator_loss(net(mel, style)[0], "hinge")

    def discriminator_term(net: PatchDiscriminator, mel: torch.Tensor) -> torch.Tensor:
        return discriminator_loss(net(real, style)[0], net(mel.detach(), style)[0], "hinge")

    whole, apart = build(spectral_norm=spectral_norm), build(spectral_norm=spectral_norm)
    mel, again = fake.clone().requires_grad_(), fake.clone().requires_grad_()
    (generator_term(whole, mel) + discriminator_term(whole, mel)).backward()
    generator_term(apart, again).backward()
    assert all(p.grad is None and p.requires_grad for p in apart.parameters())
    discriminator_term(apart, again).backward()
    assert torch.equal(mel.grad, again.grad) and mel.grad.abs().sum() > 0  # type: ignore[arg-type, union-attr]
    for one, other in zip(whole.parameters(), apart.parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_spectral_norm_brings_the_largest_singular_value_to_one_and_its_vectors_are_saved() -> None:
    net, mel = build(spectral_norm=True), torch.randn(1, 8, 16)
    for _ in range(60):
        net(mel, torch.tensor([0]))
    for layer in net.scales[0]:  # type: ignore[union-attr]
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() == pytest.approx(1, abs=1e-2)
    twin = build(spectral_norm=True)
    twin.load_state_dict(net.state_dict())
    for _ in range(2):  # the power iteration goes on from the same vectors
        assert torch.equal(net(mel, torch.tensor([0]))[0][0], twin(mel, torch.tensor([0]))[0][0])


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_bfloat16_and_r1_give_finite_gradients(spectral_norm: bool) -> None:
    net, mel, style = (
        build(spectral_norm=spectral_norm, num_scales=2),
        torch.randn(2, 8, 16, requires_grad=True),
        torch.zeros(2).long(),
    )
    exact = net.eval()(mel, style)[0][0]
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = net(mel, style)
        torch.testing.assert_close(logits[0].float(), exact, atol=0.05, rtol=0.1)
        (r1_penalty(net.train()(mel, style)[0], mel) + discriminator_loss(*[net(mel, style)[0]] * 2, "lsgan")).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.scales[0][0].bias.grad is not None  # type: ignore[index, union-attr]


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match="num_scales=4"):
        PatchDiscriminator(2, num_scales=4)
