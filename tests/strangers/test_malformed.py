"""A malformed or damaged checkpoint ends every program in one line."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.core.checkpoint_files import load_checkpoint
from etude.run.parts import load_task
from tests.strangers.checkpoint import SMALL, altered, recipe_of
from tests.test_run import fails


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
