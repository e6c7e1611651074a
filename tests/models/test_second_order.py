"""Second derivatives are right without the fused functions and refused with them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from etude.models.symbolic import kernels
from etude.models.symbolic.transformer import Transformer
from tests.models.symbolic.test_grid_transformer import batch, document
from tests.models.symbolic.test_grid_transformer import model as grid_model

Loss = Callable[[dict[str, Tensor]], Tensor]


def transformer(fused: bool, **changes: object) -> tuple[nn.Module, Loss]:
    torch.manual_seed(0)
    model = Transformer(vocab_size=20, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, fused=fused, **changes)  # type: ignore[arg-type]
    tokens = torch.randint(0, 20, (2, 9))
    documents = torch.tensor([[0] * 5 + [1] * 4, [0] * 7 + [-1] * 2])
    return (
        model.double(),
        lambda weights: functional_call(model, weights, (tokens,), {"documents_bt": documents}).logsumexp(-1).square().mean(),
    )


def grid(fused: bool) -> tuple[nn.Module, Loss]:
    net = grid_model(fused=fused)
    data = batch(document(6, 0), document(4, 1, genre="folk"))
    kwargs = {"documents_bt": data["documents"], "features": {"voice": data["voice"]}}
    return net, lambda weights: functional_call(net, weights, (data["tokens"],), kwargs).clamp(min=-50).square().mean()


def second_order(model: nn.Module, loss: Loss, step: float) -> tuple[float, float]:
    """The slope, along a random direction, of the squared norm of the gradient: by double backward and by differences."""
    torch.manual_seed(1)
    own = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    direction = {name: torch.randn_like(p) for name, p in own.items()}

    def slopes(weights: dict[str, Tensor], graph: bool) -> Tensor:
        found = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=graph, allow_unused=True)
        return torch.stack([g.square().sum() for g in found if g is not None]).sum()

    exact = torch.autograd.grad(slopes(own, True), list(own.values()), allow_unused=True)
    along = sum(float((g * d).sum()) for g, d in zip(exact, direction.values(), strict=True) if g is not None)
    ends = [
        slopes({name: (p.detach() + sign * step * direction[name]).requires_grad_() for name, p in own.items()}, False)
        for sign in (1, -1)
    ]
    return along, float(ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize(
    ("make", "step", "tolerance"),
    [(transformer, 1e-5, 1e-5), (partial(transformer, qk_norm=False), 1e-5, 1e-5), (grid, 1e-3, 2e-2)],  # float32 inside
)
def test_unfused_second_derivatives_are_those_of_differences(
    make: Callable[[bool], tuple[nn.Module, Loss]], step: float, tolerance: float
) -> None:
    exact, differences = second_order(*make(False), step)
    assert abs(differences) > 1e-6 and exact == pytest.approx(differences, rel=tolerance)


@pytest.mark.parametrize("make", [transformer, grid])
def test_fused_second_derivatives_are_refused(make: Callable[[bool], tuple[nn.Module, Loss]]) -> None:
    model, loss = make(True)
    own = dict(model.named_parameters())
    first = torch.autograd.grad(loss(own), list(own.values()), create_graph=True, allow_unused=True)
    plain = torch.autograd.grad(loss(own), list(own.values()), allow_unused=True)
    for kept, without in zip(first, plain, strict=True):  # asking for a graph changes no first derivative
        assert (kept is None) == (without is None)
        if kept is not None:
            torch.testing.assert_close(kept, without)
    norm = torch.stack([g.square().sum() for g in first if g is not None]).sum()
    ours = r"the Transformer's fused functions have no second derivative.*model.fused=false"
    with pytest.raises(RuntimeError, match=ours if make is transformer else f"{ours}|_embedding_bag_backward"):
        torch.autograd.grad(norm, list(own.values()), allow_unused=True)


@pytest.mark.parametrize("which", range(3))
def test_attention_refuses_whichever_input_is_asked_for(which: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 6, 4, generator=generator).requires_grad_() for _ in range(3)]
    mixed = kernels.causal_attention(*inputs, lengths=(4, 2))
    first = torch.autograd.grad(mixed.sum(), inputs, create_graph=True)  # a gradient of ones has no graph of its own
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first[0].square().sum(), inputs[which], allow_unused=True)


def test_the_plain_functions_have_second_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    gain = torch.rand(2, generator=generator, dtype=torch.float64).requires_grad_()
    angle = torch.randn(5, 1, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(partial(kernels.rms_norm, fused=False), (x, gain))
    assert torch.autograd.gradgradcheck(lambda y: kernels.rotary(y, angle.cos(), angle.sin(), fused=False), (x,))


def test_gradients_of_each_example_at_once() -> None:
    model, _ = transformer(False)
    own = {name: p.detach() for name, p in model.named_parameters()}
    tokens = torch.randint(0, 20, (3, 9))

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, weights, (row[None],)).logsumexp(-1).square().mean()

    together = vmap(grad(loss), in_dims=(None, 0))(own, tokens)
    for number, row in enumerate(tokens):
        for name, value in grad(loss)(own, row).items():
            torch.testing.assert_close(together[name][number], value)


def test_the_grids_context_is_the_same_without_the_fused_sum() -> None:
    one, two = grid_model(fused=True, context_dropout=0.25), grid_model(fused=False, context_dropout=0.25)
    two.load_state_dict(one.state_dict())
    data = batch(document(6, 0))
    for training in (False, True):
        found = []
        for net in (one.train(training), two.train(training)):
            torch.manual_seed(2)
            found.append(net(data["tokens"], documents_bt=data["documents"], features={"voice": data["voice"]}))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
