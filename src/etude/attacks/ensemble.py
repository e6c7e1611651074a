"""Several attacks in turn, each on the examples that withstood those before.

Shapes: n examples, c classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from etude.attacks.budget import Budget
from etude.attacks.gradient import apgd
from etude.attacks.objectives import Fooled, LogitsOf, cross_entropy, dlr, margin, targeted_dlr
from etude.attacks.square import square

KINDS: dict[str, Callable[..., Tensor]] = {"apgd_ce": cross_entropy, "apgd_dlr": dlr, "apgd_targeted": targeted_dlr}
ATTACKS = ("apgd_ce", "apgd_dlr", "apgd_targeted", "square")


def ensemble(
    logits_of: Callable[[Tensor], LogitsOf],
    inputs: Tensor,
    true_n: Tensor,
    budget: Budget,
    *,
    steps: int = 100,
    targets: int = 9,
    queries: int = 1000,
    attacks: tuple[str, ...] = ATTACKS,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Attacks by APGD on cross-entropy, on DLR and on targeted DLR, then by Square, as AutoAttack does.

    Deviations: without FAB, which looks for the smallest change, as `carlini_wagner` does; and DLR also comes untargeted.

    Args:
        logits_of: called with the rows of the examples that are left, int64 [k], returns the function from their inputs
            [k, ...] to logits [k, c].
        steps: of each APGD. targets: classes with the highest logits that are tried as targets. queries: of Square.
        attacks: which of `ATTACKS`, in this order.

    Returns: the inputs after the attack [n, ...]; whether each is still classified right, bool [n]; how many examples each
        attack broke.

    Source: Croce and Hein 2020, section 6.
    """
    found = inputs.detach().clone()
    with torch.no_grad():
        logits = logits_of(torch.arange(len(inputs)))(inputs)
    robust, broken = logits.argmax(1) == true_n, dict[str, int]()
    # the classes by falling logits, without the true one
    order = logits.scatter(1, true_n[:, None], -torch.inf).argsort(1, descending=True)[:, : logits.shape[1] - 1]
    for name in attacks:
        broken[name] = 0
        for number in range(min(targets, order.shape[1]) if name == "apgd_targeted" else 1):
            rows = robust.nonzero()[:, 0]
            if not len(rows):
                break
            record = Fooled(logits_of(rows), inputs[rows], true_n[rows], budget.take(rows))
            if name == "square":
                square(record.loss(margin), record.inputs, record.budget, queries=queries, generator=generator)
            else:
                target = {"target_n": order[rows, number]} if name == "apgd_targeted" else {}
                apgd(record.loss(KINDS[name], **target), record.inputs, record.budget, steps=steps, generator=generator)
            hit = rows[record.found]
            found[hit], robust[hit] = record.examples[record.found], False
            broken[name] += len(hit)
    return found, robust, broken
