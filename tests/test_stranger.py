"""A checkpoint from a stranger runs nothing and writes nothing; a malformed one ends every program in one line."""

import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from etude import moved
from etude.core import recipe_check
from etude.core.checkpoint_files import load_checkpoint
from etude.core.recipe_check import checked_recipe, may_use_option
from etude.data.scores import corpora
from etude.run.programs import load_task
from tests.songs import write_songs
from tests.test_levels import composed
from tests.test_run import TINY, call, fails

SMALL = [option for option in TINY if not option.startswith("sampling.")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs and the outputs of one small run on them, with a cache of its own."""
    home = tmp_path_factory.mktemp("stranger")
    write_songs(home / "songs")
    call("train", home / "outputs" / "one", *SMALL, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", "~sampling")
    return home


def altered(home: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the run's checkpoint whose contents `change` has edited."""
    saved = torch.load(home / "outputs" / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    change(saved)
    torch.save(saved, target)
    return target


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.target),))


def recipe_of(saved: dict[str, Any]) -> dict[str, Any]:
    recipe: dict[str, Any] = saved["etude"]["recipe"]
    return recipe


def own_code_that_writes_and_loads(saved: dict[str, Any], folder: Path) -> None:
    """(a) Etude's own writer and Lightning's own loader as networks: together they run a pickle."""
    pickled, evil = folder / "pickled.pt", folder / "ran"
    recipe_of(saved)["model"] = {
        "_target_": "etude.report.files.write_atomically", "path": str(pickled), "data": pickle.dumps(Payload(str(evil))),
    }  # fmt: skip
    recipe_of(saved)["discriminator"] = {
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


def break_shapes(saved: dict[str, Any]) -> None:
    recipe_of(saved)["model"]["dim"] = 64


def break_numbers(saved: dict[str, Any]) -> None:
    next(iter(saved["state_dict"].values())).view(-1)[3] = float("nan")


def set_recipe(value: object) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["etude"].update(recipe=value)


def _itself(saved: dict[str, Any]) -> None:
    recipe_of(saved)["itself"] = recipe_of(saved)


def _doubled(saved: dict[str, Any]) -> None:
    node: Any = [0]
    for _ in range(30):
        node = [node, node]
    recipe_of(saved)["doubled"] = node


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a string": set_recipe("x"),
    "a list": set_recipe([1, 2]),
    "a number": set_recipe(3),
    "own a list": lambda saved: saved.update(etude=[1]),
    "no task": lambda saved: recipe_of(saved).pop("task"),
    "task a string": lambda saved: recipe_of(saved).update(task="etude.tasks.language_model.LanguageModel"),
    "task unnamed": lambda saved: recipe_of(saved)["task"].pop("_target_"),
    "task of a number": lambda saved: recipe_of(saved)["task"].update(_target_=7),
    "task unknown": lambda saved: recipe_of(saved)["task"].update(_target_="etude.tasks.language_model.Nothing"),
    "task without module": lambda saved: recipe_of(saved)["task"].update(_target_="etude.nothing.Nothing"),
    "no optimizer": lambda saved: recipe_of(saved).pop("optimizer"),
    "optimizer null": lambda saved: recipe_of(saved).update(optimizer=None),
    "optimizer of text": lambda saved: recipe_of(saved).update(optimizer="x"),
    "no data": lambda saved: recipe_of(saved).pop("data"),
    "no name": lambda saved: recipe_of(saved).pop("name"),
    "name a number": lambda saved: recipe_of(saved).update(name=3),
    "no max_steps": lambda saved: recipe_of(saved).pop("max_steps"),
    "max_steps of text": lambda saved: recipe_of(saved).update(max_steps="many"),
    "max_steps true": lambda saved: recipe_of(saved).update(max_steps=True),
    "no model": lambda saved: recipe_of(saved).pop("model"),
    "model null": lambda saved: recipe_of(saved).update(model=None),
    "model a list": lambda saved: recipe_of(saved).update(model=[1]),
    "unknown key": lambda saved: recipe_of(saved)["model"].update(nothing=1),
    "missing value": lambda saved: recipe_of(saved)["model"].update(dim="???"),
    "wrong type": lambda saved: recipe_of(saved)["model"].update(dim="wide"),
    "negative": lambda saved: recipe_of(saved)["model"].update(num_heads=-1),
    "nan": lambda saved: recipe_of(saved)["model"].update(dim=float("nan")),
    "bytes": lambda saved: recipe_of(saved)["model"].update(extra=b"x"),
    "a tensor": lambda saved: recipe_of(saved)["model"].update(extra=torch.zeros(3)),
    "positional": lambda saved: recipe_of(saved)["model"].update(_args_=[3]),
    "built at once": lambda saved: recipe_of(saved)["model"].update(_partial_=False),
    "not built": lambda saved: recipe_of(saved)["task"].update(_partial_=True),
    "a network as optimizer": lambda saved: recipe_of(saved).update(optimizer=recipe_of(saved)["model"]),
    "an optimizer as network": lambda saved: recipe_of(saved).update(model=recipe_of(saved)["optimizer"]),
    "other sizes": break_shapes,
    "nan weights": break_numbers,
    "no weights": lambda saved: saved.pop("state_dict"),
    "a weight missing": lambda saved: saved["state_dict"].pop(next(iter(saved["state_dict"]))),
    "weights of text": lambda saved: saved["state_dict"].update(x="y"),
    "no tokenizer": lambda saved: saved["etude"].pop("tokenizer"),
    "tokenizer a list": lambda saved: saved["etude"].update(tokenizer=[]),
    "tokenizer unknown": lambda saved: saved["etude"]["tokenizer"].update({"class": "etude.tokens.tokenizer.Nothing"}),
    "tokenizer abstract": lambda saved: saved["etude"]["tokenizer"].update({"class": "etude.tokens.tokenizer.Tokenizer"}),
    "tokenizer parameters": lambda saved: saved["etude"]["tokenizer"].update(params={"nothing": 1}),
    "a huge network": lambda saved: recipe_of(saved)["model"].update(dim=10**6),
    "many layers": lambda saved: recipe_of(saved)["model"].update(num_layers=10**6),
    "no steps": lambda saved: saved.pop("global_step"),
    "no batches": lambda saved: saved["etude"].update(batches_trained="x"),
    "holds itself": _itself,
    "doubles": _doubled,
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_checkpoint_is_told_in_one_line(home: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = altered(home, tmp_path / "x.ckpt", change)
    with pytest.raises(ValueError) as told:
        load_task(path)
    assert str(told.value).startswith(f"{path}: ") and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("program", "options", "change"),
    [
        ("evaluate", ["num_samples=0", "splits=[val]"], lambda saved: recipe_of(saved)["data"].update(foo=1)),
        ("train", ["~sampling"], lambda saved: recipe_of(saved)["overrides"].append("model.foo=1")),
        ("train", ["~sampling"], lambda saved: recipe_of(saved)["overrides"].append("model=nothing")),
        ("train", ["~sampling"], lambda saved: recipe_of(saved)["overrides"].append("fast_convergence=maybe")),
        ("train", ["~sampling"], lambda saved: recipe_of(saved)["overrides"].append("level=null")),
    ],
)
def test_what_data_and_options_come_to_is_told_in_one_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, options: list[str],
    change: Callable[[dict[str, Any]], object],
) -> None:  # fmt: skip
    path = altered(home, tmp_path / "x.ckpt", change)
    assert str(path) in fails(capsys, program, tmp_path / "run", f"ckpt={path}", *options)


