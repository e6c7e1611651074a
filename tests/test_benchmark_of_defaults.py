"""benchmarks/defaults.py: the music that nothing was chosen on, and the former default that the new one is compared with."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from symusic import Note, Score, Track

from etude.data.scores.corpora import Everything
from etude.music.score import read_pieces
from tests.test_levels import trained_with

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # type: ignore[no-untyped-call]
    return importlib.import_module("defaults")


def test_unseen_music_is_of_no_corpus_and_can_be_made_again(benchmark: ModuleType, tmp_path: Path) -> None:
    folder = benchmark.make_unseen(tmp_path / "unseen")
    made = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(made) == 164 and {path.parts[0] for path in made} == {"classical", "german", "british"}
    sources = Everything().files()
    assert not {source.path.read_bytes() for source in sources} & set(made.values())
    tune, book = "miscFolk_northumbrianminstrelsyopus_001.abc", "miscFolk/northumbrianminstrelsyopus.abc"
    assert made[Path("british", tune)] in (sources[0].path.parents[1] / book).read_bytes()
    ((_, score),) = read_pieces(folder / "british" / tune)
    assert sum(len(track.notes) for track in score.tracks) > 20
    again = benchmark.make_unseen(tmp_path / "again")
    assert {path: (again / path).read_bytes() for path in made} == made


def test_the_former_default_is_written_out(benchmark: ModuleType) -> None:
    assert benchmark.CASES["new"] == (trained_with("data=folder")["max_steps"], [])
    former = trained_with("data=folder", *benchmark.FORMER)
    bare = trained_with("data=folder", "experiment=baseline")
    assert {name: former[name] for name in ("optimizer", "scheduler", "model", "data")} == {
        name: bare[name] for name in ("optimizer", "scheduler", "model", "data")
    }
    assert former["technique"]["ema"]["decay"] == 0.999


def test_the_scale_is_read_off_the_notes(benchmark: ModuleType) -> None:
    score = Score(480)
    score.tracks.append(Track(program=0))
    pitches = [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60, 61]  # C major and one C sharp
    score.tracks[0].notes.extend([Note(480 * i, 480, pitch, 80) for i, pitch in enumerate(pitches)])
    assert benchmark.in_scale([score, Score(480)]) == pytest.approx(11 / 12)


def test_the_table_shows_means_over_seeds_and_sums_of_samples(benchmark: ModuleType) -> None:
    report = importlib.import_module("report_defaults")
    row = {"steps": 800, "best_step": 700, "final": 1.3, "test": 1.4, "in_scale": 0.9, "in_scale_real": 0.95, "cpu_s": 300.0}
    row["asked"] = 24
    rows = [
        {"name": "former", "best": 1.5, "in_key": 0, **row},
        {"name": "new", "best": 1.1, "in_key": 10, **row},
        {"name": "new", "best": 1.3, "in_key": 14, **row, "best_step": 800},
    ]
    lines = report.section(rows).splitlines()
    new = ["new", "2", "800", "1.200 ± 0.141", "700 to 800", "1.300 ± 0.000", "1.400 ± 0.000", "0.90 ± 0.00", "24 of 48", "5.0"]
    assert lines[2] == f"| {' | '.join(new)} |"
    assert lines[3] == "| former | 1 | 800 | 1.500 | 700 | 1.300 | 1.400 | 0.90 | 0 of 24 | 5.0 |"
