"""Draws samples in the key that is asked for, whatever key the model chooses."""

from collections.abc import Callable

from symusic import Score

from etude.music.augmentation import transposed_to
from etude.music.theory import Key, has_key

ROUNDS = 8  # with both modes equally likely, one sample in 256 keeps another mode


def samples_in_key(
    draw: Callable[[int, int], list[Score]],
    *,
    num_samples: int,
    key: Key,
    seed: int,
    on_round: Callable[[int, int, int], None] | None = None,
) -> list[Score]:
    """Returns `num_samples` scores in `key`: each is transposed to its tonic, and drawn again if its mode is the other one.

    Where a model treats all transpositions of a piece alike, this samples from its distribution given the key. A score that
    `ROUNDS` draws leave in the other mode is returned as it was drawn first; so is one that can't be transposed. One without
    notes, or without a key, is not drawn again: a model that makes such scores has learnt little, and a round may take minutes.

    Args:
        draw: returns scores, for a number of them and a seed.
        seed: of the first draw; the same seed gives the same scores.
        on_round: called before each round with its number, from 1, the largest number of rounds, and how many scores it draws.
    """
    found: dict[int, Score] = {}
    first: list[Score] = []
    missing = list(range(num_samples))
    for number in range(ROUNDS):
        if not missing:
            break
        if on_round is not None:
            on_round(number + 1, ROUNDS, len(missing))
        drawn = draw(len(missing), seed + 1_000_003 * number)
        first = first or drawn
        again = []
        for place, score in zip(missing, drawn, strict=True):
            if (moved := transposed_to(score, key)) is not None:
                found[place] = moved
            elif has_key(score):  # the other mode, or pitches that leave no room
                again.append(place)
        missing = again
    return [found.get(place, first[place]) for place in range(num_samples)]
