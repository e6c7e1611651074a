"""What a user does wrong is told in one line, by every program, and leaves no empty folder."""

import os
import runpy
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from etude.run.command import check_types
from etude.run.recipes import OPTIONAL, REQUIRED, spelled_out

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
        (
            "train",
            "promt=x",
            "there is no setting promt; did you mean sampling.prompt, or prompt, an option of `python generate.py`?",
        ),
        ("train", "intensty=1", "did you mean intensity, an option of `python transfer.py`?"),
        ("evaluate", "cache_dir=here", "no setting cache_dir; it is an option of `python train.py`: leave it out here"),
        ("evaluate", "max_step=3", "did you mean max_steps, an option of `python train.py`?"),
        ("train", "sweep.seed=1", "no sweep is chosen, so it has no settings; give sweep=NAME, too: cmaes, "),
        ("train", "trainr.max_steps=1", "there is no setting trainr.max_steps; did you mean trainer.max_steps?"),
        (
            "train",
            "optimizer=adamww",
            "optimizer=adamww is unknown; did you mean adamw? there are adafactor, adam, adamw, lion, ",
        ),
        ("train", "technique=[ema,prun]", "technique=prun is unknown; did you mean prune? there are adversarial, "),
        ("evaluate", "robustness=foo", "robustness=foo is unknown; there are cw, ensemble, fgsm, ibp, notes, pgd, smoothing"),
        ("train", "qqqqq=1", "there is no setting qqqqq; --help lists the settings"),
        (
            "train",
            "objective.temperature=1",
            "no objective is chosen, so it has no settings; give objective=NAME, too: byol, mae, ",
        ),
        ("evaluate", "task.split=val", "no task is chosen, so it has no settings; give task=NAME, too: classifier, "),
        ("evaluate", "robustness.steps=1", "no robustness is chosen, so it has no settings; give robustness=NAME, too: cw, "),
        ("transfer", "technique.ema.decay=0.9", "there is no setting technique.ema.decay; --help lists the settings"),
        ("train", "heads=[genre]", "heads is a setting of task=classifier alone; give that, too, or leave heads= out"),
        ("train", "model=null", "model=null: a run needs a model; leave model= out for the default"),
        ("train", "model=tinny", "model=tinny is unknown; did you mean tiny? there are base, expandable, grader, "),
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
    line = told(monkeypatch, capsys, "generate", "ckpt=last", f"outputs={tmp_path / 'outputs'}")
    assert "ckpt=last: no checkpoints" in line
    assert not [path for path in (tmp_path / "outputs").rglob("*") if not path.name.startswith("20")]  # but the day's


@pytest.mark.parametrize(
    ("program", "option"),
    [("transfer", "overwrite=no"), ("evaluate", "copying=off"), ("train", "autoresume=no")],
)
def test_words_do_not_count_as_true(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, option: str
) -> None:
    name, _, value = option.partition("=")
    assert f"{name} is '{value}', must be true or false" in told(monkeypatch, capsys, program, option)
    assert "seed is 'a', must be a number" in told(monkeypatch, capsys, program.replace("transfer", "generate"), "seed=a")


def test_words_are_compared_with_the_settings_of_files_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nautoresume: false\n")
    place = f"hydra.searchpath=[file://{tmp_path}]"
    assert "autoresume is 'no', must" in told(monkeypatch, capsys, "train", place, "experiment=mine", "autoresume=no")


def test_words_are_refused_where_numbers_are_due() -> None:
    node = OmegaConf.create({"a": {"_target_": "etude.core.checkpoints.LastCheckpoint", "path": "x", "every_n_steps": "y"}})
    with pytest.raises(ValueError, match=r"a\.every_n_steps is 'y', must be int"):
        check_types(node)
    node.a.every_n_steps = 3
    check_types(node)


def test_null_chooses_nothing_from_a_group() -> None:
    conf = OmegaConf.load(ROOT / "conf" / "train.yaml")
    groups = {key for entry in conf.defaults if OmegaConf.is_dict(entry) for key in entry if not key.startswith("override ")}
    assert groups == {*REQUIRED, *OPTIONAL}
    assert spelled_out(["technique=[ema],null", "seed=null", "-m"]) == ["technique=[ema],[]", "seed=null", "-m"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for group in OPTIONAL:
            found = compose("train", overrides=spelled_out([f"{group}=null"]))
            assert not found.get(group), group
            if group in ("genre", "level", "experiment", "stage", "convergence"):
                assert found == compose("train")
        for group in REQUIRED:
            with pytest.raises(ValueError, match=f"{group}=null: a run needs a {group}"):
                spelled_out([f"{group}=null"])
