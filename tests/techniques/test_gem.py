"""The gradient that is used never points against a memory, in training, to 1e-12; refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from etude.techniques.continual.gem import Gem
from tests.techniques.projecting import never_points_against, refuses, watched


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"every": 3, "size": 6, "batch_size": 2, "margin": 0.9}  # so that every step is changed


def drawn(technique: Gem, task: Any) -> list[list[Any]]:
    return technique.memory.draw_each(technique.batch_size, technique.generator(task.steps_trained), of=task)


def test_no_step_points_against_a_memory(tmp_path: Path) -> None:
    never_points_against(watched(Gem, drawn), tmp_path)


def test_bad_options_a_large_memory_and_a_single_phase_are_told(tmp_path: Path) -> None:
    refuses(Gem, tmp_path)
