"""The segments of held-out audio: all of a split, or those of chosen pieces, in rows that hold one segment of each style."""

from collections.abc import Mapping, Sequence

import numpy as np

from etude.data.audio.batches import Clips, EvalRow
from etude.data.audio.notes import PieceNotes


def evaluation_rows(
    clips: Sequence[Clips],
    *,
    segment: int,
    paired: bool,
    notes: Sequence[PieceNotes] | None = None,
    chosen: np.ndarray | None = None,
) -> list[EvalRow]:
    """Returns the rows of one pass over held-out audio, in whole segments; with `notes` the last one reaches beyond the end.

    If paired, row i is the same position of the same song in every style, up to the end of the shortest version. Otherwise
    the segments of each style are used in order, and styles with fewer segments are repeated.

    chosen: the pieces to use, bool, style after style; None for all. Styles without a chosen piece are missing in all rows; if
        paired, the rows hold the songs that are chosen in every other style.
    """
    ends = np.cumsum([len(clip) for clip in clips])[:-1]
    flags = [np.ones(len(clip), bool) for clip in clips] if chosen is None else np.split(chosen, ends)
    present = [style for style, flag in enumerate(flags) if flag.any()]

    def starts(piece: int, frames: int, style: int) -> range:
        ends = notes is not None and notes[style].ends[piece]
        return range(0, frames if ends else frames - segment + 1, segment)

    def row(places: Mapping[int, tuple[int, int]]) -> EvalRow:
        return tuple(places.get(style) for style in range(len(clips)))

    if not present:
        return []
    if paired:
        common = np.flatnonzero(np.logical_and.reduce([flags[style] for style in present])).tolist()
        frames = {piece: min(clips[style].pieces[piece].frames for style in present) for piece in common}
        at = [(piece, start) for piece in common for start in starts(piece, frames[piece], present[0])]
        return [row(dict.fromkeys(present, place)) for place in at]
    lists = {
        style: [
            (piece, start)
            for piece in np.flatnonzero(flags[style]).tolist()
            for start in starts(piece, clips[style].pieces[piece].frames, style)
        ]
        for style in present
    }
    if not all(lists.values()):
        return []
    length = max(map(len, lists.values()))
    return [row({style: places[number % len(places)] for style, places in lists.items()}) for number in range(length)]


def evaluation_batches(rows: Sequence[EvalRow], *, batch_size: int, rank: int, world: int) -> list[list[EvalRow]]:
    """Returns the rows of one rank in batches; rows are repeated so that every rank has the same number of batches."""
    mine = [rows[number % len(rows)] for number in range(rank, -(-len(rows) // world) * world, world)]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
