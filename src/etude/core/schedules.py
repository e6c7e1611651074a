"""Learning-rate schedules: factors of the base rate, a function of the step alone, so that resuming is exact."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def _check(total_steps: int, warmup: float, final: float) -> None:
    if total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}, must be at least 1; set trainer.max_steps or trainer.max_epochs")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is {warmup}, must be in [0, 1), a share of all steps")
    if not 0 <= final <= 1:
        raise ValueError(f"final is {final}, must be in [0, 1], a share of the learning rate")


def cosine(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Rises linearly for `warmup` of all steps, then falls along half a cosine to `final` of the learning rate.

    Source: Loshchilov and Hutter 2017, equation 5, one cycle; the warm-up is an addition.
    """
    _check(total_steps, warmup, final)
    rise = warmup * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = min(1.0, (step - rise) / max(1.0, total_steps - rise))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def wsd(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.02, decay: float = 0.3, final: float = 0.0) -> LambdaLR:
    """Warm-up, stable, decay: constant between a linear rise and a linear fall over the last `decay` of all steps.

    Source: Hu et al. 2024 (MiniCPM), section 4, with a linear decay (Haegele et al. 2024).
    """
    _check(total_steps, warmup, final)
    if not 0 < decay <= 1 - warmup:
        raise ValueError(f"decay is {decay}, must be in (0, 1 - warmup = {1 - warmup}]")
    rise, fall = warmup * total_steps, (1 - decay) * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return 1.0 if step <= fall else final + (1 - final) * max(0.0, (total_steps - step) / (total_steps - fall))

    return LambdaLR(optimizer, factor)
