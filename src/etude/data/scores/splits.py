"""Assign pieces to the training, validation and test splits, so that duplicates stay in the same split."""

import collections
import hashlib

import numpy as np


def assign_splits(group: np.ndarray, contents: list[str], ratios: dict[str, float]) -> list[str]:
    """Assigns a split to each piece by a hash of its group, so that adding files does not move other groups.

    group: int64 [n] from `duplicates.groups`.
    contents: content hashes; the smallest one of a group determines its split.
    ratios: split -> share; shares add up to 1. An empty split with a share above 0 gets the group with the nearest hash, if
        there are enough groups.
    """
    smallest: dict[int, str] = {}
    for row, content in zip(group.tolist(), contents, strict=True):
        smallest[row] = min(content, smallest.get(row, content))
    place = {row: int(hashlib.sha256(c.encode()).hexdigest()[:13], 16) / 16**13 for row, c in smallest.items()}
    names = [name for name, share in ratios.items() if share > 0]
    ends = np.cumsum([ratios[name] for name in names])
    chosen = {row: names[min(int(np.searchsorted(ends, at, side="right")), len(names) - 1)] for row, at in place.items()}
    for number, name in enumerate(names):
        count = collections.Counter(chosen.values())
        if count[name] == 0 and max(count.values()) > 1:
            middle = ends[number] - ratios[name] / 2
            movable = (row for row in chosen if count[chosen[row]] > 1)
            chosen[min(movable, key=lambda row: (abs(place[row] - middle), row))] = name
    return [chosen[row] for row in group.tolist()]
