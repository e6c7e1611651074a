"""What is found in the training pieces: hand-made passages, and laws of the search."""

import numpy as np
import pytest

from etude.models.symbolic.grid_context import REST
from etude.models.symbolic.passage_memory import CLASSES, REACH, PassageMemory, PassageSearch, movements

MELODY, HARMONY = 0, 1


def held(*chords: tuple[int, ...], frames: int = 4) -> np.ndarray:
    """Chords of four voices, each held for some frames."""
    return np.repeat(np.array(chords), frames, axis=0)


TUNE = held((67, 62, 59, 43), (69, 62, 57, 50), (71, 62, 55, 43), (72, 64, 55, 48), (74, 65, 57, 50))


def noise(frames: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed).integers(50, 70, (-(-frames // 3), 4))
    draw[draw > 67] = REST
    return np.repeat(draw, 3, axis=0)[:frames]


def test_the_next_note_of_the_only_tune_that_went_alike_is_found_in_another_key() -> None:
    memory = PassageMemory([noise(41, 0), TUNE, noise(30, 1)])
    found = memory.look_up(TUNE[:12] + 5)
    melody = found[12, 0, MELODY]
    assert melody[:CLASSES].argmax() == REACH + 1 and melody[REACH + 1] == 1  # from the third chord a semitone up
    assert melody[CLASSES] == pytest.approx(np.log1p(2)) and melody[CLASSES + 1] == pytest.approx(np.log1p(1))
    assert found[12, 0, HARMONY].argmax() == REACH + 1


def test_a_held_note_is_held_as_long_as_in_the_memory() -> None:
    memory = PassageMemory([TUNE])
    found = memory.look_up(TUNE)
    for frame in range(9, 17):  # before, two places of the tune went alike
        interval = {12: 1, 16: 2}.get(frame, 0)
        assert found[frame, 0, MELODY][REACH + interval] == 1


def test_the_lower_voices_follow_the_soprano_of_the_same_frame() -> None:
    other = TUNE.copy()
    other[12:16] = (71, 67, 62, 55)  # goes on otherwise
    memory = PassageMemory([TUNE, other])
    for piece in (TUNE, other):
        found = memory.look_up(piece)
        for voice in range(1, 4):
            interval = int(piece[12, voice] - piece[11, voice])
            assert found[12, voice, HARMONY][:CLASSES].argmax() == interval + REACH
            assert found[12, voice, HARMONY][interval + REACH] > 0.85
    both = memory.look_up(TUNE)[12, 0, MELODY]
    assert both[REACH] == both[REACH + 1] == 0.5  # as often up as not at all


def test_nothing_is_found_in_pieces_that_are_left_out_or_elsewhere_in_the_beat() -> None:
    memory = PassageMemory([TUNE])
    assert not memory.look_up(TUNE, leave_out=[0]).any()
    shifted = np.concatenate([TUNE[:1], TUNE])  # a sixteenth later
    assert not memory.look_up(shifted)[8:, :, MELODY].any()
    assert not PassageMemory([]).look_up(TUNE).any()


@pytest.mark.parametrize("start", [0, 3, 17])
def test_a_piece_contains_its_parts_in_any_key(start: int) -> None:
    pieces = [noise(40, 0), noise(52, 1), TUNE]
    memory = PassageMemory(pieces)
    assert memory.containing(np.where(pieces[1] == REST, REST, pieces[1] + 2)[start : start + 20]) == [1]
    changed = pieces[1][start : start + 20].copy()
    changed[10, 2] += 1
    assert memory.containing(changed) == []
    assert memory.containing(TUNE[:1]) == [0, 1, 2]


def test_distributions_add_up_and_do_not_depend_on_the_key_or_on_what_follows() -> None:
    memory = PassageMemory([noise(200, seed) for seed in range(4)])
    piece = noise(60, 9)
    found = memory.look_up(piece)
    total = found[..., :CLASSES].sum(-1)
    assert (np.isclose(total, 1, atol=1e-5) | (total == 0)).all() and (total > 0).mean() > 0.5
    higher = memory.look_up(np.where(piece == REST, REST, piece + 3))
    settled = np.argmax((piece != REST).all(1)) + 1  # before a voice has sounded, intervals are taken from a stand-in
    np.testing.assert_allclose(found[settled:], higher[settled:], atol=1e-5)
    np.testing.assert_allclose(memory.look_up(piece[:33])[:33], found[:33], atol=1e-6)


def test_rows_are_searched_as_if_each_were_alone_and_can_be_selected() -> None:
    memory = PassageMemory([noise(90, seed) for seed in range(3)])
    pieces = np.stack([noise(24, seed) for seed in (5, 6)])
    search = PassageSearch(memory, 2)
    alone = [memory.look_up(piece) for piece in pieces]
    rows = np.array([0, 1])
    for frame in range(24):
        for voice in range(4):
            if (frame, voice) == (10, 2):
                rows = np.array([1, 0, 1])
                search.select(rows)
            found = search.propose()
            for place, row in enumerate(rows):
                np.testing.assert_allclose(found[place], alone[row][frame, voice], atol=1e-6)
            search.push(pieces[rows, frame, voice])


def test_movements_of_rests() -> None:
    column = np.array([[60], [60], [REST], [REST], [62], [55]]).repeat(4, axis=1)
    assert movements(column)[:, 0].tolist() == [103, 0, 101, 100, 102, -7]
