"""The attack of Carlini and Wagner, which looks for the smallest change that a classifier gets wrong.

Shapes: n examples, c classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from etude.attacks.budget import Budget
from etude.attacks.objectives import Fooled, LogitsOf, margin

LOWEST, HIGHEST = 0.0, 1e10  # of the weight c
SLOWEST = 0.01  # the last learning rate, as a share of the first: far changes are reached, near ones resolved


def carlini_wagner(
    logits_of: LogitsOf,
    inputs: Tensor,
    true_n: Tensor,
    *,
    steps: int = 100,
    searches: int = 5,
    learning_rate: float = 0.03,
    weight: float = 0.1,
    counted: Tensor | None = None,
) -> Fooled:
    """Returns the smallest wrong inputs that were found, with their Euclidean distances.

        minimize |change|^2 / |inputs|^2 + c max(z_true - max_{i != true} z_i, 0)

    by Adam, with a binary search for the weight c of each example. Deviations: the first term is relative, so that one learning
    rate suits all inputs; no change of variables, since mels and embeddings have no box to stay in.

    Args:
        logits_of: logits [n, c] of inputs [n, ...]. counted: as of `Budget`.
        steps: of Adam, for each c. searches: values of c that are tried. learning_rate: the first one, as a share of the root
            mean square of each example; it falls to a hundredth. weight: c at first.

    Source: Carlini and Wagner 2017, section VI-A, f_6.
    """
    if steps < 1 or searches < 1 or learning_rate <= 0 or weight <= 0:
        raise ValueError(
            f"steps={steps} and searches={searches} must be at least 1, learning_rate={learning_rate} and weight={weight} above 0"
        )
    inputs = inputs.detach()
    budget = Budget(torch.full((len(inputs),), torch.inf, device=inputs.device), "l2", counted)
    record = Fooled(logits_of, inputs, true_n, budget)
    shape = (-1, *[1] * (inputs.ndim - 1))
    values = budget.real(inputs).flatten(1)
    energy = values.square().sum(1).clamp(min=1e-12)
    scale = values.square().mean(1).clamp(min=1e-12).sqrt().reshape(shape)
    c = torch.full((len(inputs),), weight, device=inputs.device)
    low, high = torch.full_like(c, LOWEST), torch.full_like(c, HIGHEST)
    for _ in range(searches):
        change = torch.zeros_like(inputs, requires_grad=True)  # in units of the scale
        optimizer = torch.optim.Adam([change], lr=learning_rate)
        broken = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate * SLOWEST ** (step / steps)
            with torch.inference_mode(False), torch.enable_grad():
                moved = budget.real(change * scale)
                logits = record.logits(inputs + moved)
                away = (-margin(logits, true_n)).clamp(min=0)
                loss = (moved.flatten(1).square().sum(1) / energy + c * away).sum()
                change.grad = torch.autograd.grad(loss, change)[0]
            optimizer.step()
            broken |= logits.argmax(1) != true_n
        high = torch.where(broken, torch.minimum(high, c), high)
        low = torch.where(broken, low, torch.maximum(low, c))
        c = torch.where(high < HIGHEST, (low + high) / 2, c * 10)
    return record
