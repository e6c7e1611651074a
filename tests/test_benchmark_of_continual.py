"""benchmarks/continual.py: rows that are there are found again, a task without its data is refused, what the page computes."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # type: ignore[no-untyped-call]
    return importlib.import_module(name)


def test_the_rows_of_the_page_would_not_be_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    continual = imported("continual", monkeypatch)
    found = [json.loads(line) for line in (ROOT / "docs" / "results" / "rows" / "continual.jsonl").read_text().splitlines()]
    assert {"fine-tuning", "joint", "replay", "ewc"} <= {row["name"] for row in found}
    for row in (row for row in found if row["split"] == "test"):
        bed = continual.BEDS[row.get("task", "language_model")]()
        assert " ".join(continual.options_of(bed, bed.cases[row["name"]], steps=None, split="test")) == row["options"]


@pytest.mark.parametrize("task", ["language_model", "classifier"])
def test_scores_that_are_not_given_are_told(
    task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    continual = imported("continual", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["continual.py", "--task", task])
    with pytest.raises(SystemExit):
        continual.main()
    assert f"--task {task} needs --scores, a folder with a subfolder for each genre" in capsys.readouterr().err


def test_the_table_of_a_task_is_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    report = imported("report_continual", monkeypatch)
    about = {
        "task": "classifier", "split": "test", "genres": ["folk", "jazz"], "steps": 8, "pieces": 9, "parameters": 1234,
        "cpu_s": 5.0, "command": "c", "commit": "d", "date": "e", "hardware": "f", "load": 1.0, "genre_nll": [[1.0, 3.0]],
    }  # fmt: skip

    def row(name: str, seed: int, *last: float) -> dict[str, Any]:
        phased = {} if name == "joint" else {"backward_transfer": -1.0, "forward_transfer": 0.0}
        after, matrix = ["start", "folk", "jazz"], [[0.5, 0.5], [1.0, 0.0], list(last)]
        if name == "joint":
            after, matrix = ["start", "end"], [[0.5, 0.5], list(last)]
        return {**about, **phased, "name": name, "seed": seed, "after": after, "genre_accuracy": matrix, "final": sum(last) / 2}

    text = report.section("classifier", [row("fine-tuning", 0, 0.0, 1.0), row("joint", 0, 1.0, 0.8), row("replay", 0, 0.6, 1.0)])
    (line,) = [line for line in text.splitlines() if line.startswith("| replay | 40")]
    assert "0.800" in line and "25 %" in line and "2.000" in line  # (.9 - .8) / (.9 - .5); the mean of 1 and 3 nats
    (after_folk,) = [line for line in text.splitlines() if line.startswith("| replay | folk")]
    assert after_folk.split("|")[3:5] == [" 1.000 ", " 0.000 "]
    assert "folk, then jazz; 8 steps in all, 9 pieces" in text


def test_a_share_of_the_gap_is_that_of_the_means_and_left_out_where_seeds_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    share = imported("report_continual", monkeypatch).share_of_gap

    def cases(**finals: list[float]) -> dict[str, list[dict[str, float]]]:
        named = {name.replace("_", "-"): values for name, values in finals.items()}
        return {name: [{"seed": seed, "final": one} for seed, one in enumerate(values)] for name, values in named.items()}

    lower = cases(fine_tuning=[10.0, 14.0], joint=[6.0, 6.0], replay=[7.0, 8.0])
    assert share("replay", lower) == "25 %"  # 3 of 12
    assert (
        share("replay", cases(fine_tuning=[7.0, 17.0], joint=[6.0, 6.0], replay=[7.0, 7.0])) == "17 %"
    )  # 2 of 12, not (1 + 1/11) / 2
    assert share("replay", cases(fine_tuning=[0.2, 0.2], joint=[0.6, 0.5], replay=[0.5, 0.5])) == "14 %"  # higher is better
    assert share("replay", cases(fine_tuning=[7.0, 5.0], joint=[6.0, 6.0], replay=[7.0, 7.0])) == ""
    assert share("joint", lower) == "" and share("replay", cases(fine_tuning=[1.0], replay=[1.0])) == ""
