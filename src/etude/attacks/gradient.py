"""Attacks along the gradient of the loss: FGSM, PGD, and APGD, which chooses its own step size.

Each is called `attack(loss_of, inputs, budget)` and returns changed inputs within the budget. `loss_of` maps inputs [n, ...] to
a loss for each example, [n], which the attack raises; examples must not depend on each other. Attacks leave `.grad` alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from etude.attacks.budget import Budget
from etude.attacks.objectives import LossOf

MOMENTUM = 0.75  # alpha of APGD
RISING = 0.75  # rho of APGD: share of the steps between two checkpoints that must raise the loss


def loss_and_gradient(loss_of: LossOf, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss of each example (or a scalar), detached, and its gradient with respect to the inputs."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = (inputs.clone() if inputs.is_inference() else inputs).detach().requires_grad_()
        loss = loss_of(leaf)
        gradient = torch.autograd.grad(loss.sum(), leaf)[0]
    return loss.detach(), gradient


def fgsm(loss_of: LossOf, inputs: Tensor, budget: Budget) -> Tensor:
    """Returns inputs after one step of the whole budget: x + size * sign(gradient) for linf.

    Source: Goodfellow, Shlens and Szegedy 2015, section 4; for l2 along the gradient itself.
    """
    _, gradient = loss_and_gradient(loss_of, inputs)
    return inputs.detach() + budget.steepest(gradient) * budget.like(inputs)


def pgd(
    loss_of: LossOf,
    inputs: Tensor,
    budget: Budget,
    *,
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns inputs after projected steps along the gradient; with several restarts, for each example those of highest loss.

    Args:
        loss_of: a loss for each example; with one restart it may also be a scalar.
        steps: at least 1. step_size: as a share of the budget, above 0; None for 2.5 / steps.
        restarts: from other random changes, at least 1. random_start: False starts from the inputs themselves.

    Raises: ValueError for an option out of its range, or several restarts from the same point.

    Source: Madry et al. 2018, equation 2.1 and section 5 (l2 and linf).
    """
    if steps < 1 or restarts < 1 or (step_size is not None and step_size <= 0):
        raise ValueError(f"steps={steps} and restarts={restarts} must be at least 1, step_size={step_size} above 0 or null")
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts={restarts} from the same inputs are all alike; set random_start=true or restarts=1")
    inputs, length = inputs.detach(), 2.5 / steps if step_size is None else step_size
    best, highest = inputs, torch.full((len(inputs),), -torch.inf, device=inputs.device)
    for _ in range(restarts):
        change = budget.random(inputs, generator) if random_start else torch.zeros_like(inputs)
        for _ in range(steps):
            _, gradient = loss_and_gradient(loss_of, inputs + change)
            change = budget.projected(change + length * budget.like(inputs) * budget.steepest(gradient))
        if restarts == 1:
            return inputs + change
        with torch.no_grad():
            loss = loss_of(inputs + change)
        higher = loss > highest
        highest = torch.where(higher, loss, highest)
        best = torch.where(higher.reshape(-1, *[1] * (inputs.ndim - 1)), inputs + change, best)
    return best


def apgd(
    loss_of: LossOf, inputs: Tensor, budget: Budget, *, steps: int = 100, generator: torch.Generator | None = None
) -> Tensor:
    """Returns, for each example, the inputs of highest loss on a path with momentum whose steps are halved where it stalls.

    The step is 2 * size at first. At fixed checkpoints it is halved for an example if fewer than 75 % of the steps since the
    last checkpoint have raised its loss, or if neither step nor highest loss have changed since then; the path goes on from the
    best point.

    Args: steps: at least 2.

    Source: Croce and Hein 2020, algorithm 1.
    """
    if steps < 2:
        raise ValueError(f"steps={steps} must be at least 2; 100 is usual")
    inputs = inputs.detach()
    shape = (-1, *[1] * (inputs.ndim - 1))
    start = budget.random(inputs, generator)
    start = start / budget.of(start).clamp(min=1e-12).reshape(shape) * budget.like(inputs)
    now = before = inputs + start
    loss, gradient = loss_and_gradient(loss_of, now)
    best, highest, best_gradient = now, loss, gradient
    step = 2 * budget.size.to(inputs)
    risen = torch.zeros_like(highest)
    last_step, last_highest, last_checkpoint = step.clone(), highest.clone(), 0
    marks = checkpoints(steps)
    for number in range(1, steps + 1):
        moved = inputs + budget.projected(now + step.reshape(shape) * budget.steepest(gradient) - inputs)
        if number > 1:
            moved = now + MOMENTUM * (moved - now) + (1 - MOMENTUM) * (now - before)
            moved = inputs + budget.projected(moved - inputs)
        before, now, previous = now, moved, loss
        loss, gradient = loss_and_gradient(loss_of, now)
        risen += loss > previous
        higher = loss > highest
        highest = torch.where(higher, loss, highest)
        best = torch.where(higher.reshape(shape), now, best)
        best_gradient = torch.where(higher.reshape(shape), gradient, best_gradient)
        if number in marks:
            few = risen < RISING * (number - last_checkpoint)
            stuck = (step == last_step) & (highest == last_highest)
            last_step, last_highest, last_checkpoint = step.clone(), highest.clone(), number
            halved = few | stuck
            step = torch.where(halved, step / 2, step)
            loss = torch.where(halved, highest, loss)
            now = torch.where(halved.reshape(shape), best, now)
            before = torch.where(halved.reshape(shape), best, before)
            gradient = torch.where(halved.reshape(shape), best_gradient, gradient)
            risen.zero_()
    return best


def checkpoints(steps: int) -> frozenset[int]:
    """Returns the steps of APGD after which the step size may change.

        w_j = ceil(p_j * steps),  p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)

    Source: Croce and Hein 2020, section 3.
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return frozenset(math.ceil(round(share * steps, 6)) for share in shares[1:] if share <= 1)
