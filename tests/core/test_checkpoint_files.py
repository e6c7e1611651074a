"""Which checkpoint is meant."""

import os
from pathlib import Path

import pytest
import torch

from etude.core.audio_protocols import Synthesises
from etude.core.checkpoint_search import find_checkpoint, find_stage_checkpoint
from etude.core.protocols import Composes, Restyles
from etude.moved import MOVED

TASKS = {"language_model": "LanguageModel", "style_transfer": "StyleTransfer", "vocoder": "Vocoder"}


def run(folder: Path, kind: str, age: int) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    weights = "  loss_weights:\n    a/b: 2.0\n  names:\n  - one\n"  # whatever stands in front of the class
    (folder / "config.yaml").write_text(f"seed: 0\ntask:\n{weights}  _target_: etude.tasks.{kind}.{TASKS.get(kind, 'Some')}\n")
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_last_is_the_newest_run_of_the_task_asked_for(tmp_path: Path) -> None:
    styles = run(tmp_path / "a", "style_transfer", age=2)
    newest = run(tmp_path / "b", "vocoder", age=1)
    assert find_checkpoint("last", str(tmp_path)) == newest
    assert find_checkpoint("last", str(tmp_path), kind="style_transfer") == styles
    with pytest.raises(ValueError, match="language_model"):
        find_checkpoint("last", str(tmp_path), kind="language_model")


def test_last_is_the_newest_run_whose_task_offers_what_is_needed(tmp_path: Path) -> None:
    texts, styles, sounds = (run(tmp_path / kind, kind, age=age) for age, kind in enumerate(TASKS, start=1))
    run(tmp_path / "lost", "no_such_task", age=0)
    for protocol, path in ((Composes, texts), (Restyles, styles), (Synthesises, sounds)):
        assert find_checkpoint("last", str(tmp_path), offers=protocol) == path
    sounds.unlink()
    with pytest.raises(ValueError, match=r"ckpt=last: no checkpoints/last.ckpt of task=mel_inverter or task=vocoder under"):
        find_checkpoint("last", str(tmp_path), offers=Synthesises)


def test_a_run_from_before_its_task_was_moved_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOVED, "etude.tasks.composer", "etude.tasks.language_model")
    monkeypatch.setitem(TASKS, "composer", "LanguageModel")
    path = run(tmp_path / "then", "composer", age=2)
    run(tmp_path / "now", "vocoder", age=1)
    assert find_checkpoint("last", str(tmp_path), kind="language_model") == path
    assert find_checkpoint("last", str(tmp_path), offers=Composes) == path


def test_a_folder_of_phases_means_its_last_phase(tmp_path: Path) -> None:
    run(tmp_path / "1_first", "style_transfer", age=1)
    then = run(tmp_path / "2_then", "style_transfer", age=2)
    assert find_checkpoint(str(tmp_path), "outputs") == then
    assert find_checkpoint(str(tmp_path / "1_first"), "outputs") == tmp_path / "1_first" / "checkpoints" / "last.ckpt"


def written(path: Path, stage: str | None, phases: tuple[str, ...] = (), number: int = 0) -> None:
    """Puts a checkpoint that says where its run stands in the place of an empty one, of the same age."""
    age = path.stat().st_mtime
    recipe = {"seed": 0, **({} if stage is None else {"stage": {"name": stage, "after": None}})}
    torch.save({"etude": {"recipe": recipe, "phases": {"names": list(phases), "number": number}}}, path)
    os.utime(path, (age, age))


def test_the_newest_run_of_a_stage_is_found_and_none_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, age in (("old", 3), ("new", 1)):
        path = run(tmp_path / name, "language_model", age=age)
        written(path, "pretrain")
        path.with_name("best.ckpt").write_bytes(b"")
    run(tmp_path / "broken", "language_model", age=0)
    written(run(tmp_path / "other", "language_model", age=0), None)
    assert (
        find_stage_checkpoint(["finetune", "pretrain"], str(tmp_path), wanted="polish")
        == tmp_path / "new" / "checkpoints" / "best.ckpt"
    )
    with pytest.raises(
        ValueError, match=r"stage=polish starts from a run of stage=finetune, but .* holds none; run `python train.py"
    ):
        find_stage_checkpoint(["finetune"], str(tmp_path), wanted="polish")
    assert "broken/checkpoints/last.ckpt is skipped in the search for a stage: not a readable checkpoint" in caplog.text


def test_a_run_of_several_phases_is_of_the_one_in_which_it_stands(tmp_path: Path) -> None:
    names = ("pretrain", "finetune", "polish")
    written(run(tmp_path / "a", "language_model", age=2), "progression", names, 1)
    written(run(tmp_path / "b", "language_model", age=1), "progression", names, 2)
    assert find_stage_checkpoint(["finetune"], str(tmp_path), wanted="polish") == tmp_path / "a" / "checkpoints" / "last.ckpt"
    assert find_stage_checkpoint(["progression"], str(tmp_path), wanted="x").parents[1].name == "b"
    with pytest.raises(ValueError, match="holds none"):
        find_stage_checkpoint(["pretrain"], str(tmp_path), wanted="finetune")


def test_a_stage_goes_on_from_a_run_that_holds_only_its_best_checkpoint(tmp_path: Path) -> None:
    last = run(tmp_path / "a", "language_model", age=1)
    written(last, "pretrain")
    best = last.rename(last.with_name("best.ckpt"))
    written(run(tmp_path / "b", "language_model", age=2), "pretrain")  # an earlier run
    assert find_stage_checkpoint(["pretrain"], str(tmp_path), wanted="finetune") == best
