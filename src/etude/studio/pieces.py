"""Pieces of music for a listening test, from files: scores or recordings, with what cannot be used told."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from symusic import Score

from etude.audio.files import AUDIO_SUFFIXES, inspect_audio
from etude.data.scores.reading import read_guarded
from etude.music.score import SUFFIXES, bar_ticks, duration_seconds, printable, seconds_at
from etude.run.inputs import file_hash
from etude.studio.recordings import FileRecording
from etude.wording import counted

Music = TypeVar("Music")
MOST = 400  # pieces taken from one source; more would only take longer to read


@dataclass(frozen=True)
class Piece:
    """A piece that may be heard.

    Attributes:
        file: its path, or its name in the data of a run.
        name: of the piece in the file.
        sha256: of the file, in hex.
        genre: None if it is not known.
        music: gives the score (symusic), or the `Recording`.
        rate: samples per second of a recording; None for a score.
        seconds: its length; of a score from the bar of the first note to the end of the last.
    """

    file: str
    name: str
    sha256: str
    genre: str | None
    music: Callable[[], Any]
    rate: int | None
    seconds: float

    @property
    def is_score(self) -> bool:
        """Whether it is a score, rather than a recording."""
        return self.rate is None

    @property
    def key(self) -> tuple[str, str]:
        """By what it is known in the results: the hash of its file, and its name."""
        return self.sha256, self.name


def first_onset_bar(score: Score) -> int:
    """Returns the bar in which the first note begins."""
    onset = min(int(track.notes.numpy()["time"].min()) for track in score.tracks if len(track.notes))
    return int(np.searchsorted(bar_ticks(score), onset, side="right")) - 1


def sounding_seconds(score: Score) -> float:
    """Returns the length of a score from the bar of its first note to the end of the last one, in seconds."""
    start = bar_ticks(score)[[first_onset_bar(score)]]
    return duration_seconds(score) - float(seconds_at(score, start)[0])


def music_files(folder: Path, suffixes: Iterable[str], *, deep: bool) -> list[Path]:
    """Returns the files with these suffixes in a folder, in order; hidden ones are left out. deep: also in its subfolders."""
    wanted = frozenset(suffixes)
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in wanted and path.is_file() and not path.name.startswith("."))


def read_pieces(paths: Sequence[Path], *, genre: Callable[[Path], str | None], scores: bool, told: str) -> list[Piece]:
    """Returns the pieces of these files. What can't be read is left out, which is printed to stderr with the reasons.

    scores: whether the files are scores; otherwise they are audio. told: how messages name the source.
    """
    pieces, problems = _scores(paths, genre) if scores else _recordings(paths, genre)
    for line in problems[:5]:
        print(f"left out: {line}", file=sys.stderr)
    if problems[5:]:
        print(f"left out of {told}: {counted(len(problems) - 5, 'more file')} that can't be read", file=sys.stderr)
    return sorted(pieces, key=lambda piece: (piece.file, piece.name))


def _scores(paths: Sequence[Path], genre: Callable[[Path], str | None]) -> tuple[list[Piece], list[str]]:
    pieces, problems = [], []
    for path, found, problem in read_guarded(paths, num_workers=2):
        if problem:
            problems.append(problem)
        digest = file_hash(path) if found else ""
        for name, score in found:
            seconds = sounding_seconds(score)
            pieces.append(Piece(str(path.absolute()), name, digest, genre(path), constant(score), rate=None, seconds=seconds))
    return pieces, sorted(problems)


def constant(music: Music) -> Callable[[], Music]:
    """Returns a function that gives `music`, for a piece that is in memory or easily opened."""
    return lambda: music


def _recordings(paths: Sequence[Path], genre: Callable[[Path], str | None]) -> tuple[list[Piece], list[str]]:
    pieces, problems = [], []
    for path in paths:
        try:
            info = inspect_audio(path)
        except ValueError as error:
            problems.append(printable(str(error)))
            continue
        seconds = info.num_samples / info.sample_rate
        music = constant(FileRecording(path, info.sample_rate))
        pieces.append(
            Piece(str(path.absolute()), path.stem, file_hash(path), genre(path), music, rate=info.sample_rate, seconds=seconds)
        )
    return pieces, problems


def read_folder(folder: Path, *, scores: bool, seed: int) -> list[Piece]:
    """Returns the pieces of a folder of real music; the first subfolder is the genre. Of many files some are drawn by `seed`.

    Raises: ValueError if there is no file of this kind, or none can be read.
    """
    paths = music_files(folder, SUFFIXES if scores else AUDIO_SUFFIXES, deep=True)
    kind = "score" if scores else "audio file"
    if not paths:
        raise ValueError(f"real={folder}: it holds no {kind}; give a folder with {', '.join(sorted(_suffixes(scores)))} files")
    if len(paths) > MOST:
        print(f"real={folder} holds {len(paths):,} {kind}s; {MOST} of them, drawn by seed={seed}, are used", file=sys.stderr)
        paths = [paths[place] for place in np.random.default_rng(seed).permutation(len(paths))[:MOST].tolist()]
    pieces = read_pieces(paths, genre=lambda path: _subfolder(path, folder), scores=scores, told=f"real={folder}")
    if not pieces:
        raise ValueError(f"real={folder}: none of its {counted(len(paths), kind)} can be read, see above; give another folder")
    return pieces


def _subfolder(path: Path, folder: Path) -> str | None:
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else None


def _suffixes(scores: bool) -> frozenset[str]:
    return SUFFIXES if scores else AUDIO_SUFFIXES


def kinds(folder: Path, *, deep: bool) -> set[bool]:
    """Returns whether a folder holds scores (True), audio (False), both, or nothing."""
    return {scores for scores in (True, False) if music_files(folder, _suffixes(scores), deep=deep)}


def digest(pieces: Iterable[Piece]) -> str:
    """Returns a hash of which pieces there are."""
    keys = sorted(piece.key for piece in pieces)
    return hashlib.sha256(repr(keys).encode()).hexdigest()
