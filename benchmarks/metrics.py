"""Compares the speed of Etude's metrics with muspy's on a folder of MIDI files, reading included.

    python benchmarks/metrics.py FOLDER [--files 200] [--rounds 3] [--json OUT.json]

Both sides read every file and compute the same fourteen metrics at the file's own resolution, alternating file by file
in one process, so that other load affects both. It reports medians over rounds of the seconds for the folder, and
whether the values agree. If the folder has fewer files, transposed copies are added.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from peer import context
from symusic import Score

from etude.metrics.scores import harmony, pitch, rhythm
from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.tables import PIECE_METRICS, piece_metrics

Values = dict[str, float]


def measure_ticks(score: Score) -> int:
    """The length of the first bar; both sides get the same number, found outside the clock."""
    marks = score.time_signatures
    numerator, denominator = (marks[0].numerator, marks[0].denominator) if len(marks) else (4, 4)
    return 4 * score.ticks_per_quarter * numerator // denominator


def ours(path: Path, measure: int) -> Values:
    """Read with symusic, measure with Etude."""
    notes = NoteArray.from_score(Score(str(path)))
    return {
        "n_pitches_used": pitch.n_pitches_used(notes),
        "n_pitch_classes_used": pitch.n_pitch_classes_used(notes),
        "pitch_range": pitch.pitch_range(notes),
        "empty_beat_rate": rhythm.empty_beat_rate(notes),
        "empty_measure_rate": rhythm.empty_measure_rate(notes, measure_ticks=measure),
        "polyphony": harmony.polyphony(notes),
        "polyphony_rate": harmony.polyphony_rate(notes),
        "pitch_in_scale_rate": pitch.pitch_in_scale_rate(notes, root=0, mode="major"),
        "scale_consistency": pitch.scale_consistency(notes),
        "drum_in_pattern_rate": rhythm.drum_in_pattern_rate(notes, metre="duple"),
        "drum_pattern_consistency": rhythm.drum_pattern_consistency(notes),
        "pitch_entropy": pitch.pitch_entropy(notes),
        "pitch_class_entropy": pitch.pitch_class_entropy(notes),
        "groove_consistency": rhythm.groove_consistency(notes, measure_ticks=measure),
    }


def muspys(path: Path, measure: int) -> Values:
    """Read and measure with muspy."""
    import muspy

    music = muspy.read_midi(str(path))
    return {
        "n_pitches_used": muspy.n_pitches_used(music),
        "n_pitch_classes_used": muspy.n_pitch_classes_used(music),
        "pitch_range": muspy.pitch_range(music),
        "empty_beat_rate": muspy.empty_beat_rate(music),
        "empty_measure_rate": muspy.empty_measure_rate(music, measure),
        "polyphony": muspy.polyphony(music),
        "polyphony_rate": muspy.polyphony_rate(music),
        "pitch_in_scale_rate": muspy.pitch_in_scale_rate(music, 0, "major"),
        "scale_consistency": muspy.scale_consistency(music),
        "drum_in_pattern_rate": muspy.drum_in_pattern_rate(music, "duple"),
        "drum_pattern_consistency": muspy.drum_pattern_consistency(music),
        "pitch_entropy": muspy.pitch_entropy(music),
        "pitch_class_entropy": muspy.pitch_class_entropy(music),
        "groove_consistency": muspy.groove_consistency(music, measure),
    }


def everything(path: Path, measure: int) -> Values:
    """Read and compute all of Etude's metrics, those that muspy lacks included."""
    return piece_metrics(Score(str(path)))


def folder_of(source: Path, count: int, scratch: Path) -> list[Path]:
    """`count` files: those of `source`, then transposed copies of them written to `scratch`."""
    originals = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".mid", ".midi"))
    if not originals:
        sys.exit(f"{source}: no .mid or .midi files; give a folder that holds some")
    files = originals[:count]
    for number, path in enumerate(itertools.cycle(originals)):
        if len(files) >= count:
            return files
        score = Score(str(path)).shift_pitch(1 + number // len(originals))
        files.append(scratch / f"{number:05d}.mid")
        score.dump_midi(files[-1])
    raise AssertionError("unreachable: the cycle has no end")


def timed(function: Callable[[Path, int], Values], path: Path, measure: int) -> tuple[float, Values]:
    begin = time.perf_counter()
    values = function(path, measure)
    return time.perf_counter() - begin, values


def run(files: list[Path], rounds: int) -> dict[str, object]:
    """Seconds of each side in each round, and how far the values differ."""
    sides = {"etude": ours, "muspy": muspys, "etude, all metrics": everything}
    measures = [measure_ticks(Score(str(path))) for path in files]
    for function in sides.values():  # warm-up: imports and first calls are not measured
        function(files[0], measures[0])
    seconds: dict[str, list[float]] = {name: [0.0] * rounds for name in sides}
    compared = equal = 0
    for turn in range(rounds):
        for number, (path, measure) in enumerate(zip(files, measures, strict=True)):
            order = list(sides) if (turn + number) % 2 else list(sides)[::-1]
            found = {}
            for name in order:
                spent, found[name] = timed(sides[name], path, measure)
                seconds[name][turn] += spent
            for metric, value in found["etude"].items():
                other = float(found["muspy"][metric])
                compared += 1
                equal += int(abs(value - other) <= 1e-9 or (math.isnan(value) and math.isnan(other)))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["etude"], seconds["muspy"], strict=True)]
    return {
        "files": len(files),
        "rounds": rounds,
        "seconds": seconds,
        "median_seconds": medians,
        "times_faster": statistics.median(ratios),
        "times_faster_each_round": ratios,
        "values_compared": compared,
        "values_equal": equal,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def table(result: dict) -> str:
    """The result as a Markdown table."""
    files, medians = result["files"], result["median_seconds"]
    lines = [f"| {files} files, read and measured | seconds | ms a file | times as fast as muspy |", "|---|---:|---:|---:|"]
    labels = {
        "muspy": "muspy, 14 metrics",
        "etude": "Etude, the same 14",
        "etude, all metrics": f"Etude, all {len(PIECE_METRICS)}",
    }
    for name, label in labels.items():
        peer = result["seconds"]["muspy"]
        ratio = statistics.median(m / s for m, s in zip(peer, result["seconds"][name], strict=True))
        lines.append(f"| {label} | {medians[name]:.3f} | {1000 * medians[name] / files:.2f} | {ratio:.1f} |")
    low, high = min(result["times_faster_each_round"]), max(result["times_faster_each_round"])
    lines += [
        "",
        f"Median of {result['rounds']} rounds (the 14 metrics: {low:.0f} to {high:.0f} times). "
        f"{result['values_equal']} of {result['values_compared']} values equal to 1e-9.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder with MIDI files, searched with its subfolders")
    parser.add_argument("--files", type=int, default=200, help="how many files to measure (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured (default: 3)")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()
    if arguments.files < 1 or arguments.rounds < 1:
        parser.error("--files and --rounds must be 1 or more")
    with tempfile.TemporaryDirectory() as scratch:
        result = run(folder_of(arguments.folder, arguments.files, Path(scratch)), arguments.rounds)
    result |= context()
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
