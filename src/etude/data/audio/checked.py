"""The check of audio before training: a trained grader tells which files have defects."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etude.audio.grades import LOW_QUALITY, GradesAudio, GradesSegments, grade_audio
from etude.data.audio.batches import Clips
from etude.data.audio.build import UNIT
from etude.data.cache.fill import progress
from etude.data.cache.intact import sealed, unsealed
from etude.data.cache.store import write_aside
from etude.data.cache.version import FORMAT
from etude.wording import counted

SHOWN = 10  # files that the line names


def faulty_files(
    grader: str, clips: Sequence[Clips], *, cache: Path, find: Callable[..., Any] | None, load: Callable[..., Any] | None
) -> list[str]:
    """Returns a line that names the files below a quality of `LOW_QUALITY` with their defects, or that there are none.

    Pieces that are too short to be graded or silent are counted in the line.

    Args:
        grader: a run of task=grader, or one of its checkpoints.
        clips: the audio, each piece at the rate of the contract.
        cache: folder of results, which are kept for each grader and audio.
        find: returns the path for (run, option, protocol). load: returns (task, configuration) for a path.

    Raises:
        ValueError: the run is missing or of another task, or the audio has a lower rate than the grader's.
    """
    if find is None or load is None:
        raise ValueError("data.grader is set, but nothing here finds and loads runs; train.py does, or give find= and load=")
    path = find(grader, "data.grader", GradesSegments)
    places = [(clip, number) for clip in clips for number in range(len(clip))]
    text = json.dumps([[clip.pieces[n].key, clip.pieces[n].start, clip.pieces[n].stop] for clip, n in places])
    digest = hashlib.sha256(path.read_bytes() + text.encode() + clips[0].contract.fingerprint.encode()).hexdigest()[:16]
    kept = cache / f"{digest}-grades-{FORMAT}.json"
    if not kept.exists():
        task, _ = load(path)
        if not isinstance(task, GradesAudio):
            raise ValueError(
                f"data.grader={grader} holds a {type(task).__name__}, which grades no audio; give a run of task=grader"
            )
        rate = clips[0].contract.sample_rate
        if rate < task.contract.sample_rate:
            raise ValueError(
                f"data.grader={grader} was trained at {task.contract.sample_rate} samples a second, data.contract has {rate}; "
                f"train a grader with data.contract.sample_rate={rate}"
            )
        write_aside(kept, sealed(json.dumps(_graded(task, places)).encode()))
    found = json.loads(unsealed(kept))
    return [_line(found, len(places), grader)]


def _graded(task: GradesAudio, places: Sequence[tuple[Clips, int]]) -> list[dict[str, Any]]:
    """Returns the name, quality and told defects of each piece that can be graded."""
    found = []
    with progress("grading audio", len(places), "pieces") as advance:
        for clip, number in places:
            name, samples_n = clip.pieces[number].name, clip.samples_n(number).astype(np.float32) / np.float32(UNIT)
            try:
                grades = grade_audio(task, samples_n, clip.contract.sample_rate, name=name)
                found.append({"name": name, "quality": grades.quality, "told": grades.told()})
            except ValueError:  # too short for a window, or silent there
                found.append({"name": name, "quality": None, "told": ""})
            advance()
    return found


def _line(found: list[dict[str, Any]], count: int, grader: str) -> str:
    bad = sorted((each for each in found if each["quality"] is not None and each["quality"] < LOW_QUALITY), key=_quality)
    left = sum(each["quality"] is None for each in found)
    rest = f"; {counted(left, 'file is', 'files are')} too short or silent to be graded" if left else ""
    if not bad:
        return f"data.grader: no file of {count} is below quality {LOW_QUALITY:g}{rest}"
    named = "; ".join(f"{each['name']} ({each['told']})" for each in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    verb = "is" if len(bad) == 1 else "are"
    below = f"{len(bad)} of {counted(count, 'file')} {verb} below quality {LOW_QUALITY:g}"
    return f"data.grader: {below}, kept nevertheless: {named}{more}{rest}"


def _quality(each: dict[str, Any]) -> float:
    return float(each["quality"])
