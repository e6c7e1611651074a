"""Draws samples in the key that is asked for, whatever key the model chooses."""

from collections.abc import Callable

from symusic import Score

from etude.music.augmentation import transposed_to
from etude.music.theory import Key

ROUNDS = 8  # with both modes equally likely, one sample in 256 keeps another mode


def samples_in_key(draw: Callable[[int, int], list[Score]], *, num_samples: int, key: Key, seed: int) -> list[Score]:
    """Returns `num_samples` scores in `key`: each is transposed to its tonic, and drawn again if its mode is the other one.

    Where a model treats all transpositions of a piece alike, this samples from its distribution given the key. A score that
    `ROUNDS` draws leave in the other mode is returned as it was drawn first; so is one that can't be transposed.

    Args:
        draw: returns scores, for a number of them and a seed.
        seed: of the first draw; the same seed gives the same scores.
    """
    found: dict[int, Score] = {}
    first: list[Score] = []
    for number in range(ROUNDS):
        missing = [place for place in range(num_samples) if place not in found]
        if not missing:
            break
        drawn = draw(len(missing), seed + 1_000_003 * number)
        first = first or drawn
        for place, score in zip(missing, drawn, strict=True):
            if (moved := transposed_to(score, key)) is not None:
                found[place] = moved
    return [found.get(place, first[place]) for place in range(num_samples)]
