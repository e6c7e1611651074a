"""Checks that the recipe in a checkpoint is safe to build from.

A recipe is the configuration of the run that wrote a checkpoint, and networks are built from it. Since the file may come from a
stranger, a recipe must be plain data. Each entry may name constructors of one kind only (`model` a network of Etude,
`optimizer` an optimizer, ...). No value may be an interpolation (`${...}`), which could run code when it is resolved. Paths
to which a run writes are not taken from it.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from etude.moved import current_name

MAX_NODES = 200_000  # values in a recipe; a shared part counts each time it occurs
MAX_DEPTH = 32
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
OPTION = re.compile(r"[A-Za-z][\w-]*([./][A-Za-z0-9][\w-]*)*")
NEVER_BUILT = ("trainer", "logger", "sampling", "before_after")  # always taken from the command, never from a checkpoint
CACHE_MARKERS = ("hashes.parquet", "hashes.sealed")  # a folder with one of these files is a cache of Etude
LOGGER_KEYS = ("project", "group", "tags", "notes", "job_type", "name", "offline", "prefix", "flush_logs_every_n_steps")
TRAINER_KEYS_IGNORED = ("default_root_dir", "profiler", "plugins", "callbacks", "logger")


# --- the kinds of constructors ---


def _own_class(base: str, found: Any, module: str, *, but: str | None = None) -> bool:
    """Whether `found` is a class that `module` of Etude defines, a subclass of `base` and not of `but` (dotted names)."""
    if not (inspect.isclass(found) and module.startswith("etude.") and found.__module__ == module):
        return False
    return issubclass(found, _by_name(base)) and not (but and issubclass(found, _by_name(but)))


def _is_optimizer(found: Any, module: str) -> bool:
    if module == "etude.optim.optimizers":
        return found.__module__ == module and (inspect.isfunction(found) or _own_class("torch.optim.Optimizer", found, module))
    known = module in ("torch.optim", "pytorch_optimizer")
    return known and inspect.isclass(found) and issubclass(found, _by_name("torch.optim.Optimizer"))


def _is_schedule(found: Any, module: str) -> bool:
    if module == "etude.optim.schedules":
        return inspect.isfunction(found) and found.__module__ == module
    known = module == "torch.optim.lr_scheduler" and inspect.isclass(found)
    return known and issubclass(found, _by_name("torch.optim.lr_scheduler.LRScheduler"))


def _is_corpus(found: Any, module: str) -> bool:
    bases = ("etude.data.scores.corpora.Corpus", "etude.data.audio.corpora.AudioCorpus")
    return any(_own_class(base, found, module) for base in bases)


def _is_strategy(found: Any, module: str) -> bool:
    known = module == "pytorch_lightning.strategies" and inspect.isclass(found)
    return known and issubclass(found, _by_name("pytorch_lightning.strategies.Strategy"))


KINDS: dict[str, Callable[[Any, str], bool]] = {
    "a task": partial(_own_class, "etude.core.task.Task"),
    "a network": partial(_own_class, "torch.nn.Module", but="pytorch_lightning.LightningModule"),
    "an optimizer": _is_optimizer,
    "a schedule": _is_schedule,
    "a tokenizer": partial(_own_class, "etude.tokens.tokenizer.Tokenizer"),
    "a datamodule": partial(_own_class, "pytorch_lightning.LightningDataModule"),
    "a corpus": _is_corpus,
    "a mel contract": partial(_own_class, "etude.audio.mel.MelContract"),
    "a technique": partial(_own_class, "etude.core.technique.Technique"),
    "a strategy of the trainer": _is_strategy,
}
PARTIAL = ("a network", "an optimizer", "a schedule", "a tokenizer")  # built later, with arguments from the data and the task
PLACES = (  # (keys in the recipe, kind of constructor); the first match counts; * stands for one key
    ("task", "a task"),
    ("model", "a network"),
    ("discriminator", "a network"),
    ("objective", "a network"),
    ("algorithm", "a network"),
    ("optimizer", "an optimizer"),
    ("scheduler", "a schedule"),
    ("tokenizer", "a tokenizer"),
    ("data", "a datamodule"),
    ("data.corpus", "a corpus"),
    ("data.contract", "a mel contract"),
    ("technique.*", "a technique"),
    ("technique.*.*", "an optimizer"),
    ("technique.*.*.*", "an optimizer"),
    ("technique.*.*.*.*", "an optimizer"),
    ("trainer.strategy", "a strategy of the trainer"),
)


def _by_name(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _kind_of(place: tuple[str, ...]) -> str | None:
    for pattern, kind in PLACES:
        parts = pattern.split(".")
        if len(parts) == len(place) and all(part in ("*", key) for part, key in zip(parts, place, strict=True)):
            return kind
    return None


def checked_constructor(name: object, place: tuple[str, ...]) -> str:
    """Returns the present name of the constructor `name`, which may have been moved since the checkpoint was written.

    place: the keys that lead to it in the recipe, such as ("data", "corpus").
    Raises: ValueError if a constructor of this kind is not allowed there. For this check only modules of Etude, torch.optim,
        pytorch_optimizer and pytorch_lightning.strategies are imported.
    """
    kind, where = _kind_of(place), ".".join(place) or "the whole"
    if kind is None:
        raise ValueError(f"{where} names {str(name)[:80]!r}, but no constructor is allowed there")
    wrong = f"{where} names {str(name)[:80]!r}, which is not {kind} that Etude knows"
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ValueError(wrong)
    module, _, attribute = (now := current_name(name)).rpartition(".")
    ours = module.startswith("etude.")
    if attribute.startswith("_") or not (ours or module in _MODULES):
        raise ValueError(wrong)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(wrong) from error
    if not KINDS[kind](found, module):
        raise ValueError(wrong)
    return now


_MODULES = ("torch.optim", "torch.optim.lr_scheduler", "pytorch_optimizer", "pytorch_lightning.strategies")


# --- recipes ---


class _PlainCopy:
    """Copies a nested structure of plain values and refuses everything else.

    It counts the values, since a structure may contain itself or be shared so often that it does not fit into memory.
    """

    def __init__(self) -> None:
        self.seen = 0

    def plain(self, node: Any, place: tuple[str, ...]) -> Any:
        self.seen += 1
        where = ".".join(place) or "the whole"
        if self.seen > MAX_NODES or len(place) > MAX_DEPTH:
            raise ValueError(f"{where} is larger or more deeply nested than any that Etude writes")
        if type(node) is dict:
            return {self._key(key, where): self._value(key, value, place) for key, value in node.items()}
        if type(node) is list:
            return [self.plain(value, (*place, str(number))) for number, value in enumerate(node)]
        if type(node) is str and "${" in node:
            raise ValueError(f"{where} is {node[:80]!r}, an interpolation; a recipe must hold plain values")
        if node is not None and type(node) not in (str, int, float, bool):
            raise ValueError(f"{where} is a {type(node).__name__}; a recipe may hold only text, numbers, lists and dictionaries")
        return node

    def _key(self, key: Any, where: str) -> Any:
        if type(key) is int or (type(key) is str and "${" not in key):
            return key
        raise ValueError(f"{where} has the key {str(key)[:80]!r}; keys are plain names")

    def _value(self, key: Any, value: Any, place: tuple[str, ...]) -> Any:
        if key == "_target_":
            return checked_constructor(value, place)
        if key == "_partial_":
            allowed = (True,) if _kind_of(place) in PARTIAL else (False,)
            if type(value) is not bool or value not in allowed:
                raise ValueError(f"{'.'.join((*place, '_partial_'))} is {str(value)[:80]!r}, must be {str(allowed[0]).lower()}")
            return value
        if isinstance(key, str) and key.startswith("_") and key.endswith("_"):
            raise ValueError(f"{'.'.join(place)} has the key {key[:80]!r}, which Etude does not use")
        return self.plain(value, (*place, str(key)))


def checked_recipe(recipe: object) -> dict[str, Any]:
    """Returns a copy of a checkpoint's recipe that is safe to build from, with the present names of its constructors.

    Trainer, loggers and sampling are removed, since they are never built from a checkpoint. A `cache_dir` is removed unless it
    is a cache of Etude on this machine already, so that a checkpoint can't choose where files are written. For the same reason
    no corpus downloads anything: only the command line may ask for it.

    Raises: ValueError that says what is wrong with the recipe.
    """
    if type(recipe) is not dict:
        raise ValueError(f"it is a {type(recipe).__name__}, not a dictionary")
    options = recipe.get("overrides", [])
    if type(options) is not list or not all(type(option) is str for option in options):
        raise ValueError("overrides is not a list of options")
    rest = {key: value for key, value in recipe.items() if key not in NEVER_BUILT and key != "overrides"}
    known = _PlainCopy().plain(rest, ())
    if type(known.get("task")) is not dict or "_target_" not in known["task"]:
        raise ValueError("task names no constructor")
    for name in ("model", "discriminator", "objective", "algorithm", "optimizer", "scheduler", "tokenizer", "data"):
        node = known.get(name)
        if node is not None and (type(node) is not dict or "_target_" not in node):
            raise ValueError(f"{name} names no constructor")
    if lacking := [name for name in ("optimizer", "data") if known.get(name) is None]:
        raise ValueError(f"{lacking[0]} names no constructor")
    if type(known.get("name")) is not str:
        raise ValueError(f"name is {str(known.get('name'))[:80]!r}, must be text")
    if type(known.get("max_steps")) not in (int, float):
        raise ValueError(f"max_steps is {str(known.get('max_steps'))[:80]!r}, must be a number")
    for part in (known, known.get("data") or {}):
        if "cache_dir" in part and not is_cache(part["cache_dir"]):
            del part["cache_dir"]
    corpus = (known.get("data") or {}).get("corpus")
    if type(corpus) is dict:
        corpus.pop("download", None)
    return {**known, "overrides": list(options)}


def is_cache(folder: object) -> bool:
    """Returns whether `folder` is the path of an existing cache of Etude."""
    if not isinstance(folder, str) or "\0" in folder:
        return False
    return any((Path(folder).expanduser() / mark).is_file() for mark in CACHE_MARKERS)


# --- options ---


def may_use_option(key: str, value: Any) -> bool:
    """Returns whether a run that continues a checkpoint may use the option `key=value` of the checkpoint's run.

    False for options that say where to write, where to send data or what to download: only the command line may set these. A
    `cache_dir` may be used if it is an existing cache of Etude, such as that of one's own earlier run.

    Raises: ValueError for an option that no run of Etude can have: it names a constructor that is not allowed there, contains
        an interpolation, or reads configuration from outside conf/.
    """
    if not OPTION.fullmatch(key) or key.split("/")[0].split(".")[0] == "hydra":
        raise ValueError(f"has the option {key[:80]!r}, which no run of Etude has")
    place = tuple(re.split(r"[./]", key))
    _PlainCopy().plain(value, place)
    if len(place) == 1 or "/" in key:
        if type(value) is dict:
            raise ValueError(f"sets the group {key} to a dictionary; give the name of a choice")
        names = value if type(value) is list else [value]
        if key not in ("outputs", "cache_dir", "weights", "ckpt") and not all(_is_choice(name) for name in names):
            raise ValueError(f"sets {key} to {str(value)[:80]!r}, which is outside the configuration")
    if key in ("cache_dir", "data.cache_dir"):
        return is_cache(value)
    return not _writes(place, value)


def _is_choice(name: object) -> bool:
    return not isinstance(name, str) or not (name.startswith(("/", "~")) or ".." in name or "\\" in name)


def _writes(place: tuple[str, ...], value: Any) -> bool:
    """Returns whether an option says where to write, where to send data, what to download, or what else to run."""
    first, rest = place[0], place[1:]
    if place[:2] == ("data", "corpus"):  # a download is written to data.root
        return rest[1:] == ("download",) or (type(value) is dict and "download" in value)
    if place[:2] == ("trainer", "strategy"):  # its own settings may name files
        return len(rest) > 1 or type(value) not in (str, type(None))
    if place in (("outputs",), ("ckpt",)):
        return True
    if first == "stage" and rest:  # phases hold options of their own; order and folders name what is read
        return type(value) in (dict, list) and rest not in (("order",), ("folders",))
    if first == "logger" and rest:
        values = value if type(value) is list else [value]
        simple = all(not isinstance(v, str) or (not set(v) & set("/\\") and v not in ("..", ".")) for v in values)
        return len(rest) != 2 or rest[1] not in LOGGER_KEYS or not simple or type(value) is dict
    return first == "trainer" and bool(rest) and rest[0] in TRAINER_KEYS_IGNORED
