"""Rules that balance the terms of a loss: each takes its state and the latest loss values, and returns factors.

Shapes: m terms of one player, k state values of each term. A term that is missing on a batch has the value NaN. The state of
a term does not change where its value is not finite. Rules for the gradients of the terms, such as PCGrad, are in
`techniques/loss/balance.py`.
"""

import math

import torch
from torch import Tensor


def _bounded(factors_m: Tensor, limit: float) -> Tensor:
    return factors_m.clamp(1 / limit, limit)


def running_scale(state_mk: Tensor, values_m: Tensor, weights_m: Tensor, *, decay: float, limit: float) -> tuple[Tensor, Tensor]:
    """Divides each term by its running mean magnitude, so that its weight is its share of the total loss.

    a_i = EMA(|L_i|) with decay d, bias-corrected; f_i = c / a_i with c = sum_j w_j a_j / sum_j w_j over all terms seen so
    far. So the total loss keeps its magnitude, and each term contributes in proportion to its weight w_i.

    Args:
        state_mk: [m, 2], the running sum and the running sum of ones, zeros at first.
        values_m: L_i. weights_m: w_i >= 0.
        decay: d in (0, 1). limit: f_i stays within [1 / limit, limit].

    Returns: the new state and the factors f_i [m]; 1 for a term not seen yet.
    """
    seen = torch.isfinite(values_m)
    now_mk = torch.stack([torch.where(seen, values_m.abs(), 0.0), seen.to(values_m)], dim=1)
    state_mk = torch.where(seen[:, None], decay * state_mk + (1 - decay) * now_mk, state_mk)
    known = state_mk[:, 1] > 0
    mean_m = state_mk[:, 0] / torch.where(known, state_mk[:, 1], 1.0)
    weights_m = torch.where(known, weights_m, 0.0)
    level = (weights_m * mean_m).sum() / weights_m.sum().clamp(min=1e-12)
    factors_m = torch.where(known & (level > 0), level / mean_m.clamp(min=1e-12), 1.0)
    return state_mk, _bounded(factors_m, limit)


def uncertainty(state_mk: Tensor, values_m: Tensor, *, rate: float, limit: float) -> tuple[Tensor, Tensor]:
    """Learns a log-variance s_i for each term, by one step of gradient descent on exp(-s_i) |L_i| + s_i.

    f_i = exp(-s_i) with the s_i before the step. It converges to f_i = 1 / E|L_i|.

    Args:
        state_mk: [m, 1], s_i, zeros at first. values_m: L_i.
        rate: step size; the gradient 1 - exp(-s_i) |L_i| is clipped to [-1, 1].
        limit: s_i is clamped so that f_i stays within [1 / limit, limit].

    Source: Kendall, Gal and Cipolla 2018, equation 7, times 2. Deviations: magnitudes, since an adversarial term can be
    negative; the clipping, without which one large value overshoots for thousands of steps.
    """
    log_variance_m = state_mk[:, 0]
    factors_m = torch.exp(-log_variance_m)
    step_m = (1 - factors_m * values_m.abs()).clamp(min=-1.0)
    furthest = math.log(limit)
    moved_m = (log_variance_m - rate * step_m).clamp(-furthest, furthest)
    return torch.where(torch.isfinite(values_m), moved_m, log_variance_m)[:, None], factors_m


def dynamic_average(
    state_mk: Tensor, values_m: Tensor, *, temperature: float, ends_period: bool, limit: float
) -> tuple[Tensor, Tensor]:
    """Gives more weight to terms that decreased more slowly between the last two periods.

    f_i = K softmax(r_i / T) over the K terms that have two averages, r_i = mean L_i of the last period / of the one before.

    Args:
        state_mk: [m, 4], sum and count of this period, averages of the last and of the one before; (0, 0, NaN, NaN) at first.
        values_m: L_i. temperature: T > 0; a larger one makes the factors more equal.
        ends_period: whether this batch is the last of its period.
        limit: f_i stays within [1 / limit, limit].

    Source: Liu, Johns and Davison 2019, equation 7, with periods of batches in place of epochs.
    """
    sums_m, counts_m, last_m, before_m = state_mk.unbind(1)
    known = torch.isfinite(last_m) & torch.isfinite(before_m)
    rates_m = torch.where(known, last_m / before_m, -torch.inf) / temperature
    even = ~known.any()  # softmax of -inf alone would be NaN
    shares_m = known.sum() * torch.softmax(torch.where(even, 0.0, rates_m), dim=0)
    factors_m = torch.where(known & torch.isfinite(shares_m), shares_m, 1.0)
    seen = torch.isfinite(values_m)
    sums_m, counts_m = sums_m + torch.where(seen, values_m, 0.0), counts_m + seen
    if ends_period:
        rolled = counts_m > 0
        average_m = sums_m / counts_m.clamp(min=1)
        last_m, before_m = torch.where(rolled, average_m, last_m), torch.where(rolled, last_m, before_m)
        sums_m, counts_m = torch.zeros_like(sums_m), torch.zeros_like(counts_m)
    return torch.stack([sums_m, counts_m, last_m, before_m], dim=1), _bounded(factors_m, limit)


def gradient_norms(
    state_mk: Tensor, values_m: Tensor, norms_m: Tensor, *, alpha: float, rate: float, limit: float
) -> tuple[Tensor, Tensor]:
    """Makes the gradient norms of the terms similar (GradNorm); terms that decreased less so far get larger norms.

    With G_i = f_i |grad L_i| and t_i = mean_j G_j r_i^alpha, r_i = (L_i / L_i at first) / mean_j of it, one step of gradient
    descent on sum_i |G_i - t_i|, t_i held fixed, then the f_i are rescaled so that their sum does not change.

    Args:
        state_mk: [m, 2], f_i and |L_i| when it was first seen; (1, NaN) at first.
        values_m: L_i, none missing. norms_m: |grad L_i| of the unweighted terms, in any common unit.
        alpha: how strongly slow terms are favoured, at least 0. rate: step size.
        limit: f_i stays within [1 / limit, limit].

    Returns: the new state and the factors f_i after the step.

    Source: Chen et al. 2018, equations 1 and 2. Deviations: norms over all parameters of the player instead of one shared
    layer, and divided by their mean, so that the step does not depend on the losses' unit; magnitudes of L_i.
    """
    factors_m, first_m = state_mk.unbind(1)
    first_m = torch.where(torch.isnan(first_m), values_m.abs(), first_m)
    progress_m = values_m.abs() / first_m.clamp(min=1e-12)
    rates_m = progress_m / progress_m.mean().clamp(min=1e-12)
    scaled_m = norms_m / (factors_m * norms_m).mean().clamp(min=1e-30)
    step_m = torch.sign(factors_m * scaled_m - rates_m**alpha) * scaled_m
    moved_m = _bounded(factors_m - rate * step_m.clamp(-1.0, 1.0), limit)
    moved_m = _bounded(moved_m * (factors_m.sum() / moved_m.sum()), limit)
    moved_m = torch.where(torch.isfinite(moved_m).all(), moved_m, factors_m)
    return torch.stack([moved_m, first_m], dim=1), moved_m
