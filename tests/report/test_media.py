"""Pictures and sounds reach the loggers that can show them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from etude.render.scores import write_audio
from etude.report.media import Sample, log_pictures, log_sounds, read_table, show_samples, write_table
from etude.report.style_plots import mel_panels
from etude.report.tensorboard_run import TensorBoardRun
from tests.toys import trainer


class Pages:
    """A dashboard that remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, Any]] = []

    def show_options(self, options: Mapping[str, Any], *, monitor: str, folder: Path) -> None:
        self.shown.append((monitor, options))

    def show_picture(self, name: str, file: Path, *, step: int) -> None:
        self.shown.append((name, file))

    show_sound = show_picture

    def show_table(self, name: str, samples: Sequence[Sample], *, step: int) -> None:
        self.shown.append((name, samples))

    def show_result(self, result: Mapping[str, float], *, checkpoints: Mapping[str, Path], step: int) -> None:
        self.shown.append(("result", result))


def test_every_logger_is_served_as_it_can(tmp_path: Path) -> None:
    picture, sound = tmp_path / "roll.png", tmp_path / "roll.wav"
    picture.write_bytes(mel_panels({"a": np.zeros((4, 5))}, frame_seconds=0.1))
    write_audio(sound, np.zeros((2, 800), np.float32), 8000)
    pages = Pages()
    run = trainer(tmp_path, max_steps=1)
    loggers: list[Any] = [
        CSVLogger(tmp_path, name="csv", version=""),
        TensorBoardRun(save_dir=str(tmp_path), name="board", version=""),
        pages,
    ]
    run.loggers = loggers
    log_pictures(run, "live", [picture])
    log_sounds(run, "live", [sound])
    assert pages.shown == [("live/roll", picture), ("live/roll", sound)]
    loggers[1].experiment.flush()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert board.Tags()["images"] == ["live/roll"] and board.Tags()["audio"] == ["live/roll"]
    assert board.Images("live/roll")[0].width > 100 and board.Audio("live/roll")[0].sample_rate == 8000


def test_a_table_of_samples_is_read_as_it_was_written(tmp_path: Path) -> None:
    for name in ("a.png", "a.wav"):
        (tmp_path / name).write_bytes(b"x")
    first = Sample("a", tmp_path / "a.png", tmp_path / "a.wav", values={"asked key": "G major, or so", "notes": 3, "share": 0.25})
    second = Sample("b", score=tmp_path / "gone.mid", values={"notes": 0})
    write_table(tmp_path, [first, second])
    assert read_table(tmp_path) == [first, Sample("b", values={"notes": 0})]  # a file that is gone is left out
    assert read_table(tmp_path / "elsewhere") == []


def test_samples_are_shown_once_and_only_to_dashboards(tmp_path: Path) -> None:
    samples = [Sample("a", tmp_path / "a.png", tmp_path / "a.wav", values={"notes": 3}), Sample("b")]
    pages = Pages()
    show_samples([CSVLogger(tmp_path), pages], "samples", samples, step=4)
    assert pages.shown == [("samples/a", tmp_path / "a.png"), ("samples/a", tmp_path / "a.wav"), ("samples/table", samples)]
    show_samples([pages], "samples", [], step=5)
    assert len(pages.shown) == 3
