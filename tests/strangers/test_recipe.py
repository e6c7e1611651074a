"""A checkpoint from a stranger runs nothing and writes nothing."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from etude import moved
from etude.core import recipe_check
from etude.core.recipe_check import checked_recipe, may_use_option
from etude.data.scores import corpora
from etude.run.parts import load_task
from tests.strangers.checkpoint import SMALL, altered, recipe_of
from tests.test_levels import composed
from tests.test_run import call, fails


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.target),))


def own_code_that_writes_and_loads(saved: dict[str, Any], folder: Path) -> None:
    """(a) Etude's own writer and Lightning's own loader as networks: together they run a pickle."""
    pickled, evil = folder / "pickled.pt", folder / "ran"
    recipe_of(saved)["model"] = {
        "_target_": "etude.report.files.write_atomically", "path": str(pickled), "data": pickle.dumps(Payload(str(evil))),
    }  # fmt: skip
    recipe_of(saved)["scheduler"] = {
        "_target_": "pytorch_lightning.core.saving.pl_load", "path_or_url": str(pickled), "weights_only": False,
    }  # fmt: skip


def copying(folder: Path) -> dict[str, Any]:
    (folder / "source").write_text("x")
    return {"_target_": "shutil.copyfile", "src": str(folder / "source"), "dst": str(folder / "ran")}


def _created(folder: Path) -> str:
    node = copying(folder)
    return f"${{oc.create:'{{_target_: shutil.copyfile, src: {node['src']}, dst: {node['dst']}}}'}}"


def interpolation(saved: dict[str, Any], folder: Path) -> None:
    """(c) A target that is made while the recipe is read."""
    recipe_of(saved)["model"] = _created(folder)


def interpolation_in_a_tuple(saved: dict[str, Any], folder: Path) -> None:
    recipe_of(saved)["model"]["extra"] = (_created(folder),)


def target_in_a_tuple(saved: dict[str, Any], folder: Path) -> None:
    recipe_of(saved)["model"]["extra"] = (copying(folder),)


def target_in_a_list(saved: dict[str, Any], folder: Path) -> None:
    recipe_of(saved)["model"]["extra"] = [copying(folder)]


def a_network_that_is_none(saved: dict[str, Any], folder: Path) -> None:
    recipe_of(saved)["model"] = copying(folder)


def a_tokenizer_that_is_none(saved: dict[str, Any], folder: Path) -> None:
    (folder / "source").write_text("x")
    saved["etude"]["tokenizer"] = {
        "class": "etude.report.files.write_atomically", "genres": [], "params": {"path": str(folder / "ran"), "data": "x"},
    }  # fmt: skip


RECIPES = (
    own_code_that_writes_and_loads, interpolation, interpolation_in_a_tuple, target_in_a_tuple, target_in_a_list,
    a_network_that_is_none, a_tokenizer_that_is_none,
)  # fmt: skip


@pytest.mark.parametrize("change", RECIPES[:-1])  # a tokenizer is checked once more where it is made
def test_the_exploits_are_real(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any], Path], None]
) -> None:
    """Without the check of recipes each of them writes a file."""
    folder = tmp_path / "evil"
    folder.mkdir()
    path = altered(home, tmp_path / "x.ckpt", lambda saved: change(saved, folder))
    monkeypatch.setattr(recipe_check, "checked_recipe", lambda recipe: recipe)
    with pytest.raises(ValueError, match="do not fit together"):
        load_task(path)
    assert (folder / "ran").is_file()


@pytest.mark.parametrize("change", RECIPES)
@pytest.mark.parametrize("program", ["generate", "evaluate", "transfer", "teacher"])
def test_a_recipe_runs_nothing_and_writes_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any], Path], None], program: str
) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    path = altered(home, tmp_path / "x.ckpt", lambda saved: change(saved, folder))
    if program == "teacher":
        options = [*SMALL, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", "technique=[distillation]"]
        line = fails(capsys, "train", tmp_path / "run", *options, f"technique.distillation.teacher={path}")
    else:
        line = fails(capsys, program, tmp_path / "run", f"ckpt={path}")
    assert str(path) in line
    assert {file.name for file in folder.iterdir()} <= {"source"}


@pytest.mark.parametrize(
    "option",
    [
        "+logger.x={{_target_:shutil.copyfile,src:{source},dst:{target}}}",
        "+logger.x='${{oc.create:\"{{_target_: shutil.copyfile, src: {source}, dst: {target}}}\"}}'",
        "+technique.x={{_target_:shutil.copyfile,src:{source},dst:{target}}}",
        "+technique.ema.x={{_target_:shutil.copyfile,src:{source},dst:{target}}}",
        "+logger.csv.x=[{{_target_:shutil.copyfile,src:{source},dst:{target}}}]",
        "model._target_=shutil.copyfile",
        "+logger.csv.x=$\\{{oc.env:HOME\\}}",
        "data=../../evil",
        "hydra.searchpath=[file:///evil]",
        "+optimizer@logger.x=adamw",
    ],
)
def test_options_of_a_checkpoint_run_nothing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    source, target = tmp_path / "source", tmp_path / "ran"
    source.write_text("x")
    option = option.format(source=source, target=target)
    path = altered(home, tmp_path / "x.ckpt", lambda saved: recipe_of(saved)["overrides"].append(option))
    assert str(path) in fails(capsys, "train", tmp_path / "run", f"ckpt={path}", "~sampling")
    assert not target.exists()


def test_no_folder_is_made_where_a_checkpoint_says(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """(d) `cache_dir`, `outputs` and the loggers' folders are this command's; a cache that is there already is used."""
    evil = tmp_path / "evil"

    def change(saved: dict[str, Any]) -> None:
        recipe = recipe_of(saved)
        recipe["cache_dir"] = recipe["data"]["cache_dir"] = str(evil)
        kept = [option for option in recipe["overrides"] if not option.startswith(("cache_dir", "outputs"))]
        recipe["overrides"] = [
            *kept, f"cache_dir={evil}", f"outputs={evil}", f"logger.csv.save_dir={evil}", f"+trainer.default_root_dir={evil}",
        ]  # fmt: skip

    path = altered(home, tmp_path / "x.ckpt", change)
    mine = f"+data.cache_dir={home / 'cache'}"
    call("evaluate", tmp_path / "e", f"ckpt={path}", "num_samples=0", "splits=[val]", mine)
    call("train", tmp_path / "t", f"ckpt={path}", "trainer.max_steps=11", f"cache_dir={home / 'cache'}", "~sampling")
    assert not evil.exists()
    said = capsys.readouterr().err
    assert "not taken over from" in said and f"logger.csv.save_dir={evil}" in said


def test_a_checkpoint_downloads_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A download would write to the path that the recipe names as the benchmark's."""
    asked: list[Path] = []
    monkeypatch.setattr(corpora, "download_jsb", asked.append)
    target = tmp_path / "evil" / "x.json"

    def change(saved: dict[str, Any]) -> None:
        recipe = recipe_of(saved)
        recipe["data"] |= {"root": str(target), "corpus": {"_target_": "etude.data.scores.corpora.Jsb", "download": True}}
        kept = [option for option in recipe["overrides"] if not option.startswith(("data", "model"))]
        recipe["overrides"] = [*kept, "data=jsb", f"data.root={target}", "data.corpus.download=true"]

    path = altered(home, tmp_path / "x.ckpt", change)
    for program, options in (("evaluate", ["num_samples=0", "splits=[val]"]), ("train", ["~sampling"])):
        line = fails(capsys, program, tmp_path / program, f"ckpt={path}", *options)
        assert "the JSB benchmark is not at" in line, line
    assert not asked and not target.parent.exists()


