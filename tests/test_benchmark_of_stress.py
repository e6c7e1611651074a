"""benchmarks/style_stress.py: too few random files are told in one line."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_too_few_files_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # type: ignore[no-untyped-call]
    stress = importlib.import_module("style_stress")
    monkeypatch.setattr(sys, "argv", ["style_stress.py", "--files", "2", "--steps", "1", "--rows", str(tmp_path / "rows.jsonl")])
    with pytest.raises(SystemExit) as end:
        stress.main()
    line = str(end.value)
    assert line.startswith("error: --files 2 is too few: low has no usable audio (low/0.wav: shorter than a segment")
    assert line.endswith("; give a larger number") and "\n" not in line and not (tmp_path / "rows.jsonl").exists()
