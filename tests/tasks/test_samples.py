"""Samples: what can't be rendered here is said before anything is drawn."""

from pathlib import Path
from typing import Any

import pytest

from etude.tasks.samples import write_samples


def test_a_missing_synthesizer_is_named_before_samples_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    task: Any = None  # not touched
    with pytest.raises(ValueError, match=r"needs the program fluidsynth.*install it"):
        write_samples(task=task, folder=tmp_path / "run", synthesizer="fluidsynth")
    assert not (tmp_path / "run").exists()
