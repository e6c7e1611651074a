"""Small folders of music for listening tests: short piano tunes, quick to render."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.report.media import Sample, write_table
from etude.studio.options import Options
from etude.studio.server import ListeningServer
from etude.studio.sessions import ListeningTest

SECONDS = 1.5


def tune(seed: int, *, bars: int = 3, first_bar: int = 0, velocity: int = 80) -> Score:
    """A tune for piano at 120 beats a minute, in 4/4, so that a bar lasts two seconds."""
    draw = np.random.default_rng(seed)
    score = Score(480)
    score.tempos.append(Tempo(0, 120.0))
    score.time_signatures.append(TimeSignature(0, 4, 4))
    track = Track(program=0)
    for beat in range(4 * bars):
        track.notes.append(Note((4 * first_bar + beat) * 480, 400, int(draw.integers(55, 80)), velocity))
    score.tracks.append(track)
    return score


def write_real(folder: Path, *, count: int = 8) -> Path:
    """`count` tunes, by turns in the subfolders folk and jazz."""
    for number in range(count):
        path = folder / ("folk", "jazz")[number % 2] / f"real{number:02d}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        tune(number).dump_midi(path)
    return folder


def write_run(folder: Path, *, count: int = 6, seed: int = 100, genres: bool = True) -> Path:
    """A folder as `etude generate` leaves it, with `count` samples, by turns of the genres folk and jazz."""
    place = folder / "samples"
    place.mkdir(parents=True)
    table = []
    for number in range(count):
        path = place / f"{number:03d}.mid"
        tune(seed + number).dump_midi(path)
        table.append(Sample(path.stem, score=path, values={"asked genre": ("folk", "jazz")[number % 2]} if genres else {}))
    write_table(place, table)
    return folder


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., Options]:
    """Makes options of a test of six tunes against eight real ones."""
    real, run = write_real(tmp_path / "real"), write_run(tmp_path / "run")

    def make(**given: Any) -> Options:
        base = {"real": str(real), "runs": (str(run),), "questions": 4, "seconds": SECONDS, "results": str(tmp_path / "r.sqlite")}
        return Options(**{**base, **given})

    return make


@contextmanager
def served(options: Options, folder: Path) -> Iterator[ListeningServer]:
    """A running server on a free port."""
    folder.mkdir(parents=True, exist_ok=True)
    server = ListeningServer(options.port)
    server.test = ListeningTest(options, folder)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.finish()
