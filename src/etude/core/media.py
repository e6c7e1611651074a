"""Pictures and sounds for the loggers that can show them: TensorBoard and W&B; a CSV file can't."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


def log_pictures(trainer: pl.Trainer, name: str, files: Iterable[Path]) -> None:
    """Sends PNG files to every logger that takes images, under `name` and the files' stems."""
    for file in files:
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # W&B
                logger.log_image(f"{name}/{file.stem}", [str(file)])
            elif hasattr(logger.experiment, "add_image"):  # TensorBoard
                from matplotlib.image import imread

                board: Any = logger.experiment
                picture = imread(io.BytesIO(file.read_bytes()), format="png")
                board.add_image(f"{name}/{file.stem}", picture[..., :3], trainer.global_step, dataformats="HWC")


def log_sounds(trainer: pl.Trainer, name: str, files: Iterable[Path]) -> None:
    """Sends WAV files to every logger that takes audio, under `name` and the files' stems."""
    for file in files:
        for logger in trainer.loggers:
            if hasattr(logger, "log_audio"):  # W&B
                logger.log_audio(f"{name}/{file.stem}", [str(file)])
            elif hasattr(logger.experiment, "add_audio"):  # TensorBoard
                import soundfile

                board: Any = logger.experiment
                samples, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)
                board.add_audio(f"{name}/{file.stem}", samples.mean(axis=1)[None], trainer.global_step, sample_rate=sample_rate)
