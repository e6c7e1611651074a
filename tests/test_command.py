"""What a user does wrong is told in one line, by every program, and leaves no empty folder."""

import os
import runpy
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from etude.run.command import check_types

ROOT = Path(__file__).parents[1]


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, *options: str) -> str:
    """The one line that a program called with `options` prints."""
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *options])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / f"{program}.py"), run_name="__main__")
    assert end.value.code == 2 and "HYDRA_FULL_ERROR" not in os.environ
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("program", "option", "expected"),
    [
        ("generate", "promt=my.mid", "there is no setting promt; did you mean prompt?"),
        ("evaluate", "num_sample=3", "did you mean num_samples?"),
        ("transfer", "stlye=jazz", "did you mean style?"),
        ("train", "model.dimm=3", "did you mean model.dim?"),
        ("train", "model=tinny", "Available options in 'model': base grid"),
        ("train", "data.root=/my songs/a=b", "\"data.root='/my songs/a=b'\""),
        ("train", "outputs=/dev/null/x", "the run's folder can't be made"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, option: str, expected: str
) -> None:
    assert expected in told(monkeypatch, capsys, program, option)


def test_a_run_that_fails_before_training_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "my songs" / "a=b"
    outputs = [f"outputs={tmp_path / 'outputs'}", f"cache_dir={tmp_path / 'cache'}", "~sampling"]
    # the documented form of a path with spaces and =
    line = told(monkeypatch, capsys, "train", "data=folder", f"data.root='{root}'", *outputs)
    assert str(root) in line
    line = told(monkeypatch, capsys, "train", "model.dim=abc", *outputs)
    assert "model.dim is 'abc', must be int" in line
    line = told(monkeypatch, capsys, "generate", f"outputs={tmp_path / 'outputs'}")
    assert "ckpt=last: no checkpoints" in line
    assert not [path for path in (tmp_path / "outputs").rglob("*") if not path.name.startswith("20")]  # but the day's


def test_words_are_refused_where_numbers_are_due() -> None:
    node = OmegaConf.create({"a": {"_target_": "etude.core.checkpoints.LastCheckpoint", "path": "x", "every_n_steps": "y"}})
    with pytest.raises(ValueError, match=r"a\.every_n_steps is 'y', must be int"):
        check_types(node)
    node.a.every_n_steps = 3
    check_types(node)
