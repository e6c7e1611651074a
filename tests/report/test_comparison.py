"""Runs side by side: what differs is shown, what is equal is not, the best is marked, and what is missing is said."""

import csv
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from etude.report.comparison.charts import COLOURS, DASHES, MOST_POINTS, colour, dash, line_chart, thin, ticks
from etude.report.comparison.page import excerpt, write_page
from etude.report.comparison.runs import Run, find_runs, labels, read_run
from etude.report.comparison.tables import as_csv, as_text, best_places, differences, higher_is_better, short_names, values
from etude.report.media import Sample, write_table
from etude.report.style_plots import mel_panels

ROOT = Path(__file__).parents[2]
CURVE = [2.0, 1.0, 1.5]


def make_run(folder: Path, *, nll: Sequence[float] = CURVE, samples: int = 1, **options: Any) -> Path:
    """A folder as training leaves it, with val/nll at steps 9, 19, ... and train/loss at each of ten steps before."""
    folder.mkdir(parents=True)
    lines = [f"seed: {options.pop('seed', 0)}", "monitor: val/nll", "monitor_mode: min", f"where: {folder}/wandb"]
    lines += ["task:", "  _target_: etude.tasks.language_model.LanguageModel"]
    lines += ["model:", f"  dim: {options.pop('dim', 32)}", *(f"{key}: {value}" for key, value in options.items())]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    (folder / "environment.txt").write_text("commit: abc\npython: CPython 3.11.7\n\npackages:\nnumpy==2.0\ntorch==2.11\n")
    rows = [f"{step},{2 - step / 100},," for step in range(10 * len(nll))]
    rows += [f"{10 * place + 9},,{value}," for place, value in enumerate(nll)]
    (folder / "metrics.csv").write_text("step,train/loss,val/nll,lr\n" + "\n".join(rows) + "\n")
    out = folder / "samples"
    out.mkdir()
    table = []
    for number in range(samples):
        picture, sound = out / f"{number:03d}.png", out / f"{number:03d}.wav"
        picture.write_bytes(mel_panels({"a": np.zeros((4, 5))}, frame_seconds=0.1))
        soundfile.write(sound, np.zeros((44_100, 2), np.float32), 22_050)
        table.append(Sample(picture.stem, picture, sound, values={"notes": 3, "asked key": "G major", "got key": "D major"}))
    if samples:
        write_table(out, table)
    return folder


