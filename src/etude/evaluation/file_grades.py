"""Grades a user's audio files: a CSV, a page with the place of each defect in time, and warnings for bad files."""

import csv
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.audio.files import AUDIO_SUFFIXES, AudioError, read_audio
from etude.audio.grades import FileGrades, GradesAudio, clock, grade_audio
from etude.audio.resampling import resample
from etude.durable import replacing
from etude.report.grade_plots import graded_timeline
from etude.report.run_page import begin_report, end_report
from etude.wording import counted

SHOWN = 20  # files with a picture, the worst ones
MOST_SECONDS = 180.0  # of a picture


@dataclass(frozen=True)
class Graded:
    """A file with its grades, or with the reason why it has none."""

    name: str
    path: Path
    grades: FileGrades | None
    reason: str = ""


def grade_files(
    *, task: GradesAudio, folder: Path, audio: str | None = None, out: str | None = None, threshold: float = 6.0,
    probability: float = 0.5, overwrite: bool = False,
) -> list[Graded]:  # fmt: skip
    """Grades an audio file or all audio files of a folder; writes the CSV and report.html, and warns on stderr.

    A file takes about 8 bytes of memory for each of its samples. Its channels are averaged, those in antiphase inverted.

    Args:
        task: a trained grader. folder: the run's folder, for the page.
        audio: a file or a folder. out: the CSV; None for grades.csv in the run's folder. overwrite: whether `out` may exist.
        threshold: quality, 1 to 10, below which a file is warned of. probability: from which a defect counts as found, in (0, 1).

    Returns:
        The files in the order of their names, those that can't be graded included.

    Raises:
        ValueError: no audio, an option out of range, `out` exists, or no file that can be graded.
    """
    if not 1 <= threshold <= 10:
        raise ValueError(f"threshold is {threshold}, must be a quality from 1 to 10; 6 is the default")
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}, must be above 0 and below 1; 0.5 is the default")
    path = folder / "grades.csv" if out is None else Path(out).expanduser()
    if path.suffix != ".csv":
        raise ValueError(f"out={out} must end in .csv")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(f"out={out} exists already; give another out, or overwrite=true to replace it")
    found = list(_graded(task, _audio_files(audio)))
    good = [each for each in found if each.grades is not None]
    if not good:
        raise ValueError(f"audio={audio}: no file can be graded: {'; '.join(f'{e.reason}' for e in found[:3])}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_csv(path, found, task.defects, probability, threshold)
    _write_page(task, folder, found, probability, threshold)
    for each in found:
        if each.grades is None:
            print(f"not graded: {each.reason}", file=sys.stderr)
        elif each.grades.quality < threshold:
            print(f"warning: {each.name}: {each.grades.told(probability)}", file=sys.stderr)
    low = sum(each.grades is not None and each.grades.quality < threshold for each in found)
    print(f"graded {counted(len(good), 'file')}, {low} below quality {threshold:g}; {path}", file=sys.stderr)
    return found


def _audio_files(audio: str | None) -> list[tuple[str, Path]]:
    if audio is None:
        raise ValueError("audio is missing; give a file or a folder: audio=my_recordings")
    root = Path(audio).expanduser()
    if root.is_file():
        return [(root.name, root)]
    if not root.is_dir():
        raise ValueError(f"audio={audio}: there is no such file or folder; give one with audio in it")
    paths = sorted(Path(parent, name) for parent, _, names in os.walk(root) for name in names)
    paths = [path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")]
    if not paths:
        raise ValueError(f"audio={audio} holds no audio; give a folder with {', '.join(sorted(AUDIO_SUFFIXES))} files")
    return [(str(path.relative_to(root)), path) for path in paths]


def _graded(task: GradesAudio, files: list[tuple[str, Path]]) -> Iterator[Graded]:
    for name, path in files:
        try:
            samples_n, rate = _mono(path)
            yield Graded(name, path, grade_audio(task, samples_n, rate, name=str(path)))
        except (AudioError, ValueError) as error:
            yield Graded(name, path, None, str(error))


def _mono(path: Path) -> tuple[np.ndarray, int]:
    """Returns the mono mix of a file [n] and its sample rate."""
    samples_1n, rate = read_audio(path, mono=True)
    return samples_1n[0].numpy(), rate


def _row(each: Graded, defects: tuple[str, ...], probability: float, threshold: float) -> dict[str, Any]:
    grades = each.grades
    if grades is None:
        return {"file": each.name, "warning": each.reason}
    row: dict[str, Any] = {
        "file": each.name,
        "seconds": round(grades.seconds, 2),
        "quality": round(grades.quality, 2),
        "lowest_quality": round(float(grades.window_quality_w.min()), 2),
        "warning": f"below quality {threshold:g}" if grades.quality < threshold else "",
        "onsets_per_second": round(len(grades.onsets) / grades.seconds, 2),
        "sections": " ".join(f"{time:.1f}" for time in grades.sections),
    }
    places = grades.found(probability)
    for number, name in enumerate(defects):
        row[name] = round(float(grades.probability_d[number]), 4)
        row[f"{name}_places"] = " ".join(f"{a:.2f}-{b:.2f}" for a, b in places.get(name, []))
    return row


def _write_csv(path: Path, found: list[Graded], defects: tuple[str, ...], probability: float, threshold: float) -> None:
    columns = ["file", "seconds", "quality", "lowest_quality", "warning", "onsets_per_second", "sections"]
    columns += [column for name in defects for column in (name, f"{name}_places")]
    with replacing(path) as aside, Path(aside).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(_row(each, defects, probability, threshold) for each in found)


def _write_page(task: GradesAudio, folder: Path, found: list[Graded], probability: float, threshold: float) -> None:
    report = begin_report("Grades", folder)
    worst = sorted((each for each in found if each.grades is not None), key=_quality)
    low = [each for each in worst if _quality(each) < threshold]
    report.text(
        f"{counted(len(worst), 'file')}, of them {len(low)} below quality {threshold:g}; the lowest first. Quality: 1 to 10, the "
        f"mean of windows. A defect is listed from a probability of {probability:g} on, with its most probable places."
    )
    rows = [[each.name, *_cells(each, probability)] for each in worst]
    report.table(["file", "length", "quality", "lowest", "defects"], rows)
    left = [[each.name, each.reason] for each in found if each.grades is None]
    if left:
        report.heading("Not graded").table(["file", "why"], left)
    report.heading("The lowest" if len(worst) > SHOWN else "Each file")
    for each in worst[:SHOWN]:
        assert each.grades is not None
        report.image(file_picture(task, each), alt=f"{each.name}: {each.grades.told(probability)}")
    end_report(report, folder)


def _quality(each: Graded) -> float:
    return math.inf if each.grades is None else each.grades.quality


def _cells(each: Graded, probability: float) -> list[object]:
    grades = each.grades
    assert grades is not None
    told = grades.told(probability).partition(": ")[2]
    return [clock(grades.seconds), round(grades.quality, 1), round(float(grades.window_quality_w.min()), 1), told or "none"]


def file_picture(task: GradesAudio, each: Graded) -> bytes:
    """Returns a picture of a file: its mel, the probability of each defect over time, its quality; at most three minutes."""
    grades = each.grades
    assert grades is not None
    samples_n, rate = _mono(each.path)
    frames = min(grades.frames_df.shape[1], round(MOST_SECONDS / grades.frame_seconds))
    shown_n = samples_n[: round(frames * grades.frame_seconds * rate)]
    mel_mf = task.contract.log_mel(_resampled(shown_n, rate, task.contract.sample_rate))[:, :frames]
    end = frames * grades.frame_seconds
    half = task.segment_frames * grades.frame_seconds / 2
    inside = grades.window_start_w + half < end
    more = f", its first {clock(end)}" if grades.seconds > end + 1 else ""
    return graded_timeline(
        mel_mf,
        dict(zip(grades.defects, grades.frames_df[:, :frames], strict=True)),
        frame_seconds=grades.frame_seconds,
        borders={"sections": [float(time) for time in grades.sections if time < end]},
        quality=(grades.window_start_w[inside] + half, grades.window_quality_w[inside]),
        title=f"{each.name}{more}: quality {grades.quality:.1f}",
    )


def _resampled(samples_n: np.ndarray, old: int, new: int) -> torch.Tensor:
    return resample(torch.from_numpy(samples_n)[None], old, new)[0]