def without(key: str, *places: str | int) -> Callable[[Any], object]:
    return lambda saved: _at(saved, places).pop(key)


def put(value: object, *places: str | int) -> Callable[[Any], None]:
    return lambda saved: _at(saved, places[:-1]).__setitem__(places[-1], value)


def _at(node: Any, places: Sequence[str | int]) -> Any:
    for place in places:
        node = node[place]
    return node


LOOP = ("loops", "fit_loop")
STATES: dict[str, Callable[[Any], object]] = {
    "loops a list": put([1], "loops"),
    "no fit loop": without("fit_loop", "loops"),
    "no progress": put({}, *LOOP, "epoch_loop.batch_progress"),
    "progress of text": put("x", *LOOP, "epoch_loop.batch_progress", "total", "ready"),
    "loader of text": put(["x"], *LOOP, "state_dict", "combined_loader"),
    "sampler of text": put("x", *LOOP, "state_dict", "combined_loader", 0, "_index_sampler_state"),
    "sampler empty": put({}, *LOOP, "state_dict", "combined_loader", 0, "_index_sampler_state"),
    "optimizers null": put(None, "optimizer_states"),
    "no optimizers": without("optimizer_states"),
    "optimizer of text": put(["x"], "optimizer_states"),
    "no groups": without("param_groups", "optimizer_states", 0),
    "a group short": put([], "optimizer_states", 0, "param_groups"),
    "moments of text": put("x", "optimizer_states", 0, "state"),
    "moments of another size": put({"momentum_buffer": torch.zeros(3, 5)}, "optimizer_states", 0, "state", 1),
    "schedules of text": put(["x"], "lr_schedulers"),
    "no schedules": without("lr_schedulers"),
    "callbacks a list": put([1], "callbacks"),
    "average of text": put("x", "callbacks", "Ema"),
    "average of other names": put({"x": torch.zeros(1)}, "callbacks", "Ema", "training_weights"),
    "phases of text": put("x", "etude", "phases"),
    "data of text": put("x", "MusicDataModule"),
    "version of text": put("x", "pytorch-lightning_version"),
    "version a number": put(3, "pytorch-lightning_version"),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES.keys())
