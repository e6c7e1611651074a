"""The report: the right answers of all, by run, genre and listener, in words and in a page that needs no network."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from etude.studio.options import Options
from etude.studio.report import grouped, show
from etude.studio.results import Heard, Question, Results, SessionRow

ROOT = Path(__file__).parents[2]


def fill(path: Path) -> Results:
    """Ann knows everything about run a, Ben nothing about run b; Ann hears one piece of b a second time."""
    results = Results(path)
    for session, listener, run, right, before in (
        ("1", "Ann", "outputs/x/a", 20, False), ("2", "Ben", "outputs/x/b", 9, False), ("3", "Ann", "outputs/x/b", 20, True),
    ):  # fmt: skip
        side = Heard("f.mid", "f", "0" * 64, 0.0)
        plan = [
            Question(run[-1], run, ("folk", None)[number % 2], *(("real", side, None), ("generated", None, side))[number % 2],
                     heard_before=before) for number in range(20)
        ]  # fmt: skip
        results.begin(SessionRow(session, listener, "single", 20, 10.0, 0, "test"), plan)
        for number, question in enumerate(plan):
            wrong = "generated" if question.right_answer == "real" else "real"
            results.answer(session, number, question.right_answer if number < right else wrong, seconds=3)
    return results


def test_shares_are_grouped_and_what_was_known_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = fill(tmp_path / "r.sqlite")
    tables = grouped([each for each in results.answers() if not each.heard_before])
    counts = {name: {row: (share.right, share.answers) for row, share in rows} for name, rows in tables.items()}
    assert counts == {
        "all": {"all answers": (29, 40)},
        "runs": {"a": (20, 20), "b": (9, 20)},
        "genres": {"folk": (15, 20), "not known": (14, 20)},
        "listeners": {"Ann": (20, 20), "Ben": (9, 20)},
        "music": {"real music": (15, 20), "generated music": (14, 20)},
    }
    page = show(results).read_text()
    said = capsys.readouterr().out
    for text in (
        "a: listeners can tell it from real music. 20 of 20 answers are right (100 %)",
        "b: these answers do not show that listeners can tell it from real music. 9 of 20 answers are right (45 %)",
        "20 further answers are about music that the listener knew from an earlier session",
        "Even of runs that sound like real music, about one in 20 seems to be told from it by luck.",
    ):
        assert text in said and text in page
    assert re.search(r"folk +15 of 20 answers are right \(75 %\), 95 % interval 51 % to 91 %", said)
    assert not re.search(r"https?://|<script|@import|url\(", page) and page.count("<td class=scale>") == 9


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.sqlite")
    for folder in ("day1/a", "day2/a"):
        results.begin(SessionRow(folder, "Ann", "single", 1, 10, 0, "t"), [Question("a", folder, None, "real", None, None)])
        results.answer(folder, 0, "real", seconds=1)
    assert [name for name, _ in grouped(results.answers())["runs"]] == ["day1/a", "day2/a"]


def test_a_file_without_answers_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it holds no answers yet; take a test first, .*: `etude listen runs=\[\.\.\.\]`"):
        show(Results(tmp_path / "r.sqlite"))


def listen(folder: Path, *options: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "etude.run.cli", "listen", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder)


def test_the_command_serves_until_ctrl_c_and_reports(options: Callable[..., Options], tmp_path: Path) -> None:
    given = options()
    running = listen(tmp_path, f"runs=[{given.runs[0]}]", f"real={given.real}", "questions=4", "seconds=1.5", "results=r.sqlite")
    assert running.stdout is not None
    assert re.fullmatch(r"listening test: http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n", running.stdout.readline())
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0
    assert said.splitlines()[-1].startswith("ended: 0 answers of 0 sessions in this test, 0 answers of 0 sessions in r.sqlite; ")
    assert {path.name for path in tmp_path.iterdir()} == {"real", "run", "r.sqlite"}
    fill(tmp_path / "r.sqlite")
    reporting = listen(tmp_path, "report=true", "results=r.sqlite")
    told, said = reporting.communicate(timeout=300)
    assert reporting.returncode == 0 and "29 of 40 answers are right (72 %)" in told and said == "results: r.html\n"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("runs=[gone]",), "runs=[gone]: there is no such folder; give a run's folder, a pattern, or last"),
        (("runs=[last]", "mode=three"), "mode is three, must be single or pairs"),
        (
            ("report=true",),
            "results=outputs/listening.sqlite: there is no such file; take a test first, or give the results= of one",
        ),
        (("question=4",), "there is no setting question; did you mean questions?"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path: Path, given: tuple[str, ...], told: str) -> None:
    refused = listen(tmp_path, *given)
    _, said = refused.communicate(timeout=300)
    assert (refused.returncode, said) == (2, f"error: {told}\n")
