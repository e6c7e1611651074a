"""The hand-written backward passes equal autograd's, in float64 by gradcheck and in bfloat16 to its rounding."""

from functools import partial

import pytest
import torch
from torch import Tensor

from etude.models.symbolic import kernels


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def _angles(tokens: int, half: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    angles = _random(tokens, 1, half, seed=9).detach()
    return angles.cos().to(dtype), angles.sin().to(dtype)


def test_gradients_agree_with_finite_differences():
    cos, sin = _angles(7, 3)
    gain = _random(4, seed=1)
    assert torch.autograd.gradcheck(kernels.rms_norm, (_random(7, 6),))
    assert torch.autograd.gradcheck(kernels.rms_norm, (_random(7, 4, 6), gain))
    assert torch.autograd.gradcheck(lambda x: kernels.rotary(x, cos, sin), (_random(7, 4, 6),))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_gradient_agrees_with_finite_differences_across_query_blocks(kv_heads, monkeypatch):
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 3)
    inputs = _random(4, 12, 2), _random(kv_heads, 12, 2, seed=1), _random(kv_heads, 12, 2, seed=2)
    assert torch.autograd.gradcheck(lambda q, k, v: kernels.causal_attention(q, k, v, lengths=(7, 1, 4)), inputs)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_fused_and_plain_agree(dtype, tolerance):
    cos, sin = _angles(50, 8, dtype)

    def run(fused: bool) -> list[Tensor]:
        x, gain = _random(50, 4, 16, dtype=dtype), _random(4, seed=1, dtype=torch.float32)
        y = kernels.rotary(kernels.rms_norm(x, gain, fused=fused), cos, sin, fused=fused)
        loss = (y.float() * _random(*y.shape, seed=4).detach()).sum()
        return [y, *torch.autograd.grad(loss, (x, gain))]

    for fused, plain in zip(run(True), run(False), strict=True):
        scale = plain.abs().max().float()
        torch.testing.assert_close(fused.float() / scale, plain.float() / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_attention_agrees_with_pytorch(dtype, tolerance):
    def run(attend) -> list[Tensor]:
        q, k, v = (_random(heads, 300, 16, seed=heads, dtype=dtype) for heads in (4, 2, 2))
        mixed = attend(q, k, v)
        loss = (mixed.float() * _random(*mixed.shape, seed=7).detach()).sum()
        return [mixed, *torch.autograd.grad(loss, (q, k, v))]

    def reference(q, k, v):
        runs = zip(*(x.split((290, 10), dim=1) for x in (q, k, v)), strict=True)
        attend = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True, enable_gqa=True, scale=1.0)
        return torch.cat([attend(*(x[None] for x in run))[0] for run in runs], 1).transpose(0, 1)

    ours = run(lambda q, k, v: kernels.causal_attention(q, k, v, lengths=(290, 10)))
    for fused, plain in zip(ours, run(reference), strict=True):
        scale = plain.abs().max().float()
        torch.testing.assert_close(fused.float() / scale, plain.float() / scale, atol=tolerance, rtol=0)


def test_rms_norm_of_a_zero_row_is_zero_with_finite_gradient():
    x = torch.zeros(3, 8, requires_grad=True)
    y = kernels.rms_norm(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(3, 8)) and torch.isfinite(x.grad).all()


def test_rotation_keeps_lengths_and_its_gradient_rotates_back():
    cos, sin = _angles(9, 4)
    x = _random(9, 2, 8)
    y = kernels.rotary(x, cos, sin)
    torch.testing.assert_close(y.norm(dim=-1), x.transpose(0, 1).norm(dim=-1))
    (back,) = torch.autograd.grad(y, x, y.detach())
    torch.testing.assert_close(back, x.detach())


def test_second_derivatives_are_refused_by_fused_functions():
    x = _random(3, 8)
    (first,) = torch.autograd.grad(kernels.rms_norm(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="the Transformer's fused functions have no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_dropout_keeps_the_mean_and_drops_the_asked_share(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 301)
    y = kernels.dropout(x, p)
    share = (y == 0).float().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 1 / 65536
    torch.testing.assert_close(y[y > 0], torch.full_like(y[y > 0], 1 / (1 - round(p * 65536) / 65536)))
    columns = (y == 0).float().mean(0)  # no stripes: the four 16-bit parts of a word are equally random
    assert (columns - p).abs().max() < 6 * (p * (1 - p) / 1001) ** 0.5


def test_dropout_follows_the_global_generator():
    torch.manual_seed(3)
    first = kernels.dropout(torch.ones(5, 7), 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, kernels.dropout(torch.ones(5, 7), 0.5))
