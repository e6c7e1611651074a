"""The notes of recordings, beside their mels: read once and cached, and written into batches as piano rolls and stop labels.

Shapes: n notes, p instruments, f frames.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.audio.mel import MelContract
from etude.data.audio.build import clip_key
from etude.data.audio.recordings import Recording
from etude.data.audio.splits import Piece
from etude.data.cache.fill import progress
from etude.data.cache.intact import sealed, unsealed
from etude.data.cache.store import write_aside
from etude.data.cache.version import FORMAT
from etude.music.roll import END, fill_roll, note_table, played_by
from etude.music.score import ScoreError

NOTES = 1  # version of the cached tables; count up when their content changes
Failures = list[tuple[str, str, str]]


def with_notes(
    recordings: Sequence[Recording],
    facts: Sequence[dict[str, Any]],
    contract: MelContract,
    *,
    max_difference: float,
    cache: Path,
) -> tuple[list[Recording], list[dict[str, Any]], dict[str, np.ndarray], Failures]:
    """Returns the recordings that have usable notes, their facts, their note tables by name, and (file, piece, reason) of others.

    facts: see `encode_all`; recordings that could not be encoded are kept, since their reason is told elsewhere.
    max_difference: seconds by which score and sound may differ in length.
    cache: the folder of the cached tables.
    """
    kept: list[Recording] = []
    of_kept: list[dict[str, Any]] = []
    failures: Failures = []
    tables = _tables(recordings, cache)
    found: dict[str, np.ndarray] = {}
    for recording, fact, table in zip(recordings, facts, tables, strict=True):
        if isinstance(table, str):
            failures.append((recording.name, "", table))
            continue
        if "reason" not in fact:
            sound, score = fact["samples"] / contract.sample_rate, float(table[:, END].max())
            if abs(sound - score) > max_difference:
                reason = f"lasts {sound:.1f} s and its score {score:.1f} s, more than {max_difference:g} s apart; align the two"
                failures.append((recording.name, "", f"{reason}, or raise data.corpus.max_difference"))
                continue
            found[recording.name] = table
        kept.append(recording)
        of_kept.append(fact)
    return kept, of_kept, found, failures


def _tables(recordings: Sequence[Recording], cache: Path) -> list[np.ndarray | str]:
    """Returns the note table of each recording, or the reason why it has none."""
    identity = json.dumps([[clip_key(recording), recording.score_identity] for recording in recordings])
    path = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-notes-{NOTES}-{FORMAT}.npz"
    if not path.exists():
        read: list[np.ndarray | str] = []
        with progress("reading notes", len(recordings), "recordings") as advance:
            for recording in recordings:
                try:
                    read.append(note_table(recording.score()))
                except ScoreError as error:  # without the path: the table is cached by content
                    read.append(f"its score: {error.problem}; {error.remedy}")
                advance()
        tables = [table if isinstance(table, np.ndarray) else np.zeros((0, 5)) for table in read]
        reasons = json.dumps([table if isinstance(table, str) else "" for table in read])
        sink = io.BytesIO()
        np.savez(sink, notes=np.concatenate(tables), counts=np.array([len(table) for table in tables]), reasons=np.array(reasons))
        write_aside(path, sealed(sink.getvalue()))
    with np.load(io.BytesIO(unsealed(path))) as saved:
        parts = np.split(saved["notes"], np.cumsum(saved["counts"])[:-1])
        return [reason or part for reason, part in zip(json.loads(str(saved["reasons"])), parts, strict=True)]


@dataclass(frozen=True)
class PieceNotes:
    """The notes of the pieces of one style, in the order of its `Clips`.

    tables: note table [n, 5] of each piece, in seconds from the beginning of its recording.
    first: the frame of the recording at which each piece begins; frames: its length.
    ends: whether the music ends with the piece, which is not so where the rest of a recording is held out.
    instruments: the instruments of the rolls, in this order.
    """

    tables: Sequence[np.ndarray]
    first: Sequence[int]
    frames: Sequence[int]
    ends: Sequence[bool]
    instruments: tuple[int, ...]
    frame_seconds: float

    def room(self, segment: int) -> list[int]:
        """Returns for each piece how many frames beyond its end a segment may reach: half of a segment, or none."""
        return [segment // 2 if ends else 0 for ends in self.ends]

    def write(self, roll_kptf: np.ndarray, stop_f: np.ndarray, piece: int, start: int) -> None:
        """Overwrites a roll [2, p, 128, f] and stop labels [f] with those of the frames from `start` on.

        The label is 1 in all frames after the last of the piece, where the music ends.
        """
        roll_kptf[:], stop_f[:] = 0, 0
        begin = self.first[piece] + start
        fill_roll(roll_kptf, self.tables[piece], self.instruments, start=begin, frame_seconds=self.frame_seconds)
        stop_f[max(0, self.frames[piece] - start) :] = 1


def piece_notes(
    pieces: Sequence[Piece],
    tables: Mapping[str, np.ndarray],
    *,
    last_frames: Mapping[str, int],
    instruments: tuple[int, ...],
    frame_seconds: float,
) -> PieceNotes:
    """Returns the notes of the pieces of one style and split.

    tables: by the name of the recording. last_frames: length in frames of each clip, by its key.
    """
    return PieceNotes(
        tables=[played_by(tables[piece.name], instruments)[0] for piece in pieces],
        first=[piece.start for piece in pieces],
        frames=[piece.frames for piece in pieces],
        ends=[piece.stop == last_frames[piece.key] for piece in pieces],
        instruments=instruments,
        frame_seconds=frame_seconds,
    )
