"""Pictures and sounds reach the loggers that can show them."""

from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from etude.render.scores import write_audio
from etude.report.media import log_pictures, log_sounds
from etude.report.style_plots import mel_panels
from tests.toys import trainer


class Pages:
    """As much of W&B's logger as is asked of it."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, list[str]]] = []
        self.experiment = object()

    def log_image(self, key: str, images: list[str]) -> None:
        self.shown.append((key, images))

    log_audio = log_image


def test_every_logger_is_served_as_it_can(tmp_path: Path) -> None:
    picture, sound = tmp_path / "roll.png", tmp_path / "roll.wav"
    picture.write_bytes(mel_panels({"a": np.zeros((4, 5))}, frame_seconds=0.1))
    write_audio(sound, np.zeros((2, 800), np.float32), 8000)
    pages = Pages()
    run = trainer(tmp_path, max_steps=1)
    loggers: list[Any] = [
        CSVLogger(tmp_path, name="csv", version=""),
        TensorBoardLogger(tmp_path, name="board", version=""),
        pages,
    ]
    run.loggers = loggers
    log_pictures(run, "live", [picture])
    log_sounds(run, "live", [sound])
    assert pages.shown == [("live/roll", [str(picture)]), ("live/roll", [str(sound)])]
    loggers[1].experiment.flush()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert board.Tags()["images"] == ["live/roll"] and board.Tags()["audio"] == ["live/roll"]
    assert board.Images("live/roll")[0].width > 100 and board.Audio("live/roll")[0].sample_rate == 8000
