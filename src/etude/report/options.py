"""Nested options as one dictionary with dotted keys."""

from collections.abc import Mapping
from typing import Any


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested options under dotted keys; lists and empty mappings stay values."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found
