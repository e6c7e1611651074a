"""Stateless random numbers: functions of a seed and of indices, so that they can be drawn in any order.

Source: SplitMix64, G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators", 2014.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
ROUNDS = 6  # of the Feistel network; 4 give a pseudorandom permutation (Luby and Rackoff 1988), two more for small domains


def mix(values: np.ndarray) -> np.ndarray:
    """Hashes uint64 values by a bijection."""
    with np.errstate(over="ignore"):
        values = values + _GAMMA
        values = (values ^ (values >> np.uint64(30))) * _MIX1
        values = (values ^ (values >> np.uint64(27))) * _MIX2
        mixed: np.ndarray = values ^ (values >> np.uint64(31))
        return mixed


def key(*numbers: int) -> np.ndarray:
    """Hashes several integers, in their order, to one uint64 (0-d)."""
    state = np.zeros((), np.uint64)
    for number in numbers:
        state = np.asarray(mix(state ^ np.uint64(number & 0xFFFFFFFFFFFFFFFF)))
    return state


def uniform(seed: int, passes: np.ndarray, pieces: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` uniform numbers in [0, 1) for each (seed, pass, piece): float64 [n, count]."""
    base = mix(mix(key(seed) ^ passes.astype(np.uint64)) ^ pieces.astype(np.uint64))
    with np.errstate(over="ignore"):
        bits = mix(base[:, None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(positions: np.ndarray, *, size: int, seed: int, number: int) -> np.ndarray:
    """Returns the elements at `positions` of a random permutation of range(size): int64 [n], in O(n) memory.

    seed, number: determine the permutation, for example the seed of the run and the number of the pass over the data.
    A Feistel network on the smallest even power of two that is at least `size`, applied until the value is below `size`
    (cycle walking, Black and Rogaway 2002).
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = [key(seed, number, turn) for turn in range(ROUNDS)]
    values = np.asarray(positions, np.uint64).copy()
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for turn in keys:
            left, right = right, left ^ (mix(right ^ turn) & mask)
        values[outside] = left << np.uint64(half) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)
