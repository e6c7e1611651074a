"""Learning-rate schedules. Each is a function of the step alone, so that resuming is exact.

In all of them `warmup` is the length of the warm-up: below 1 a share of all steps, from 2 on a number of steps.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def _rise(total_steps: int, warmup: float, final: float) -> float:
    """Returns the length of the warm-up in steps, after a check of all three.

    warmup: below 1 a share of all steps, from 2 on a number of steps.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}, must be at least 1; set trainer.max_steps or trainer.max_epochs")
    if not 0 <= warmup < 1 and (warmup < 2 or warmup != int(warmup)):
        raise ValueError(f"warmup is {warmup}, must be in [0, 1), a share of all steps, or a whole number of steps from 2 on")
    if not 0 <= final <= 1:
        raise ValueError(f"final is {final}, must be in [0, 1], a share of the learning rate")
    if warmup >= max(2, total_steps):
        raise ValueError(
            f"warmup is {warmup:g} steps, as long as the whole run of {total_steps} or longer; train longer, or give a share of "
            "the run, such as scheduler.warmup=0.1"
        )
    return warmup if warmup >= 1 else warmup * total_steps


def cosine(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Rises linearly for `warmup` of all steps, then falls along half a cosine to `final` of the learning rate.

    Source: Loshchilov and Hutter 2017, equation 5, one cycle; the warm-up is an addition.
    """
    rise = _rise(total_steps, warmup, final)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = min(1.0, (step - rise) / max(1.0, total_steps - rise))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def wsd(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.02, decay: float = 0.3, final: float = 0.0) -> LambdaLR:
    """Warm-up, stable, decay: rises linearly, stays constant, then falls linearly over the last `decay` of all steps.

    Source: Hu et al. 2024 (MiniCPM), section 4, with a linear decay (Haegele et al. 2024).
    """
    rise = _rise(total_steps, warmup, final)
    share = rise / total_steps
    if not 0 < decay <= 1 - share + 1e-9:
        raise ValueError(f"decay is {decay}, must be in (0, 1 - warmup = {1 - share:g}]")
    fall = (1 - decay) * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return 1.0 if step <= fall else final + (1 - final) * max(0.0, (total_steps - step) / (total_steps - fall))

    return LambdaLR(optimizer, factor)


def linear(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Rises linearly for `warmup` of all steps, then falls linearly to `final` of the learning rate.

    When to use: about as good as the cosine, and better where the rate falls to zero (Defazio et al. 2023).

    Source: Defazio et al. 2023, "When, why and how much? Adaptive learning rate scheduling by refinement".
    """
    rise = _rise(total_steps, warmup, final)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return final + (1 - final) * (1 - min(1.0, (step - rise) / max(1.0, total_steps - rise)))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.05) -> LambdaLR:
    """Rises linearly for `warmup` of all steps, then stays constant; for schedule-free optimizers.

    Source: Defazio et al. 2024, section 4, recommends a warm-up for them, too.
    """
    rise = _rise(total_steps, warmup, 1.0)
    return LambdaLR(optimizer, lambda step: (step + 1) / (rise + 1) if step < rise else 1.0)


def noam(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.1) -> LambdaLR:
    """Rises linearly for `warmup` of all steps, then falls in proportion to 1 / sqrt(step).

    factor(s) = min(s / w, sqrt(w / s)) at step s = 1, 2, ... with w steps of warm-up. The peak is the optimizer's
    learning rate. The factor d_model^-0.5 of the source is left out, so the peak does not depend on the model's width.

    When to use: runs whose length is not known in advance; otherwise a schedule that falls to zero is better.

    Source: Vaswani et al. 2017, equation 3, divided by its peak.
    """
    rise = max(1.0, _rise(total_steps, warmup, 0.0))
    return LambdaLR(optimizer, lambda step: min((step + 1) / rise, math.sqrt(rise / (step + 1))))


def cosine_restarts(
    optimizer: Optimizer, *, total_steps: int, warmup: float = 0.02, cycles: int = 2, t_mult: float = 1.0, final: float = 0.0
) -> LambdaLR:
    """Rises linearly for `warmup` of all steps, then falls along half a cosine `cycles` times, each time from the peak.

    factor(t) = final + (1 - final) (1 + cos(pi t_cur / T_i)) / 2, where t_cur steps have passed since the last restart and
    T_(i+1) = t_mult * T_i. The first cycle's length T_0 is such that the last one ends with the run: of the steps after the
    warm-up, the share 1 / (1 + t_mult + ... + t_mult^(cycles - 1)), 1/2 by default.

    When to use: if a good model is wanted at the end of each cycle, or if training stalls. cycles = 1 is `cosine`.

    Source: Loshchilov and Hutter 2017, equation 5 and section 3; the warm-up is an addition.

    Raises:
        ValueError: cycles below 1 or t_mult below 1.
    """
    rise = _rise(total_steps, warmup, final)
    if cycles < 1:
        raise ValueError(f"cycles is {cycles}, must be at least 1; 1 is scheduler=cosine")
    if t_mult < 1:
        raise ValueError(
            f"t_mult is {t_mult}, must be at least 1: the length of a cycle divided by that of the one before; 2 is common"
        )
    lengths = [t_mult**cycle for cycle in range(cycles)]
    unit = max(1.0, total_steps - rise) / sum(lengths)
    starts = [rise + unit * sum(lengths[:cycle]) for cycle in range(cycles)]

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        cycle = max(number for number, start in enumerate(starts) if start <= step + 1e-9)
        progress = min(1.0, (step - starts[cycle]) / (unit * lengths[cycle]))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
