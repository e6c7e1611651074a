"""What a report says of its run."""

import sys
from pathlib import Path

import pytest

from etude.report.reports import Report
from etude.report.run_page import add_learning_curve, begin_report, command_line, end_report, read_curves, standing_still
from tests.report.test_reports import Page

METRICS = """epoch,step,train/loss,train/nll,val/nll
,4,,,
,4,4.0,4.0,
,4,,,3.5
,8,3.0,3.0,
,8,,,2.25
,12,2.5,2.5,
,12,,,2.75
"""


def test_a_report_names_its_run_command_curve_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", "data=folder", "data.root=my songs"])
    folder = tmp_path / "12-00-00_folder"
    folder.mkdir()
    (folder / "metrics.csv").write_text(METRICS)
    (folder / "config.yaml").write_text("seed: 7\nname: <folder>\n")
    path = end_report(begin_report("4 samples", folder, facts=[("asked for", "nothing"), ("left out", None)]), folder)
    page = Page(path.read_text())
    texts = [text for text in page.texts if text.strip()]
    start = texts.index("run")
    assert texts[start : start + 6] == [
        "run", "12-00-00_folder", "command", "python train.py data=folder 'data.root=my songs'", "asked for", "nothing",
    ]  # fmt: skip
    assert "left out" not in texts and "seed: 7\nname: <folder>\n" in texts
    tags = [tag for tag, _ in page.tags]
    assert tags.index("details") > tags.index("img")  # folded away, at the end
    (alt,) = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert alt.startswith("Learning curve over 12 steps") and "val/nll is lowest, 2.25, at step 8" in alt


def test_a_curve_is_drawn_where_losses_were_logged_and_only_there(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(METRICS)
    assert read_curves(metrics) == {
        "train/nll": [(4.0, 4.0), (8.0, 3.0), (12.0, 2.5)],  # train/loss is the same and left out
        "val/nll": [(4.0, 3.5), (8.0, 2.25), (12.0, 2.75)],
    }
    metrics.write_text("metric,unit,samples mean\npolyphony,pitches,2.0\n")  # of an evaluation
    report = Report("x")
    add_learning_curve(report, metrics)
    add_learning_curve(report, tmp_path / "absent.csv")
    assert report.html() == Report("x").html()


@pytest.mark.parametrize(
    ("values", "mode", "told"),
    [
        ([3.0, 2.0, 2.5, 2.4], "min", "val/frechet was best at step 200 (2) and has not improved in the 200 steps since"),
        ([3.0, 2.6, 2.5, 2.4], "min", ""),
        ([3.0, 2.0, 1.9, 2.4, 2.5], "min", ""),  # the second half of the run
        ([0.3, 0.2, 0.1, 0.0], "max", "val/frechet was best at step 100 (0.3)"),
        ([2.0, 3.0, 4.0], "min", ""),  # too few to tell
    ],
)
def test_validation_that_stands_still_is_told(tmp_path: Path, values: list[float], mode: str, told: str) -> None:
    rows = "".join(f"{100 * (n + 1)},,{value}\n{100 * (n + 1)},1.0,\n" for n, value in enumerate(values))
    (tmp_path / "metrics.csv").write_text(f"step,train/loss,val/frechet\n{rows}")
    line = standing_still(tmp_path / "metrics.csv", monitor="val/frechet", mode=mode)
    assert (line == "") if not told else line.startswith(told)
    assert standing_still(tmp_path / "metrics.csv", monitor="val/nll", mode=mode) == ""


def test_the_command_is_the_one_that_was_typed() -> None:
    assert command_line(["/usr/bin/etude", "generate", "key=G major"]) == "etude generate 'key=G major'"
    assert command_line(["generate.py"]) == "python generate.py"
