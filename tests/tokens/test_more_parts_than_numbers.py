"""Sequences with more tracks than there are program numbers, as an untrained model draws them, are decoded."""

import numpy as np

from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_parts import PROGRAMS, numbered
from etude.tokens.miditok_vocabulary import DRUMS, PART, PROGRAM


def test_parts_share_numbers_where_there_are_too_few() -> None:
    table = MidiTokTokenizer(genres=["a"], parts=8).table
    programs = {int(table.number[i]): int(i) for i in table.of_kind[PROGRAM]}
    part = int(table.of_kind[PART][0])
    plain = [programs[number] for number in range(PROGRAMS)]
    ids = np.array([programs[DRUMS], *plain, programs[0], part, programs[5], part])
    result, found = numbered(ids, table)
    assert len(found) == PROGRAMS and found[5] == (5, 0)
    assert result.tolist() == [programs[DRUMS], *plain, programs[0], programs[5]]
    few, found = numbered(np.array([programs[0], programs[0], part, programs[5]]), table)
    assert found == [(0, 0), (0, 1), (5, 0)] and few.tolist() == [programs[0], programs[1], programs[2]]
