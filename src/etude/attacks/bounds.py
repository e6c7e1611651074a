"""Interval bound propagation: what a network can say at most and at least, for all inputs between two bounds.

Shapes: n examples, c classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.attacks.budget import Budget

RISING = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Flatten,
    nn.Unflatten, nn.Identity,
)  # fmt: skip
ALONE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)  # the identity in evaluation
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def layers_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yields the layers of nested `nn.Sequential`s in order.

    Raises: ValueError for a layer through which no bounds are propagated.
    """
    if isinstance(network, nn.Sequential):
        for layer in network:
            yield from layers_of(layer)
    elif isinstance(network, RISING + ALONE + LINEAR + NORMS):
        yield network
    else:
        raise ValueError(
            f"no interval bounds are known for {type(network).__name__}; a network of Conv, Linear, BatchNorm, ReLU and pooling "
            "layers in a chain has them"
        )


def interval_bounds(network: nn.Module | Sequence[nn.Module], lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Returns bounds of the network's outputs for all inputs between `lower` and `upper`; differentiable.

    A linear layer maps the middle m and the half width r of an interval to W m + b and |W| r; a layer that never falls maps the
    two bounds themselves.

    Args:
        network: a chain of layers in evaluation mode, see `layers_of`. lower, upper: [n, ...].

    Raises: ValueError for a layer without a rule, BatchNorm or dropout in training, or bounds in the wrong order.

    Source: Gowal et al. 2018, equations 6 and 7.
    """
    if bool((lower > upper).any()):
        raise ValueError("lower is above upper somewhere; give the bounds in their order")
    parts = [network] if isinstance(network, nn.Module) else network
    for layer in (layer for part in parts for layer in layers_of(part)):
        if isinstance(layer, RISING):
            lower, upper = layer(lower), layer(upper)
            continue
        if layer.training and isinstance(layer, ALONE + NORMS):
            raise ValueError(f"{type(layer).__name__} has no fixed bounds in training; call .eval() first")
        if isinstance(layer, ALONE):
            continue
        middle, half = (upper + lower) / 2, (upper - lower) / 2
        middle, half = layer(middle), _through_absolute(layer, half)
        lower, upper = middle - half, middle + half
    return lower, upper


def _through_absolute(layer: nn.Module, half: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(half, layer.weight.abs())
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise ValueError(f"padding_mode={layer.padding_mode} has no interval bounds here; use zeros")
        convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        return convolve(half, layer.weight.abs(), None, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_var is not None
    scale = (layer.running_var + layer.eps).rsqrt() * (1.0 if layer.weight is None else layer.weight)
    return half * scale.abs().reshape(1, -1, *[1] * (half.ndim - 2))


def certified(network: nn.Module, inputs: Tensor, true_n: Tensor, budget: Budget) -> Tensor:
    """Returns whether no change within the budget makes another class likelier than the true one, bool [n].

    The true class is compared with each other one by the difference of their logits; where the last layer is linear, this
    difference is one linear layer, which bounds it more tightly than bounds of both logits do.

    Args:
        network: maps inputs [n, ...] to logits [n, c]. budget: linf.

    Raises: ValueError as `interval_bounds`, or for another norm.

    Source: Gowal et al. 2018, section 3 (the elision of the last layer).
    """
    if budget.norm != "linf":
        raise ValueError(f"norm={budget.norm} has no interval bounds; set norm=linf")
    change = budget.real(torch.ones_like(inputs) * budget.like(inputs))
    layers = list(layers_of(network))
    while isinstance(layers[-1], nn.Identity | nn.Dropout):
        layers.pop()
    last = layers.pop() if isinstance(layers[-1], nn.Linear) else None
    lower, upper = interval_bounds(layers, inputs - change, inputs + change)
    if last is None:
        own = lower.gather(1, true_n[:, None])[:, 0]
        return own > upper.scatter(1, true_n[:, None], -torch.inf).amax(1)
    assert isinstance(last, nn.Linear)
    weight = last.weight[true_n][:, None] - last.weight[None]  # [n, c, features]
    bias = 0.0 if last.bias is None else last.bias[true_n][:, None] - last.bias[None]
    middle, half = (upper + lower) / 2, (upper - lower) / 2
    difference = torch.einsum("ncf,nf->nc", weight, middle) + bias - torch.einsum("ncf,nf->nc", weight.abs(), half)
    found: Tensor = difference.scatter(1, true_n[:, None], torch.inf).amin(1) > 0
    return found
