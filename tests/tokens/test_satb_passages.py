"""A passage of four voices as missing cells of the grid, and its cells as notes: what lies outside is given, note for note."""

import numpy as np
import pytest
from symusic import Score

from etude.music.passages import Passage, replaced, same_outside
from etude.tokens.satb import SatbGrid
from etude.tokens.satb_passages import grid_passage, tracks_filled
from tests.tokens.test_satb import as_score

GRID = SatbGrid()


def chorale() -> Score:
    """Two bars of 4/4: the soprano's note rings across the bar line, the alto's ends there, tenor and bass hold."""
    return as_score([[(0, 8, 72), (8, 20, 74), (20, 32, 76)], [(0, 16, 67), (16, 32, 65)], [(0, 32, 60)], [(0, 32, 48)]])


def test_cells_of_notes_that_begin_in_the_passage_are_missing() -> None:
    grid = grid_passage(GRID, chorale(), Passage(1, 2))
    assert grid.tracks == (0, 1, 2, 3)
    missing = np.zeros((32, 4), dtype=bool)
    missing[20:, 0] = missing[16:, 1] = True  # what is held from the bar before stays
    np.testing.assert_array_equal(grid.missing, missing)
    assert not grid.held.any()


def test_cells_behind_the_passage_go_on_with_its_last_note() -> None:
    grid = grid_passage(GRID, chorale(), Passage(0, 1, (0, 3)))
    missing, held = np.zeros((32, 4), dtype=bool), np.zeros((32, 4), dtype=bool)
    missing[:16, 0] = missing[:16, 3] = True
    held[16:20, 0] = held[16:, 3] = True
    np.testing.assert_array_equal(grid.missing, missing)
    np.testing.assert_array_equal(grid.held, held)


@pytest.mark.parametrize("passage", [Passage(0, 1), Passage(1, 2), Passage(0, 2, (1,)), Passage(0, 1, (0, 3))])
@pytest.mark.parametrize("resolution", [96, 480])
def test_the_old_cells_give_the_old_notes(passage: Passage, resolution: int) -> None:
    score = chorale().resample(resolution, min_dur=1)
    grid = grid_passage(GRID, score, passage)
    again = replaced(score, passage, tracks_filled(GRID, score, passage, grid, grid.frames))
    for mine, its in zip(score.tracks, again.tracks, strict=True):
        assert [(n.time, n.duration, n.pitch) for n in mine.notes] == [(n.time, n.duration, n.pitch) for n in its.notes]


def test_other_cells_change_nothing_outside() -> None:
    score, passage = chorale(), Passage(0, 1, (0, 3))
    grid = grid_passage(GRID, score, passage)
    frames = grid.frames.copy()
    frames[grid.missing | grid.held] = 50
    again = replaced(score, passage, tracks_filled(GRID, score, passage, grid, frames))
    assert same_outside(score, again, passage)
    assert [(n.time, n.duration, n.pitch) for n in again.tracks[0].notes] == [(0, 2400, 50), (2400, 1440, 76)]


def test_what_can_not_be_filled_in_is_refused() -> None:
    trio = chorale()
    trio.tracks.pop()
    with pytest.raises(ValueError, match="infill: found 3 tracks with notes; the SATB grid needs exactly four"):
        grid_passage(GRID, trio, Passage(0, 1))
    with pytest.raises(ValueError, match="no note can begin in these bars"):
        grid_passage(GRID, chorale(), Passage(1, 2, (2,)))