def read(*folders: Path) -> list[Run]:
    return [read_run(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]


def test_only_options_that_differ_are_shown(tmp_path: Path) -> None:
    runs = read(make_run(tmp_path / "a", dim=32, extra=1), make_run(tmp_path / "b", dim=64))
    assert differences([run.options for run in runs]) == [("model.dim", [32, 64]), ("extra", [1, "–"])]
    assert runs[0].options["where"] == "<run>/wandb"  # a run's own folder is no difference
    assert differences([runs[0].options] * 3) == []


def test_the_best_value_is_marked_in_the_direction_of_the_metric(tmp_path: Path) -> None:
    runs = read(make_run(tmp_path / "a", nll=[2, 1, 3]), make_run(tmp_path / "b", nll=[2, 1.5, 1.4]), make_run(tmp_path / "c"))
    found = [value for value in values(runs, "val/nll") if value]
    assert [(value.best, value.best_step, value.final) for value in found] == [(1, 19, 3), (1.4, 29, 1.4), (1, 19, 1.5)]
    assert best_places([value.best for value in found], higher=False) == {0, 2}
    assert best_places([value.final for value in found], higher=False) == {1}
    assert best_places([1.0, None, 2.0], higher=True) == {2}
    assert best_places([1.0, None], higher=True) == best_places([1.0, 1.0], higher=True) == set()
    assert best_places([1.0, 2.0], higher=None) == set()


def test_directions_come_from_the_run_and_otherwise_from_the_name() -> None:
    one = Run(Path("a"), "a", {"monitor": "live/nll", "monitor_mode": "max"})
    assert higher_is_better("live/nll", [one]) is True
    directions: dict[str, bool | None] = {
        "val/nll": False,
        "val/mel_l1": False,
        "live/quality": True,
        "live/grammar_error": False,
        "live/turing": None,
        "train/nll": None,
    }
    assert {name: higher_is_better(name, [one]) for name in directions} == directions


def test_a_damaged_run_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", samples=0)
    (run / "metrics.csv").write_text("step,val/nll,train/loss\n9,2.0,\n19,nan,\n,7,\n29,inf,\n39,1.5,\n49,1.")
    (run / "config.yaml").write_text("model: [1,\n")
    (run / "environment.txt").unlink()
    (found,) = read(run)
    assert found.curves == {"val/nll": [(9, 2.0), (39, 1.5), (49, 1.0)]}
    assert found.notes == ["config.yaml can't be read (ScannerError)", "no samples", "no environment.txt"] or (
        len(found.notes) == 3 and found.notes[0].startswith("config.yaml can't be read")
    )
    (run / "metrics.csv").unlink()
    assert "no metrics.csv" in read(run)[0].notes and read(run)[0].steps == 0


def test_samples_of_a_run_without_a_table_are_found_by_their_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", samples=2)
    (run / "samples" / "samples.csv").unlink()
    (run / "samples" / "001.wav").unlink()
    first, second = read(run)[0].samples
    assert (first.name, first.picture, first.sound) == ("000", run / "samples" / "000.png", run / "samples" / "000.wav")
    assert second.sound is None and second.picture


def test_runs_are_found_by_folder_pattern_sweep_and_last(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    a, b = make_run(outputs / "day" / "a"), make_run(outputs / "day" / "b")
    trials = [make_run(outputs / "day" / "sweep" / str(number)) for number in (0, 1, 2, 10)]
    os.utime(b / "config.yaml", (4e9, 4e9))
    assert find_runs([str(a), "last"], outputs) == [a, b]
    assert find_runs([str(outputs / "day" / "[ab]"), str(a)], outputs) == [a, b]  # each once
    assert find_runs([str(outputs / "day" / "sweep")], outputs) == trials  # in the order of their numbers
    assert labels(trials)[-1] == "sweep/10" and labels([a, b]) == ["a", "b"]
    assert labels([a, make_run(tmp_path / "other" / "a")]) == ["day/a", "other/a"]


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    for names, message in (
        ([str(run)], r"runs=\[.*\] means only .*; give at least two runs"),
        ([], "runs=.* is empty; give at least two runs"),
        ([str(run), str(tmp_path / "empty")], "not a run's folder, and none is in it"),
        ([str(run), str(run / "config.yaml")], "not a run's folder"),
        ([str(run), str(tmp_path / "gone")], "there is no such folder"),
        ([str(tmp_path / "x*")], "no run's folder fits this pattern"),
        (["last"], "there is no run under"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            find_runs(names, tmp_path / "outputs")
        assert "\n" not in str(error.value)


def test_runs_are_named_by_what_differs_where_that_is_short(tmp_path: Path) -> None:
    a, b, c = make_run(tmp_path / "a"), make_run(tmp_path / "b", dim=64, seed=1), make_run(tmp_path / "c")
    assert short_names(read(a, b)) == ["seed=0, dim=32", "seed=1, dim=64"]
    assert short_names(read(a, b, c)) == ["a", "b", "c"]  # a and c are equal


def test_the_page_needs_nothing_else_and_shows_every_part(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", dim=32), make_run(tmp_path / "b", dim=64, nll=[2, 1.5, 1.4])
    c = make_run(tmp_path / "c<d>", dim=128, samples=0)
    (b / "samples" / "000.wav").write_bytes(b"no sound")
    page = write_page(tmp_path / "compare.html", read(a, b, c), num_samples=2, seconds=1).read_text()
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert page.count("data:audio/mpeg;base64") == 1 and page.count("data:image/png;base64") == 2
    assert "000.wav can't be read" in page and "Without samples: run 3." in page
    assert page.count("<polyline") == 6  # val/nll and train/loss of three runs
    assert re.search(r'<td class="number best">1 <span class=step>@ 19', page)
    assert "c<d>" not in page and "asked key G major" in page
    for place in range(3):
        assert f"body:has(#show{place}:not(:checked)) .r{place}" in page and f'class="line r{place}"' in page
    assert "<td><code>model.dim</code></td>" in page and "<code>monitor</code>" not in page


def test_a_curve_under_two_names_is_drawn_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, dim=dim) for name, dim in (("a", 1), ("b", 2))]
    for run in runs:
        (run / "metrics.csv").write_text("step,train/loss,train/nll,val/nll\n1,3.0,3.0,\n2,2.0,2.0,\n3,,,2.5\n")
    assert {"train/loss", "train/nll", "val/nll"} == set(read(*runs)[0].curves)
    page = write_page(tmp_path / "compare.html", read(*runs), num_samples=0, seconds=1).read_text()
    assert page.count("<polyline") == 4


def test_only_the_beginning_of_a_sound_is_kept(tmp_path: Path) -> None:
    sound = tmp_path / "a.wav"
    soundfile.write(sound, np.zeros((22_050 * 4, 2), np.float32), 22_050)
    data = excerpt(sound, seconds=1.5)
    assert data is not None
    info = soundfile.info(io.BytesIO(data))
    assert info.channels == 1 and info.duration == pytest.approx(1.5, abs=0.1)


def test_compare_csv_has_a_row_for_each_run(tmp_path: Path) -> None:
    runs = read(make_run(tmp_path / "a"), make_run(tmp_path / "b", dim=64, nll=[3, 2.5]))
    first, second = csv.DictReader(io.StringIO(as_csv(runs)))
    assert (first["run"], first["val/nll best"], first["val/nll best step"], first["val/nll final"]) == ("a", "1.0", "19", "1.5")
    assert (second["steps"], second["option model.dim"], second["val/nll final"]) == ("20", "64", "2.5")
    assert "option monitor" not in first


def test_the_terminal_marks_the_best(tmp_path: Path) -> None:
    text = as_text(read(make_run(tmp_path / "a"), make_run(tmp_path / "b", dim=64, nll=[0.5])), width=100)
    lines = text.splitlines()
    assert "val/nll best" in lines[0] and "0.5*" in lines[2] and "*" not in lines[1]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_a_higher_value_is_drawn_higher_and_a_later_step_to_the_right(curve: list[float]) -> None:
    svg = line_chart({0: [(float(step), value) for step, value in enumerate(curve)]}, names=["a"], title="t")
    (points,) = re.findall(r'polyline points="([^"]*)"', svg)
    drawn = [tuple(map(float, point.split(","))) for point in points.split()]
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    for (_, y), (_, other), value, later in zip(drawn, drawn[1:], curve, curve[1:], strict=False):
        assert (other - y) * (value - later) >= -0.11 * abs(value - later)  # a tenth of a pixel is rounded


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_within(low: float, width: float) -> None:
    if low + width > low + 1e-9 * abs(low):
        found = ticks(low, low + width)
        assert 1 <= len(found) <= 9
        assert all(low - 1e-6 * width - 1e-11 <= tick <= low + width + 1e-6 * width + 1e-11 for tick in found)


def test_long_curves_are_thinned_without_losing_their_end() -> None:
    points = [(float(step), float(step % 7)) for step in range(10_000)]
    thinned = thin(points)
    assert len(thinned) <= MOST_POINTS and thinned[-1] == points[-1] and thin(points[:50]) == points[:50]
    assert np.mean([value for _, value in thinned]) == pytest.approx(3, abs=0.1)


def test_forty_runs_are_told_apart() -> None:
    count = len(COLOURS) * len(DASHES)
    assert count >= 40 and len({(colour(place), dash(place)) for place in range(count)}) == count


def test_compare_from_the_command_line(tmp_path: Path) -> None:
    for name, dim in (("a", 32), ("b", 64)):
        make_run(tmp_path / name, dim=dim)
    command = [sys.executable, "-m", "etude.run.cli", "compare"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    options = [f"runs=[{tmp_path / 'a'},{tmp_path / 'b'}]", f"outputs={tmp_path}", f"hydra.run.dir={tmp_path / 'c'}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dim=64" in done.stdout and str(tmp_path / "c" / "compare.html") in done.stderr
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"compare.html", "compare.csv"}
    refused = subprocess.run(
        [*command, f"runs=[{tmp_path / 'gone'}]", f"outputs={tmp_path / 'o'}"], capture_output=True, text=True, env=environment
    )
    assert refused.returncode == 2 and refused.stderr.startswith("error: runs=[") and refused.stderr.count("\n") == 1
    assert not any((tmp_path / "o").rglob("*_compare"))
