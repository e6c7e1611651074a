"""A run on TensorBoard: curves, options with the final metric, pictures, sounds, a table of samples."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from etude.report.media import Sample
from etude.report.options import flatten
from etude.report.reports import format_cell


class TensorBoardRun(TensorBoardLogger):
    """Lightning's logger for TensorBoard, which also shows options and samples.

    Args:
        save_dir: the run's folder.
        name: its subfolder with the event files.
        version: a subfolder of that; "" for none.
        settings: further options of Lightning's logger and of torch's SummaryWriter, such as flush_secs.
    """

    def __init__(self, *, save_dir: str, name: str, version: str, **settings: Any) -> None:
        super().__init__(save_dir, name=name, version=version, default_hp_metric=False, **settings)

    @rank_zero_only
    def show_options(self, options: Mapping[str, Any], *, monitor: str, folder: Path) -> None:
        from torch.utils.tensorboard.summary import hparams

        flat = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in flatten(options).items()}
        # the values come from the curves of these names; `log_hyperparams` would add a point to them
        summaries: Any = hparams  # torch gives no types
        for summary in summaries(flat, {monitor: 0.0, f"best/{monitor}": 0.0}):
            self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def show_picture(self, name: str, file: Path, *, step: int) -> None:
        from matplotlib.image import imread

        picture = imread(io.BytesIO(file.read_bytes()), format="png")
        self.experiment.add_image(name, picture[..., :3], step, dataformats="HWC")

    @rank_zero_only
    def show_sound(self, name: str, file: Path, *, step: int) -> None:
        import soundfile

        samples, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)
        self.experiment.add_audio(name, samples.mean(axis=1)[None], step, sample_rate=sample_rate)

    @rank_zero_only
    def show_table(self, name: str, samples: Sequence[Sample], *, step: int) -> None:
        columns = list(dict.fromkeys(column for sample in samples for column in sample.values))
        rows = [["sample", *columns], ["---"] * (1 + len(columns))]
        rows += [[sample.name, *(format_cell(sample.values.get(column)) for column in columns)] for sample in samples]
        self.experiment.add_text(name, "\n".join("| " + " | ".join(row) + " |" for row in rows), step)

    @rank_zero_only
    def show_result(self, result: Mapping[str, float], *, checkpoints: Mapping[str, Path], step: int) -> None:
        for name, value in result.items():
            self.experiment.add_scalar(name, value, step)
        self.experiment.flush()