def test_a_malformed_state_is_told_in_one_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Any], object]
) -> None:
    """What optimizers, loops, loaders, schedules and techniques take over; a run of the same file goes on elsewhere."""
    path = altered(home, tmp_path / "x.ckpt", change)
    line = fails(capsys, "train", tmp_path / "run", f"ckpt={path}", "trainer.max_steps=12", "~sampling")
    assert line.startswith(f"error: {path}: ")


def test_any_part_of_a_recipe_may_be_anything(home: Path, tmp_path: Path) -> None:
    """Whatever stands in any place of a recipe, loading gives a task or one line."""
    good = torch.load(home / "outputs" / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    random.seed(0)
    odd: list[Any] = [None, "", "x", -1, 10**9, 1e308, [], {}, [[]], {"_target_": "os.system"}, {1: 2}, "${x}", True, b"", ()]
    refused = 0
    for number in range(60):
        saved = {**good, "etude": _copied(good["etude"])}
        parts = [part for part in _parts(saved["etude"]) if part]
        part = random.choice(parts)
        part[random.choice(list(part))] = random.choice(odd)
        path = tmp_path / f"{number}.ckpt"
        torch.save(saved, path)
        try:
            load_task(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
    assert refused > 10


def _copied(node: Any) -> Any:
    return {key: _copied(value) for key, value in node.items()} if isinstance(node, dict) else node


def _parts(node: Any) -> list[dict[Any, Any]]:
    if not isinstance(node, dict):
        return []
    return [node, *(part for value in node.values() for part in _parts(value))]


def test_a_flipped_bit_is_noticed_wherever_it_is(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every flip is refused with a line that names the file, or has changed nothing that is loaded."""
    good = home / "outputs" / "one" / "checkpoints" / "last.ckpt"
    data, expected = good.read_bytes(), load_checkpoint(good)
    random.seed(0)
    refused, path = 0, tmp_path / "x.ckpt"
    for _ in range(150):
        place, bit = random.randrange(len(data)), random.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        try:
            found = load_checkpoint(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
        else:
            assert _same(found, expected)
    assert refused > 100
    place = data.index(next(iter(expected["state_dict"].values())).numpy().tobytes()[:16])
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    line = fails(capsys, "train", tmp_path / "run", f"ckpt={path}")
    assert f"error: {path}: damaged: the checksum of its record " in line and "/data/" in line
    assert f"error: {path}: damaged" in fails(capsys, "train", tmp_path / "run2", *SMALL, f"data.root={home / 'songs'}",
                                              f"cache_dir={home / 'cache'}", f"weights={path}")  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) or one != one


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
    ):  # fmt: skip
        assert may_use_option(key, value), key
    jsb = {"_target_": "etude.data.scores.corpora.Jsb", "root": "x.json"}
    deepspeed = {"_target_": "pytorch_lightning.strategies.DeepSpeedStrategy", "config": "/x"}
    assert may_use_option("data.corpus", jsb) and may_use_option("trainer.strategy", "ddp")
    for key, value in (
        ("logger.wandb.log_model", True), ("logger.csv.name", "../x"), ("trainer.profiler", "simple"),
        ("data.corpus.download", True), ("data.corpus", jsb | {"download": True}),
        ("trainer.strategy", deepspeed), ("trainer.strategy.config", "/x"),
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
