"""Sends pictures and audio to the loggers that support them, TensorBoard and W&B."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


def log_pictures(trainer: pl.Trainer, name: str, files: Iterable[Path]) -> None:
    """Sends PNG files to every logger that takes images, under `name` and the files' stems."""
    for file in files:
        for logger in _loggers(trainer):
            if hasattr(logger, "log_image"):  # W&B
                logger.log_image(f"{name}/{file.stem}", [str(file)])
            elif hasattr(logger.experiment, "add_image"):  # TensorBoard
                from matplotlib.image import imread

                picture = imread(io.BytesIO(file.read_bytes()), format="png")
                logger.experiment.add_image(f"{name}/{file.stem}", picture[..., :3], trainer.global_step, dataformats="HWC")


def log_sounds(trainer: pl.Trainer, name: str, files: Iterable[Path]) -> None:
    """Sends WAV files to every logger that takes audio, under `name` and the files' stems."""
    for file in files:
        for logger in _loggers(trainer):
            if hasattr(logger, "log_audio"):  # W&B
                logger.log_audio(f"{name}/{file.stem}", [str(file)])
            elif hasattr(logger.experiment, "add_audio"):  # TensorBoard
                import soundfile

                samples, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)
                mono = samples.mean(axis=1)[None]
                logger.experiment.add_audio(f"{name}/{file.stem}", mono, trainer.global_step, sample_rate=sample_rate)


def _loggers(trainer: pl.Trainer) -> list[Any]:
    return list(trainer.loggers)
