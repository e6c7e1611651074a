"""Which class a factory of the configuration builds."""

import functools
from collections.abc import Callable
from typing import Any


def kind_of(build: Callable[..., Any]) -> Any:
    """Returns the class or function that a factory calls: that of a `functools.partial`, which Hydra makes, or itself."""
    return build.func if isinstance(build, functools.partial) else build
