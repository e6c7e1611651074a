"""The Square attack, which only looks at the loss: it shows whether a defence merely hides its gradients.

Shapes: n examples; h and w are the last two axes of an example, such as bands and frames, or tokens and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from etude.attacks.budget import Budget
from etude.attacks.objectives import LossOf

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries of 10,000 after which the area is halved


def square(
    loss_of: LossOf,
    inputs: Tensor,
    budget: Budget,
    *,
    queries: int = 500,
    first_area: float = 0.8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns, for each example, the inputs of highest loss among random changes of square windows.

    It starts from stripes of +-size over the first of the two last axes. A query sets a window to +-size, at a place that is
    drawn for all examples together, and keeps the change of each example whose loss rises. The window's area falls from a share
    of `first_area` as training of the attack goes on. No gradient is used.

    With norm=l2 a window gets random signs, and the whole change is scaled back to the budget; the paper's l2 variant moves the
    energy of one window to another instead.

    Args:
        queries: at least 1. first_area: share of the window at first, in (0, 1].

    Source: Andriushchenko et al. 2020, algorithms 1 and 2.
    """
    if queries < 1 or not 0 < first_area <= 1:
        raise ValueError(f"queries={queries} must be at least 1, first_area={first_area} in (0, 1]")
    inputs = inputs.detach()
    if inputs.ndim < 3:
        raise ValueError(f"inputs have the shape {list(inputs.shape)}; the Square attack needs two axes besides the examples")
    height, width = inputs.shape[-2:]
    shape = (-1, *[1] * (inputs.ndim - 1))

    def signs(*size: int) -> Tensor:
        return 2.0 * torch.randint(0, 2, size, generator=generator, device=inputs.device).to(inputs) - 1

    def scaled(directions: Tensor) -> Tensor:
        if budget.norm == "linf":
            return budget.real(directions * budget.like(inputs))
        return budget.steepest(directions) * budget.like(inputs)

    with torch.no_grad():
        directions = signs(*inputs.shape[:-2], 1, width).expand_as(inputs).clone()
        best = inputs + scaled(directions)
        highest = loss_of(best)
        for query in range(queries):
            area = window_area(query, queries, first_area)
            side_h = max(1, min(height, round((area * height * width) ** 0.5)))
            side_w = max(1, min(width, round(area * height * width / side_h)))
            top = int(torch.randint(0, height - side_h + 1, (), generator=generator, device=inputs.device))
            left = int(torch.randint(0, width - side_w + 1, (), generator=generator, device=inputs.device))
            tried = directions.clone()
            fill = (1, 1) if budget.norm == "linf" else (side_h, side_w)
            tried[..., top : top + side_h, left : left + side_w] = signs(*inputs.shape[:-2], *fill)
            changed = inputs + scaled(tried)
            loss = loss_of(changed)
            higher = loss > highest
            highest = torch.where(higher, loss, highest)
            directions = torch.where(higher.reshape(shape), tried, directions)
            best = torch.where(higher.reshape(shape), changed, best)
    return best


def window_area(query: int, queries: int, first_area: float) -> float:
    """Returns the share of the window at a query: halved at fixed points, which are scaled to the number of queries."""
    at = query / queries * 10_000
    area: float = first_area * 0.5 ** sum(at > mark for mark in HALVED_AT)
    return area
