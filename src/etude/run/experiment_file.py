"""Writes options as a file of conf/experiment."""

from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from omegaconf import OmegaConf


def experiment_file(options: Sequence[str], *, is_group: Callable[[str], bool], comments: Sequence[str]) -> str:
    """Returns the text of a file for conf/experiment that stands for these options; later options take precedence.

    is_group: whether an option chooses a file of conf/. comments: lines at the top.
    """
    defaults: dict[str, Any] = {}
    settings = OmegaConf.create({})
    notes = []
    for option in OverridesParser.create().parse_overrides(list(options)):
        if is_group(option.key_or_group):
            defaults[option.key_or_group] = None if option.is_delete() else _value(option.value())
        elif option.is_delete():
            notes.append(f"without {option.key_or_group}: add {option.input_line} on the command line")
        elif option.key_or_group.partition(".")[0] not in ("hydra", "outputs", "cache_dir", "ckpt"):
            OmegaConf.update(settings, option.key_or_group, _value(option.value()), force_add=True)
    lines = ["# @package _global_", *(f"# {line}" for line in [*comments, *notes])]
    if defaults:
        chosen = [{f"override /{group}": choice} for group, choice in defaults.items()]
        lines.append(OmegaConf.to_yaml(OmegaConf.create({"defaults": chosen})))
    if settings:
        lines.append(OmegaConf.to_yaml(settings))
    return "\n".join(lines)


def _value(value: Any) -> Any:
    """Returns an option's value as YAML holds it."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_value(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _value(each) for key, each in value.items()}
    return value