def test_the_cache_of_ones_own_run_is_used_again(home: Path, tmp_path: Path) -> None:
    path = home / "outputs" / "one"
    call("train", tmp_path / "t", f"ckpt={path}", "trainer.max_steps=11", "~sampling")
    saved = torch.load(tmp_path / "t" / "checkpoints" / "last.ckpt", weights_only=True)
    assert recipe_of(saved)["cache_dir"] == recipe_of(saved)["data"]["cache_dir"] == str(home / "cache")


def test_a_moved_class_is_found_by_its_old_name(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(saved: dict[str, Any]) -> None:
        recipe_of(saved)["model"]["_target_"] = "etude.old.place.Transformer"
        saved["etude"]["tokenizer"]["class"] = saved["etude"]["tokenizer"]["class"].replace("etude.music", "etude.earlier")

    path = altered(home, tmp_path / "x.ckpt", change)
    with pytest.raises(ValueError, match=r"model names 'etude\.old\.place\.Transformer'"):
        load_task(path)
    table = {"etude.old": "etude.nowhere", "etude.old.place": "etude.models.symbolic.transformer", "etude.earlier": "etude.music"}
    monkeypatch.setattr(moved, "MOVED", table)
    task, recipe = load_task(path)
    assert recipe.model._target_ == "etude.models.symbolic.transformer.Transformer" and type(task).__name__ == "LanguageModel"
    assert moved.current_name("etude.older.X") == "etude.older.X"  # whole parts only


def test_options_that_any_run_may_have_are_taken_over() -> None:
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    for key, value in (
        ("model", "grid"), ("model.dim", 32), ("data.root", "/home/me/songs"), ("technique", ["ema", "swa"]),
        ("technique.switch_optimizer.to", sgd), ("task.loss_weights", {"generator/rhythm": 1}), ("sampling", None),
        ("logger.wandb.project", "mine"), ("trainer.max_steps", 3), ("technique.distillation.teacher", "/home/me/x.ckpt"),
        ("stage.order", ["folk", ["rock", "jazz"]]), ("stage.folders", ["/home/me/folk", "/home/me/rock"]),
    ):  # fmt: skip
        assert may_use_option(key, value), key
    jsb = {"_target_": "etude.data.scores.corpora.Jsb", "root": "x.json"}
    deepspeed = {"_target_": "pytorch_lightning.strategies.DeepSpeedStrategy", "config": "/x"}
    assert may_use_option("data.corpus", jsb) and may_use_option("trainer.strategy", "ddp")
    for key, value in (
        ("logger.wandb.log_model", True), ("logger.csv.name", "../x"), ("trainer.profiler", "simple"),
        ("data.corpus.download", True), ("data.corpus", jsb | {"download": True}),
        ("trainer.strategy", deepspeed), ("trainer.strategy.config", "/x"), ("stage.phases", [{"options": ["outputs=/x"]}]),
    ):  # fmt: skip
        assert not may_use_option(key, value), key
    with pytest.raises(ValueError, match="no constructor is allowed there"):
        may_use_option("data.root", sgd)


def test_every_constructor_of_the_configuration_is_known() -> None:
    for options in ([], ["task=style_transfer"], ["task=vocoder"], ["optimizer=muon"], ["data=folder", "tokenizer=tsd"]):
        cfg = composed(*options)
        plain = _without_interpolations(OmegaConf.to_container(cfg, resolve=False))
        targets = checked_recipe({**plain, "name": "any", "max_steps": 3})
        assert targets["task"]["_target_"] == cfg.task._target_


def _without_interpolations(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_interpolations(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_interpolations(value) for value in node]
    return None if isinstance(node, str) and "${" in node else node
