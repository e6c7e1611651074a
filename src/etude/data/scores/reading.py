"""Read a user's scores in separate processes, so that a damaged file can't crash this process or exhaust its memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from symusic import Score

from etude.data.cache.pool import Failure, Limits, run
from etude.music.bounds import reading_limits
from etude.music.score import ScoreError, printable, read_all


def read_guarded(paths: Sequence[Path], *, num_workers: int = 1) -> Iterator[tuple[Path, list[tuple[str, Score]], str]]:
    """Yields (path, pieces as (name, score), problems in one line or '') for each file, in order of completion.

    A file that crashes its reader, or exceeds the time or memory of `etude.music.bounds.reading_limits`, is reported like a
    damaged one.
    """
    done = run(read_all, paths, num_workers=num_workers, log=None, limits=lambda path: Limits(*reading_limits(path)))
    for index, result in done:
        path = paths[index]
        if isinstance(result, Failure):
            error = ScoreError(path, f"can't be read ({result.reason})", "correct it, or export it again as MIDI")
            yield path, [], str(error)
        else:
            yield path, *result


def read_prompt(path: Path) -> Score:
    """Reads the first piece of a score file in a separate process.

    Raises: ValueError, in one line that names the file, if no piece can be read.
    """
    [(_, pieces, problem)] = read_guarded([path])
    if not pieces:
        raise ValueError(problem or f"{printable(path)}: it holds no piece; give another file")
    return pieces[0][1]
