"""Tracks of one program stay apart: the second and later ones have a Part token behind their Program token.

MidiTok joins tracks of one program. So each track gets a program number of its own before MidiTok sees it, and Program tokens
get their true programs afterwards; decoding goes the other way.
"""

from collections import Counter

import numpy as np
from symusic import Score

from etude.music.instruments import INSTRUMENT_NAMES
from etude.tokens.miditok_vocabulary import DRUMS, PART, PROGRAM, TokenTable

PROGRAMS = 128
Owner = tuple[int, int]  # a program, and which of its tracks: its part, from 0 on


def owners(score: Score, *, parts: int) -> list[Owner]:
    """Returns program and part of each track, (-1, 0) for drums; tracks beyond `parts` of one program share the last part."""
    seen: Counter[int] = Counter()
    found: list[Owner] = []
    for track in score.tracks:
        found.append((DRUMS, 0) if track.is_drum else (track.program, min(seen[track.program], parts - 1)))
        seen[track.program] += not track.is_drum
    return _numberable(found)


def _numberable(found: list[Owner]) -> list[Owner]:
    """Returns the owners with so many parts left out that there is a number for each; those beyond share the last part."""
    parts = 1 + max((part for _, part in found), default=0)
    while parts > 1 and len(set(found)) > PROGRAMS:
        parts -= 1
        found = [(program, min(part, parts - 1)) for program, part in found]
    return found


def apart(score: Score, *, parts: int) -> tuple[Score, list[Owner]]:
    """Returns a copy whose tracks all have program numbers of their own, and the owner that each number stands for.

    score: its tracks are in the order of programs, drums last. Without several tracks of one program, it is returned itself.
    """
    found = owners(score, parts=parts)
    pitched = sorted({owner for owner in found if owner[0] != DRUMS})
    if all(part == 0 for _, part in pitched):
        return score, []
    result = score.copy()
    for track, owner in zip(result.tracks, found, strict=True):
        if not track.is_drum:
            track.program = pitched.index(owner)
    return result, pitched


def named(ids: np.ndarray, found: list[Owner], table: TokenTable) -> np.ndarray:
    """Replaces the Program tokens of `apart` by those of the owners, followed by a Part token for all but the first part."""
    programs = {int(table.number[i]): int(i) for i in table.of_kind[PROGRAM]}
    tokens = [[programs[program], *([int(table.of_kind[PART][part - 1])] if part else [])] for program, part in found]
    result: list[int] = []
    for token, kind, number in zip(ids.tolist(), table.kind[ids].tolist(), table.number[ids].tolist(), strict=True):
        result += tokens[number] if kind == PROGRAM and number != DRUMS else [token]
    return np.array(result, dtype=np.int32)


def numbered(ids: np.ndarray, table: TokenTable) -> tuple[np.ndarray, list[Owner]]:
    """Inverse of `named`: Program tokens with numbers of their own and no Part tokens, and the owner of each number."""
    kind, number = table.kind[ids], table.number[ids]
    if not (kind == PART).any():
        return ids, []
    at = np.flatnonzero(kind == PROGRAM)
    part = np.where(np.append(kind, 0)[at + 1] == PART, np.append(number, 0)[at + 1], 0)
    each = _numberable([(int(number[i]), int(p)) for i, p in zip(at, part, strict=True)])
    pitched = sorted({owner for owner in each if owner[0] != DRUMS})
    programs = {int(table.number[i]): int(i) for i in table.of_kind[PROGRAM]}
    result = ids.copy()
    result[at] = [int(ids[i]) if owner[0] == DRUMS else programs[pitched.index(owner)] for i, owner in zip(at, each, strict=True)]
    return result[kind != PART], pitched


def restore(score: Score, found: list[Owner]) -> None:
    """Gives the tracks of a score decoded from `numbered` their programs; tracks of one program get names with numbers."""
    several = Counter(program for program, _ in found)
    for track in score.tracks:
        if not track.is_drum and found:
            track.program, part = found[track.program]
            name = INSTRUMENT_NAMES[track.program]
            track.name = f"{name} {part + 1}" if several[track.program] > 1 else name
