"""A placeholder type for `Task`, for modules that `etude.core.task` imports and that therefore can't import it."""

from typing import Any

AnyTask = Any  # always an etude.core.task.Task
