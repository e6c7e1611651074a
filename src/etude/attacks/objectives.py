"""What attacks on classifiers maximise, for each example; and a record of the inputs that a classifier got wrong.

Shapes: n examples, c classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.attacks.budget import Budget

LogitsOf = Callable[[Tensor], Tensor]
LossOf = Callable[[Tensor], Tensor]


def cross_entropy(logits_nc: Tensor, true_n: Tensor) -> Tensor:
    """Returns the cross-entropy of each example, in nats, [n]."""
    return F.cross_entropy(logits_nc, true_n, reduction="none")


def margin(logits_nc: Tensor, true_n: Tensor) -> Tensor:
    """Returns max over other classes of z_i - z_true, [n]: above 0 where the classifier is wrong.

    Source: Carlini and Wagner 2017, section V-A, f_6 without its maximum.
    """
    own = logits_nc.gather(1, true_n[:, None])[:, 0]
    others = logits_nc.scatter(1, true_n[:, None], -torch.inf)
    return others.amax(1) - own


def dlr(logits_nc: Tensor, true_n: Tensor) -> Tensor:
    """Returns the difference of logits ratio, [n], which no scale or shift of the logits changes: above 0 where it is wrong.

        (max_{i != y} z_i - z_y) / (z_pi1 - z_pi3),   pi: the classes by falling logits

    Two classes have no third logit; the margin alone is returned, whose gradient does not vanish either.
    Source: Croce and Hein 2020, equation 6.
    """
    found = margin(logits_nc, true_n)
    if logits_nc.shape[1] < 3:
        return found
    ordered = logits_nc.sort(1, descending=True).values
    return found / (ordered[:, 0] - ordered[:, 2]).clamp(min=1e-12)


def targeted_dlr(logits_nc: Tensor, true_n: Tensor, target_n: Tensor) -> Tensor:
    """Returns the difference of logits ratio towards one other class, [n]: above 0 where that class has the higher logit.

        (z_t - z_y) / (z_pi1 - (z_pi3 + z_pi4) / 2)

    With three classes the denominator is z_pi1 - z_pi3, with two there is none.
    Source: Croce and Hein 2020, equation 7.
    """
    found = (logits_nc.gather(1, target_n[:, None]) - logits_nc.gather(1, true_n[:, None]))[:, 0]
    if logits_nc.shape[1] < 3:
        return found
    ordered = logits_nc.sort(1, descending=True).values
    return found / (ordered[:, 0] - ordered[:, 2:4].mean(1)).clamp(min=1e-12)


class Fooled:
    """Remembers, of all inputs that an attack tries, those that a classifier gets wrong within the budget.

    Of several such inputs of one example it keeps the one with the smallest change. An attack that gets `loss(...)` as its loss
    function therefore never loses a success, whatever it returns itself.

    Args:
        logits_of: returns logits [n, c] of inputs [n, ...]. inputs, true_n: the examples and their classes. budget: of a
            success; None counts changes of any size, measured in l2.
    """

    def __init__(self, logits_of: LogitsOf, inputs: Tensor, true_n: Tensor, budget: Budget | None = None) -> None:
        self.logits_of, self.true_n = logits_of, true_n
        self.inputs = inputs.detach()
        self.budget = budget or Budget(torch.full((len(inputs),), torch.inf, device=inputs.device), "l2")
        self.examples = self.inputs.clone()
        self.distance = torch.full((len(inputs),), torch.inf, device=inputs.device)
        self.passes = 0  # through the classifier, of all examples

    @property
    def found(self) -> Tensor:
        """Whether an input was found for each example, bool [n]."""
        return self.distance.isfinite()

    def logits(self, changed: Tensor) -> Tensor:
        """Returns the logits, and remembers what is wrong among them."""
        logits: Tensor = self.logits_of(changed)
        self.passes += 1
        with torch.no_grad():
            size = self.budget.of(changed.detach() - self.inputs)
            allowed = size <= self.budget.size * (1 + 1e-4) + 1e-12
            better = (logits.argmax(1) != self.true_n) & allowed & (size < self.distance)
            self.distance = torch.where(better, size, self.distance)
            self.examples[better] = changed.detach()[better]
        return logits

    def loss(self, kind: Callable[..., Tensor] = cross_entropy, **options: Tensor) -> LossOf:
        """Returns the loss function for an attack: `kind` of the logits and the classes, [n]."""
        return lambda changed: kind(self.logits(changed), self.true_n, **options)
