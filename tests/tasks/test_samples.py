"""Samples: what can't be rendered here is said before anything is drawn."""

from pathlib import Path
from typing import Any

import pytest
from symusic import Note, Score, Track

from etude.tasks.samples import write_samples


def test_a_missing_synthesizer_is_named_before_samples_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    task: Any = None  # not touched
    with pytest.raises(ValueError, match=r"needs the program fluidsynth.*install it"):
        write_samples(task=task, folder=tmp_path / "run", synthesizer="fluidsynth")
    assert not (tmp_path / "run").exists()


def test_a_sample_without_notes_is_told_and_the_others_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Beginner:
        """Draws one empty score and one of a note."""

        def sample(self, **_: Any) -> list[Score]:
            empty, played = Score(480), Score(480)
            empty.tracks.append(Track())
            played.tracks.append(Track(notes=[Note(0, 480, 60, 80)]))
            return [empty, played]

    task: Any = Beginner()
    files = write_samples(task=task, folder=tmp_path, num_samples=2, audio=False)
    assert [path.name for path in files] == ["000.mid", "001.mid"] and all(path.is_file() for path in files)
    assert (tmp_path / "samples" / "001.png").is_file() and not (tmp_path / "samples" / "000.png").exists()
    assert "000.mid: no notes" in capsys.readouterr().err and "no notes" in (tmp_path / "report.html").read_text()
