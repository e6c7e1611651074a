"""Writes options as a file of conf/experiment."""

from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import DictConfig, OmegaConf

from etude.run.cli import conf_folder

ELSEWHERE = ("hydra", "outputs", "cache_dir", "ckpt", "trial")  # keys that say where one run writes, or what it goes on from


def experiment_file(options: Sequence[str], *, compose: Callable[[list[str]], DictConfig], comments: Sequence[str]) -> str:
    """Returns the text of a file for conf/experiment that stands for these options.

    It names what was chosen of each group that an experiment may choose from, and each value that these choices alone would not
    give. So it also stands for a level, a stage or another experiment, which an experiment can't name.

    compose: returns the configuration for options, with Hydra's own part. comments: lines at the top.
    """
    parsed = OverridesParser.create().parse_overrides(list(options))
    wanted = compose(list(options))
    choices = _choices(wanted, parsed)
    values = _values(wanted)
    base = _values(compose([_chosen(group, choice) for group, choice in choices.items()]))
    if any(path[0] == "technique" for path in _gone(base, values)):  # a list of which a level or a stage took something away
        choices["technique"] = []
        base = _values(compose([_chosen(group, choice) for group, choice in choices.items()]))
    settings = OmegaConf.merge(OmegaConf.create(_typed(parsed)), OmegaConf.create(_differences(values, base)))
    notes = [f"without {(name := '.'.join(path))}: add ~{name} on the command line" for path in _gone(base, values)]
    lines = ["# @package _global_", *(f"# {line}" for line in [*comments, *notes])]
    lines.append(OmegaConf.to_yaml(OmegaConf.create({"defaults": [{f"override /{g}": choice} for g, choice in choices.items()]})))
    return "\n".join([*lines, OmegaConf.to_yaml(settings)] if settings else lines)


def _choices(wanted: DictConfig, typed: Sequence[Override]) -> dict[str, Any]:
    """Returns the choice of each group that train.yaml lists before `experiment`: that is what an experiment can override."""
    said = {option.key_or_group: option for option in typed}
    made = _plain(wanted.hydra.runtime.choices)
    found: dict[str, Any] = {}
    for group, default in _groups().items():
        if group == "experiment":
            return found
        if group in made:
            found[group] = made[group]
        elif group in said:  # Hydra keeps no lists among its choices
            found[group] = [] if said[group].is_delete() else _value(said[group].value())
        else:
            found[group] = default
    return found


def _groups() -> dict[str, Any]:
    """Returns the groups of train.yaml with their default choices, in its order."""
    entries = OmegaConf.load(conf_folder() / "train.yaml").defaults
    return {str(group): choice for entry in entries if OmegaConf.is_dict(entry) for group, choice in _plain(entry).items()}


def _plain(node: Any) -> dict[Any, Any]:
    found = OmegaConf.to_container(node)
    assert isinstance(found, dict)
    return found


def _chosen(group: str, choice: Any) -> str:
    if isinstance(choice, list):
        choice = f"[{','.join(map(str, choice))}]"
    return f"{group}={'[]' if choice is None else choice}"


def _values(config: DictConfig) -> dict[str, Any]:
    """Returns a configuration as plain values, interpolations as they are written."""
    return {str(key): value for key, value in _plain(config).items() if key not in ELSEWHERE}


def _typed(options: Sequence[Override]) -> dict[str, Any]:
    """Returns the values that the options set, so that they stay when defaults change."""
    found = OmegaConf.create({})
    groups = _groups()
    for option in options:
        key = option.key_or_group
        if key not in groups and not option.is_delete() and key.partition(".")[0] not in ELSEWHERE:
            OmegaConf.update(found, key, _value(option.value()), force_add=True)
    return _plain(found)


def _differences(now: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Returns what `now` has otherwise than `base`, or in addition."""
    found: dict[str, Any] = {}
    for key, value in now.items():
        before = base.get(key)
        if key in base and isinstance(value, dict) and isinstance(before, dict):
            if inside := _differences(value, before):
                found[key] = inside
        elif key not in base or value != before:
            found[key] = value
    return found


def _gone(base: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the paths of what `base` has and `now` has not, the outermost only."""
    found: list[tuple[str, ...]] = []
    for key, value in base.items():
        if key not in now:
            found.append((str(key),))
        elif isinstance(value, dict) and isinstance(now[key], dict):
            found += [(str(key), *path) for path in _gone(value, now[key])]
    return found


def _value(value: Any) -> Any:
    """Returns an option's value as YAML holds it."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_value(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _value(each) for key, each in value.items()}
    return value
