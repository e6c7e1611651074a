"""The type of a task in the modules that a task is made of: they can't import it, since it imports them."""

from typing import Any

AnyTask = Any  # an etude.core.task.Task; what a technique may ask of it stands there
