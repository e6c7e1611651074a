"""A run at Weights & Biases, online or in files: curves, options, pictures, sounds, a table of samples, checkpoints."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]
from pytorch_lightning.utilities import rank_zero_only

from etude.report.environment import checkout, read_environment
from etude.report.media import Sample

STAGING = "WANDB_DATA_DIR"  # the variable that names the folder of artefacts before their upload
STATE = ("config.yaml", "environment.txt", "code.patch")  # files of a run's folder that say how to repeat it


class WandbRun(WandbLogger):
    """Lightning's logger for W&B, which also shows options, samples and checkpoints.

    W&B itself notes the commit and the uncommitted changes of the code. If it refuses the run (a wrong key, a network that fails
    now), one line says so and the run logs to files; `wandb sync FOLDER` uploads them later.

    Args:
        project: the project at W&B.
        name: of the run.
        save_dir: the run's folder; files are written to its subfolder wandb/.
        offline: write files only.
        id: of the run; a run that goes on keeps it.
        resume: what W&B does with an id that it knows.
        group: runs that belong together; the runs of a sweep get its name here.
        tags: words to filter runs by.
        checkpoints: which checkpoints to keep as artefacts at the end, any of best and last, with these names as aliases. Files
            are not copied, so an offline run must keep them until it is uploaded. None by default, since they are large.
        options: further options of `wandb.init`, such as entity or notes.
    """

    def __init__(
        self,
        *,
        project: str,
        name: str,
        save_dir: str,
        offline: bool,
        id: str | None,
        resume: str | None,
        group: str | None = None,
        tags: Sequence[str] = (),
        checkpoints: Sequence[Literal["best", "last"]] = (),
        **options: Any,
    ) -> None:
        if unknown := sorted(set(checkpoints) - {"best", "last"}):
            raise ValueError(f"logger.wandb.checkpoints has {unknown}; it may hold best and last, as in [best,last]")
        super().__init__(
            project=project, name=name, save_dir=save_dir, offline=offline, id=id, log_model=False, resume=resume, group=group,
            tags=list(tags), **options,
        )  # fmt: skip
        self.checkpoints = tuple(checkpoints)
        self._staging = os.environ.get(STAGING) or str(Path(save_dir).resolve() / "wandb" / "artefacts")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, which is started when it is first asked for."""
        import wandb

        start: Any = WandbLogger.experiment.fget  # type: ignore[attr-defined]
        if self._experiment is not None:
            return start(self)
        self._wandb_init.setdefault("settings", wandb.Settings(git_root=None if (root := checkout()) is None else str(root)))
        try:
            return start(self)
        except wandb.errors.Error as error:
            if self._offline:
                raise
            reason = " ".join(str(error).split())
        print(f"W&B refuses this run ({reason}); it logs offline; upload it later with `wandb sync FOLDER`", file=sys.stderr)
        wandb.teardown()  # its process keeps the settings that it was started with
        self._offline = True
        return start(self)

    @rank_zero_only
    def show_options(self, options: Mapping[str, Any], *, monitor: str, folder: Path) -> None:
        self.log_hyperparams({**options, "environment": read_environment(folder)})
        for pattern in STATE:
            for file in folder.glob(pattern):
                self.experiment.save(str(file), base_path=str(folder), policy="now")

    @rank_zero_only
    def show_picture(self, name: str, file: Path, *, step: int) -> None:
        self.log_image(name, [str(file)], step=step)

    @rank_zero_only
    def show_sound(self, name: str, file: Path, *, step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:  # W&B copies it, and MP3 takes a tenth of the space
            # its own key, since W&B keeps one kind of media under each
            self.log_audio(f"{name} sound", [str(_as_mp3(file, Path(folder)))], step=step)

    @rank_zero_only
    def show_table(self, name: str, samples: Sequence[Sample], *, step: int) -> None:
        import wandb

        columns = dict.fromkeys(column for sample in samples for column in sample.values)
        cells = {column: _alike([sample.values.get(column) for sample in samples]) for column in columns}
        with tempfile.TemporaryDirectory() as folder:
            rows = [
                [
                    sample.name,
                    *(cells[column][place] for column in columns),
                    wandb.Image(str(sample.picture)) if sample.picture is not None else None,
                    wandb.Audio(str(_as_mp3(sample.sound, Path(folder)))) if sample.sound is not None else None,
                ]
                for place, sample in enumerate(samples)
            ]
            with _staged_in(self._staging):
                table: Any = wandb.Table(columns=["sample", *columns, "picture", "sound"], data=rows)
                self.log_metrics({name: table}, step=step)

    @rank_zero_only
    def show_result(self, result: Mapping[str, float], *, checkpoints: Mapping[str, Path], step: int) -> None:
        import wandb

        run = self.experiment
        run.summary.update(dict(result))
        for alias in self.checkpoints:
            if alias in checkpoints:
                artifact: Any = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata={**result, "step": step})
                artifact.add_file(str(checkpoints[alias]), policy="immutable")
                run.log_artifact(artifact, aliases=[alias, f"step-{step}"] if alias == "last" else [alias])


def _alike(values: Sequence[object]) -> list[object]:
    """Returns the values of a column of W&B's table, which has one type: numbers, or else text; None stays."""
    if all(value is None or isinstance(value, int | float) for value in values):
        return list(values)
    return [None if value is None else str(value) for value in values]


@contextmanager
def _staged_in(folder: str) -> Iterator[None]:
    """Within this context W&B copies the files of artefacts to `folder`, not to the user's home."""
    before = os.environ.get(STAGING)
    os.environ[STAGING] = folder
    try:
        yield
    finally:
        os.environ.pop(STAGING)
        if before is not None:
            os.environ[STAGING] = before


def _as_mp3(file: Path, folder: Path) -> Path:
    """Writes a WAV file as MP3 to `folder`; returns its path."""
    import soundfile

    samples, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)
    path = folder / f"{file.stem}.mp3"
    soundfile.write(path, samples, sample_rate)
    return path
