"""Adversarial losses of generator and discriminator, for logits of any shape at one or several scales.

Shapes: b batch, h, w patches; x any shape.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["lsgan", "hinge", "non_saturating"]
Logits = Tensor | Sequence[Tensor]


def generator_loss(fake_logits: Logits, kind: Kind) -> Tensor:
    """Returns the adversarial loss of the generator: a scalar, the mean over patches, then over scales.

    lsgan: (D(fake) - 1)^2, hinge: -D(fake), non_saturating: ln(1 + exp(-D(fake))).

    Args:
        fake_logits: one tensor of any shape, or one for each scale. Compute them inside `frozen(discriminator)`.
        kind: one of lsgan, hinge, non_saturating.

    Raises:
        ValueError: the kind is unknown, or there is no scale.

    Source: Mao et al. 2017, eq. 9 with a = 0, b = c = 1 (lsgan, without the factor 1/2); Lim and Ye 2017, Miyato et al.
    2018, eq. 17 (hinge); Goodfellow et al. 2014, section 3 (non_saturating).
    """
    check_kind(kind)
    return _mean([_generator_term(logits, kind).mean() for logits in _scales(fake_logits)])


def discriminator_loss(real_logits: Logits, fake_logits: Logits, kind: Kind) -> Tensor:
    """Returns the adversarial loss of the discriminator: a scalar, real plus fake mean over patches, then the mean over scales.

    lsgan: (D(real) - 1)^2 + D(fake)^2, hinge: max(0, 1 - D(real)) + max(0, 1 + D(fake)),
    non_saturating: ln(1 + exp(-D(real))) + ln(1 + exp(D(fake))).

    Args:
        real_logits, fake_logits: one tensor of any shape, or one for each scale, equally many of both. Detach the
            generated data before giving them to the discriminator.
        kind: one of lsgan, hinge, non_saturating.

    Raises:
        ValueError: the kind is unknown, there is no scale, or the numbers of scales differ.

    Source: as `generator_loss`; Mao et al. 2017, eq. 9, Miyato et al. 2018, eq. 16, Goodfellow et al. 2014, eq. 1.
    """
    check_kind(kind)
    real, fake = _scales(real_logits), _scales(fake_logits)
    if len(real) != len(fake):
        raise ValueError(f"real_logits has {len(real)} scales and fake_logits {len(fake)}; give both of one discriminator")
    return _mean([_real_term(r, kind).mean() + _fake_term(f, kind).mean() for r, f in zip(real, fake, strict=True)])


def r1_penalty(logits: Logits, real: Tensor) -> Tensor:
    """Returns the R1 gradient penalty: the mean over the batch of |d D(x) / d x|^2 at real x, differentiable.

    Multiply it by gamma / 2. D(x) is the sum of a sample's logits over patches and scales. So gamma must be smaller, by the
    number of patches, than for a discriminator with one logit.

    Args:
        logits: logits of `real`, [b, ...], or one tensor for each scale, computed with `real.requires_grad`.
        real: the real data that were given to the discriminator, [b, ...].

    Raises:
        ValueError: `real` does not require a gradient.

    Source: Mescheder, Geiger and Nowozin 2018, eq. 9; the sum over patches is our own.
    """
    if not real.requires_grad:
        raise ValueError("real.requires_grad is False; call real.requires_grad_() before the discriminator sees it")
    total = torch.stack([scale.float().sum() for scale in _scales(logits)]).sum()
    (gradient,) = torch.autograd.grad(total, real, create_graph=True)
    return gradient.flatten(1).square().sum(dim=1).mean()


def _generator_term(fake: Tensor, kind: Kind) -> Tensor:
    return -fake if kind == "hinge" else _real_term(fake, kind)


def _real_term(logits: Tensor, kind: Kind) -> Tensor:
    if kind == "lsgan":
        return (logits - 1).square()
    return F.relu(1 - logits) if kind == "hinge" else F.softplus(-logits)


def _fake_term(logits: Tensor, kind: Kind) -> Tensor:
    if kind == "lsgan":
        return logits.square()
    return F.relu(1 + logits) if kind == "hinge" else F.softplus(logits)


def _scales(logits: Logits) -> list[Tensor]:
    scales = [logits] if isinstance(logits, Tensor) else list(logits)
    if not scales:
        raise ValueError("logits has no scale; give a tensor or a list of at least one")
    return scales


def _mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean()


def check_kind(kind: str) -> None:
    """Raises a ValueError that lists the kinds if `kind` is none of them."""
    if kind not in get_args(Kind):
        raise ValueError(f"adversarial kind is {kind!r}; choose one of {', '.join(get_args(Kind))}")
