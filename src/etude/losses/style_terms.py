"""The loss terms of style transfer with their default weights, and the checks of its options."""

from collections.abc import Mapping, Sequence

from etude.losses.adversarial import Kind, check_kind

G, D = "generator/", "discriminator/"
WEIGHTS = {
    G + "adversarial": 1.0, G + "cycle": 10.0, G + "identity": 0.0, G + "patch_nce": 0.0,
    G + "feature_matching": 0.0, G + "rhythm": 0.0, G + "harmony": 0.0, D + "game": 1.0, D + "r1": 4.0,
}  # fmt: skip


def full_weights(given: Mapping[str, float]) -> dict[str, float]:
    """Returns the weight of every term: the given one, else the default.

    Raises:
        ValueError: a term is unknown, or the generator has an adversarial term but the discriminator is not trained.
    """
    if unknown := sorted(given.keys() - WEIGHTS.keys()):
        raise ValueError(f"loss_weights names {unknown[0]}; the terms are {', '.join(sorted(WEIGHTS))}")
    weights = {**WEIGHTS, **given}
    if not weights[D + "game"] and (weights[G + "adversarial"] or weights[D + "r1"]):
        raise ValueError("loss_weights: without discriminator/game, generator/adversarial and discriminator/r1 must be 0, too")
    return weights


def check_options(
    *, sizes: Mapping[str, float], shares: Mapping[str, float], counts: Sequence[int], styles: Sequence[str], kind: Kind
) -> None:
    """Raises a ValueError for a negative size, a share outside [0, 1], a count below 1, fewer than 2 styles, an unknown loss."""
    for options, most in ((sizes, float("inf")), (shares, 1)):
        for name, value in options.items():
            if not 0 <= value <= most:
                raise ValueError(f"task.{name} is {value}, must be in [0, {most:g}]")
    if min(counts) < 1 or len(styles) < 2:
        raise ValueError("r1_every, identity_every and style_dim must be at least 1, and there must be two styles")
    check_kind(kind)
