"""Finds the folders of runs and reads what they hold: options, environment, curves, samples."""

import csv
import glob
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from etude.report.environment import read_environment
from etude.report.media import FILES, Sample, read_table
from etude.report.options import flatten

Points = list[tuple[float, float]]
WITHOUT_CURVE = ("step", "epoch")  # columns of metrics.csv
SUFFIXES = {"picture": ".png", "sound": ".wav", "score": ".mid"}


@dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Attributes:
        folder: of the run.
        label: a short name, unique among the runs that are compared.
        options: dotted key -> value, from config.yaml.
        environment: what environment.txt says: commit, Python, hardware.
        packages: package -> version, from environment.txt.
        curves: metric -> points (step, value), in the order of steps, from metrics.csv.
        samples: from samples/.
        notes: what is missing or damaged, one phrase each.
    """

    folder: Path
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Points] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = ()

    @property
    def steps(self) -> int:
        """The last step that a curve has; 0 without curves."""
        return int(max((points[-1][0] for points in self.curves.values()), default=-1)) + 1

    @property
    def monitor(self) -> str:
        """The metric that picks its best checkpoint; "" if it is not known."""
        return str(self.options.get("monitor") or "")

    @property
    def task(self) -> str:
        """The name of its task, such as language_model; "" if it is not known."""
        parts = str(self.options.get("task._target_", "")).split(".")
        return parts[-2] if len(parts) > 1 else ""


def is_run(folder: Path) -> bool:
    """Returns whether a training run has written to the folder."""
    return (folder / "config.yaml").is_file() or ((folder / "metrics.csv").is_file() and (folder / "checkpoints").is_dir())


def find_runs(names: Sequence[str], outputs: Path, *, least: int = 2, accepts: Callable[[Path], bool] = is_run) -> list[Path]:
    """Returns the folders of runs that `names` mean, without repetitions.

    names: folders of runs; folders that hold runs, such as a sweep; patterns with * and ?; `last` for the newest run in
    `outputs`. least: fewest runs, 1 or 2. accepts: whether a folder counts as that of a run.

    Raises:
        ValueError: one of them means no run, or all of them together fewer than `least`.
    """
    found = [folder for name in names for folder in _meant(str(name), outputs, accepts)]
    runs = list({folder.resolve(): folder for folder in found}.values())
    if len(runs) < least:
        one = f"means only {runs[0]}" if runs else "is empty"
        few = "one run" if least == 1 else "two runs"
        raise ValueError(f"runs=[{','.join(map(str, names))}] {one}; give at least {few}, a sweep's folder, or a pattern")
    return runs


def _meant(name: str, outputs: Path, accepts: Callable[[Path], bool]) -> list[Path]:
    if name == "last":
        newest = max((path for path in outputs.rglob("config.yaml")), key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise ValueError(f"runs=[last]: there is no run under {outputs}/; train first, or give outputs=FOLDER")
        return [newest.parent]
    path = Path(name).expanduser()
    if not path.exists() and any(sign in name for sign in "*?["):
        matches = sorted(glob.glob(str(path)))  # noqa: PTH207 - absolute, too
        runs = [run for match in matches for run in _inside(Path(match), accepts)]
        if not runs:
            raise ValueError(f"runs=[{name}]: no run's folder fits this pattern; a run's folder holds a config.yaml")
        return runs
    if not path.exists():
        raise ValueError(f"runs=[{name}]: there is no such folder; give a run's folder, a pattern, or last")
    runs = _inside(path, accepts)
    if not runs:
        raise ValueError(f"runs=[{name}]: not a run's folder, and none is in it; a run's folder holds a config.yaml")
    return runs


def _inside(path: Path, accepts: Callable[[Path], bool]) -> list[Path]:
    """Returns the folder if it is a run's, otherwise the runs directly in it, such as those of a sweep, in their order."""
    if not path.is_dir():
        return []
    if accepts(path):
        return [path]
    runs = [folder for folder in path.iterdir() if folder.is_dir() and accepts(folder)]
    return sorted(runs, key=lambda folder: (len(folder.name), folder.name) if folder.name.isdecimal() else (99, folder.name))


def labels(folders: Sequence[Path]) -> list[str]:
    """Returns a short name for each folder: as many of the last parts of its path as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    least = 2 if any(part[-1].isdecimal() for part in parts) else 1  # a trial's number says too little
    for length in range(least, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def read_run(folder: Path, label: str) -> Run:
    """Returns what the folder of a run holds; what is missing or damaged stands in its notes."""
    notes: list[str] = []
    options = _options(folder, notes)
    curves = _curves(folder / "metrics.csv", notes)
    samples = read_table(folder / "samples") or _untabled(folder / "samples")
    if not samples:
        notes.append("no samples")
    environment, packages = read_environment(folder), _packages(folder / "environment.txt")
    if not environment:
        notes.append("no environment.txt")
    return Run(folder, label, options, environment, packages, curves, samples, notes)


def _options(folder: Path, notes: list[str]) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        notes.append("no config.yaml")
        return {}
    try:
        loaded: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        return {str(key): _plain(value, folder) for key, value in flatten(loaded).items()}
    except Exception as error:  # a file may be malformed in any way
        notes.append(f"config.yaml can't be read ({type(error).__name__})")
        return {}


def _plain(value: Any, folder: Path) -> Any:
    """Returns a value in which the run's own folder has the same name in every run."""
    if not isinstance(value, str):
        return value
    for name in (str(folder.resolve()), str(folder)):
        value = value.replace(name, "<run>")
    return value


def _curves(path: Path, notes: list[str]) -> dict[str, Points]:
    if not path.is_file():
        notes.append("no metrics.csv")
        return {}
    with path.open(newline="", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if _number(row.get("step")) is not None]
    names = [name for name in (rows[0] if rows else ()) if name and name not in WITHOUT_CURVE]
    found: dict[str, Points] = {}
    for name in names:
        points = [(step, value) for row in rows if (value := _number(row.get(name))) is not None
                  and (step := _number(row["step"])) is not None]  # fmt: skip
        if points:
            found[name] = sorted(points)
    if not found:
        notes.append("metrics.csv is empty")
    return found


def _number(text: object) -> float | None:
    """Returns a finite number, None for anything else; the last line of a file may be cut."""
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _packages(path: Path) -> dict[str, str]:
    text = path.read_text(errors="replace") if path.is_file() else ""
    pairs = (line.partition("==") for line in text.partition("\npackages:")[2].splitlines())
    return {name: version for name, separator, version in pairs if separator}


def _untabled(folder: Path) -> list[Sample]:
    """Returns the samples of a run that wrote no table, one for each stem."""
    stems = sorted({path.stem for path in folder.glob("*") if path.suffix in SUFFIXES.values()}) if folder.is_dir() else []
    samples = []
    for stem in stems:
        files = {kind: folder / f"{stem}{suffix}" for kind, suffix in SUFFIXES.items()}
        picture, sound, score = (files[kind] if files[kind].is_file() else None for kind in FILES)
        samples.append(Sample(stem, picture, sound, score))
    return samples
