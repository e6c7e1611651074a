"""Reads a search space in Hydra's grammar of options, from the command line and from files of conf/sweep/space."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf

from etude.sweeps.space import Dimension, Label, Space, check_names, choices, interval, steps

TAGS = {"log"}


def space_of(options: Sequence[Override], files: Sequence[Path]) -> Space:
    """Returns the search space of a command: its options that have several values, and those of the files.

    An option of the command line takes precedence over a file: a value fixes it, several values replace the file's. Of a group
    whose choices have options of their own in a file, the choices named stay, with their options.

    Raises: ValueError for a file or an option that can't be read, and for an option that would be set twice.
    """
    given = {option.key_or_group: option for option in options}
    found: list[Dimension] = []
    for path in files:
        found += _of_mapping(_load(path), given, path, within=())
    keys = {dimension.key for dimension in found}
    found += [_dimension(o, ()) for o in options if o.is_sweep_override() and o.get_key_element() not in keys]
    space = tuple(found)
    check_names(space)
    return space


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML may be malformed in any way
        raise ValueError(f"space={path} can't be read: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError(f"space={path} must hold lines such as `optimizer.lr: tag(log, interval(0.001, 0.1))`")
    return {str(key): value for key, value in loaded.items()}


def _of_mapping(node: Mapping[str, Any], given: Mapping[str, Override], path: Path, within: tuple[str, ...]) -> Space:
    found: list[Dimension] = []
    for key, value in node.items():
        mine = given.get(key)
        if not isinstance(value, Mapping):
            if mine is None:
                found.append(_dimension(_parse(key, value, path), within))
            elif mine.is_sweep_override() and not within:
                found.append(_dimension(mine, ()))
            continue
        branches = {
            str(choice): _of_mapping(inside or {}, given, path, (*within, str(choice))) for choice, inside in value.items()
        }
        if mine is None:
            options: list[tuple[Label, str]] = [(choice, choice) for choice in branches]
        elif mine.is_sweep_override():
            options = _choices(mine)
        else:  # one choice is fixed: what belongs to it always holds
            found += branches.get(mine.get_value_element_as_str(), ())
            continue
        found.append(choices(key, _name(key, within), options, {label: branches.get(str(label), ()) for label, _ in options}))
    return tuple(found)


def _parse(key: str, value: Any, path: Path) -> Override:
    text = ",".join(map(_plain, value)) if isinstance(value, list) else _plain(value)
    try:
        return OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        raise ValueError(
            f"space={path}: {key}: {text} can't be read; give choices (A,B), interval(LOW,HIGH), tag(log, interval(LOW,HIGH)) or "
            "range(START,STOP,STEP)"
        ) from error


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _name(key: str, within: tuple[str, ...]) -> str:
    return "@".join((key.lstrip("+"), *within))


def _dimension(option: Override, within: tuple[str, ...]) -> Dimension:
    """Returns the dimension of an option with several values, or with one, which then is its only choice."""
    key, value = option.get_key_element(), _value(option)
    name = _name(key, within)
    if not option.is_sweep_override():
        text = option.get_value_element_as_str()
        return choices(key, name, [(_label(value, text), text)])
    if not isinstance(value, ChoiceSweep | IntervalSweep | RangeSweep):
        raise ValueError(f"{option.input_line}: a sweep takes choices, interval() and range(); list the choices that you mean")
    if unknown := sorted(value.tags - TAGS):
        raise ValueError(
            f"{option.input_line}: the tag {unknown[0]} is unknown; the only one is log, as in tag(log, interval(...))"
        )
    if isinstance(value, ChoiceSweep | RangeSweep) and value.shuffle:
        raise ValueError(f"{option.input_line}: shuffle() is only for grids without sweep=; a sampler has an order of its own")
    if isinstance(value, ChoiceSweep):
        if value.tags:
            raise ValueError(f"{option.input_line}: choices can't be logarithmic; leave tag(log, ...) out")
        return choices(key, name, _choices(option))
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        return interval(key, name, value.start, value.end, log="log" in value.tags)
    assert value.start is not None and value.stop is not None
    if value.tags:
        raise ValueError(f"{option.input_line}: steps can't be logarithmic; take tag(log, int(interval(LOW,HIGH)))")
    return steps(key, name, value.start, value.stop, value.step)


def _choices(option: Override) -> list[tuple[Label, str]]:
    """Returns each choice as the study stores it, and as text."""
    value = _value(option)
    if not isinstance(value, ChoiceSweep):
        raise ValueError(f"{option.input_line}: {option.key_or_group} is a group of choices; list some of them")
    texts = list(option.sweep_string_iterator())
    return [(_label(each, text), text) for each, text in zip(value.list, texts, strict=True)]


def _value(option: Override) -> Any:
    return option.value()


def _label(value: Any, text: str) -> Label:
    return value if value is None or isinstance(value, bool | int | float) else re.sub(r"^(['\"])(.*)\1$", r"\2", text)


def space_files(names: Any, conf: Path) -> list[Path]:
    """Returns the files that `space=` names. Raises: ValueError for one that does not exist, with those that do."""
    found = []
    for name in [] if names is None else [names] if isinstance(names, str) else names:
        own, path = conf / "sweep" / "space" / f"{name}.yaml", Path(str(name)).expanduser()
        if not own.is_file() and not (path.suffix in (".yaml", ".yml") and path.is_file()):
            known = ", ".join(sorted(path.stem for path in (conf / "sweep" / "space").glob("*.yaml"))) or "none"
            raise ValueError(f"space={name} is neither one of {known} nor a YAML file")
        found.append(own if own.is_file() else path)
    return found
