"""Evaluates a grader on held-out audio with known defects: tables, curves, pictures.

Shapes: b segments, d defects, z defects with a place in the spectrum, k coarse bands, f frames.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from etude.audio.grades import APART_SECONDS, FOUND, GradesAudio, borders
from etude.metrics.audio.calibration import expected_calibration_error, reliability, sigmoid
from etude.metrics.audio.detection import (
    WINDOW_SECONDS,
    average_precision,
    border_times,
    confusion,
    match_borders,
    precision_recall,
    score_borders,
)
from etude.metrics.audio.mel_features import onset_strength, pick_onsets
from etude.report.grade_plots import (
    confusion_matrix,
    graded_timeline,
    precision_recall_curves,
    quality_scatter,
    reliability_diagram,
)
from etude.report.run_page import begin_report, end_report

NUM_SHOWN = 6  # segments in the report
Seen = dict[str, np.ndarray]
Row = dict[str, Any]


class TrainedGrader(GradesAudio, Protocol):
    """What an evaluation needs of a grader, beyond what grading files does."""

    band_defects: tuple[str, ...]
    temperatures: list[float]
    training: bool
    device: torch.device

    def train(self, mode: bool = True) -> Any:
        """Enters training mode, or evaluation mode."""
        ...

    def grades(self, batch: Mapping[str, Any]) -> Any:
        """Returns the logits of a batch."""
        ...


def score_grader(*, task: TrainedGrader, datamodule: Any, folder: Path, split: str = "test") -> tuple[list[Row], Row]:
    """Evaluates a grader on the held-out segments of its data: writes grader.csv, pictures and report.html.

    Temperatures and the thresholds of borders are those of the checkpoint, fitted on validation segments.

    Args:
        task: a trained grader. datamodule: the data of its training. folder: the run's folder. split: val or test.

    Returns:
        A row for each defect, and the figures of all of them together.

    Raises:
        ValueError: another split, or one without a segment.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split={split} is not held out; choose val or test")
    loader = datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()
    seen = collect(task, loader)
    rows, summary = defect_rows(task, seen), overall(task, seen)
    report = begin_report(f"Evaluation: grader, {split} split", folder)
    report.heading("All defects").facts([(name, value) for name, value in summary.items()])
    report.text(
        f"Measured on {summary['segments']} segments of {_seconds(task):.2f} s of held-out recordings, to which defects of known "
        "kind, place and strength were added. Quality by the known strengths is 1 + 9 * product of (1 - strength). Sections are "
        "joins of two recordings; onsets are the notes of scores where these are known, otherwise peaks of the spectral flux."
    )
    report.heading("Each defect").table(list(rows[0]), [list(row.values()) for row in rows])
    report.text(
        "Average precision: of whole segments, and of single frames. Precision and recall: of segments at a probability of "
        f"{FOUND}. Calibration error: of the probabilities of segments."
    )
    for name, picture in pictures(task, seen).items():
        (folder / f"{name}.png").write_bytes(picture)
        report.image(picture, alt=name.replace("_", " "))
    report.heading("Segments")
    report.text("Black lines: where the defect is in truth. Red: the probability that is said.")
    for number, picture in enumerate(segment_pictures(task, seen)):
        (folder / f"segment_{number}.png").write_bytes(picture)
        report.image(picture, alt=f"Segment {number}: its mel, and the probability of each defect over time")
    with (folder / "grader.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    end_report(report, folder)
    return rows, summary


def collect(task: TrainedGrader, batches: Iterable[Mapping[str, Tensor]]) -> Seen:
    """Returns the logits and the truth of all segments, styles and rows in one axis; truths begin with `true_`.

    Raises: ValueError if there is no segment.
    """
    was_training, parts = task.training, list[dict[str, Tensor]]()
    task.train(False)
    try:
        for batch in batches:
            given = {name: value.to(task.device) for name, value in batch.items()}
            with torch.inference_mode():
                logits = task.grades(given)._asdict()
            truth = {f"true_{name}": given[name].flatten(0, 1) for name in TRUTHS}
            parts.append({name: value.float().cpu() for name, value in {**logits, **truth}.items()})
    finally:
        task.train(was_training)
    if not parts:
        raise ValueError("there are no held-out segments to evaluate the grader on; give data.split a larger share for them")
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


TRUTHS = ("mel", "defects", "bands", "strength", "quality", "onsets", "sections")


def clip_probabilities(task: TrainedGrader, seen: Seen, *, calibrated: bool = True) -> np.ndarray:
    """Returns the probability of each defect in each segment, [b, d], with or without the temperatures."""
    return sigmoid(seen["clip"] / (np.array(task.temperatures) if calibrated else 1.0))


def defect_rows(task: TrainedGrader, seen: Seen) -> list[Row]:
    """Returns a row for each defect."""
    said, plain = clip_probabilities(task, seen), clip_probabilities(task, seen, calibrated=False)
    true = seen["true_defects"].max(-1)
    rows = []
    for place, name in enumerate(task.defects):
        positive, found = true[:, place] > 0.5, said[:, place] >= FOUND
        hits = int((positive & found).sum())
        strong = positive & (seen["true_strength"][:, place] >= 0.5)
        row: Row = {
            "defect": name,
            "segments": int(positive.sum()),
            "average precision": average_precision(said[:, place], positive),
            "of frames": average_precision(seen["frames"][:, place], seen["true_defects"][:, place]),
            "of bands": math.nan,
            "precision": hits / int(found.sum()) if found.any() else math.nan,
            "recall": hits / int(positive.sum()) if positive.any() else math.nan,
            "recall, strength from 0.5": float(found[strong].mean()) if strong.any() else math.nan,
            "calibration error": expected_calibration_error(said[:, place], positive),
            "without temperature": expected_calibration_error(plain[:, place], positive),
            "temperature": task.temperatures[place],
        }
        if name in task.band_defects:
            z = task.band_defects.index(name)
            row["of bands"] = average_precision(seen["bands"][:, z], seen["true_bands"][:, z])
        rows.append(row)
    return rows


def overall(task: TrainedGrader, seen: Seen) -> Row:
    """Returns the figures of all defects together, of the quality and of the borders."""
    said, plain, true = (
        clip_probabilities(task, seen),
        clip_probabilities(task, seen, calibrated=False),
        seen["true_defects"].max(-1),
    )
    precisions = [average_precision(said[:, place], true[:, place]) for place in range(len(task.defects))]
    quality, known = 1 + 9 * sigmoid(seen["quality"]), seen["true_quality"]
    rate = task.contract.sample_rate / task.contract.hop_length
    matched = {
        kind: score_borders(
            sigmoid(seen[kind]), seen[f"true_{kind}"], kind=kind, frame_rate=rate, threshold=task.border_thresholds[kind]
        )
        for kind in APART_SECONDS
    }
    flux = [pick_onsets(onset_strength(task.contract.denormalise(mel)), frame_rate=rate) + 0.5 / rate for mel in seen["true_mel"]]
    notes = [border_times(row, frame_rate=rate) for row in seen["true_onsets"]]
    return {
        "segments": len(said),
        "mean average precision": float(np.nanmean(precisions)),
        "quality, Pearson": _correlation(pearsonr, quality, known),
        "quality, Spearman": _correlation(spearmanr, quality, known),
        "quality, mean error": float(np.abs(quality - known).mean()),
        "onsets, F1 within 50 ms": matched["onsets"].f1,
        "onsets by spectral flux, F1": match_borders(flux, notes, window_seconds=WINDOW_SECONDS["onsets"]).f1,
        "sections, F1 within 0.5 s": matched["sections"].f1,
        "calibration error": expected_calibration_error(said, true),
        "calibration error without temperatures": expected_calibration_error(plain, true),
    }


def _correlation(measure: Any, one: np.ndarray, other: np.ndarray) -> float:
    varied = len(one) > 1 and np.ptp(one) > 0 and np.ptp(other) > 0
    return float(measure(one, other).statistic) if varied else math.nan


def pictures(task: TrainedGrader, seen: Seen) -> dict[str, bytes]:
    """Returns precision and recall, confusion, reliability and quality as pictures, by name."""
    said, plain, true = (
        clip_probabilities(task, seen),
        clip_probabilities(task, seen, calibrated=False),
        seen["true_defects"].max(-1),
    )
    curves: dict[str, Any] = {}
    for place, name in enumerate(task.defects):
        if true[:, place].any():
            found = precision_recall(said[:, place], true[:, place])
            area = average_precision(said[:, place], true[:, place])
            curves[f"{name} ({area:.2f})"] = (found.recall, found.precision)
    reliable: dict[str, Any] = {}
    for label, values in (("as the network says", plain), ("with temperatures", said)):
        bins = reliability(values, true)
        error = 100 * expected_calibration_error(values, true)
        reliable[f"{label} (error {error:.1f} %)"] = (bins.confidence, bins.frequency, bins.number)
    shown = (
        {"precision_recall": precision_recall_curves(curves, title="Defects of segments (average precision)")} if curves else {}
    )
    return shown | {
        "confusion": confusion_matrix(
            confusion(said, true, threshold=FOUND), ["none", *task.defects], title="Segments with at most one defect"
        ),
        "reliability": reliability_diagram(reliable, title="Reliability, all defects"),
        "quality": quality_scatter(1 + 9 * sigmoid(seen["quality"]), seen["true_quality"], title="Quality of segments"),
    }


def segment_pictures(task: TrainedGrader, seen: Seen) -> list[bytes]:
    """Returns pictures of some segments, those with the most defects first."""
    count = (seen["true_strength"] > 0).sum(1)
    order = np.argsort(-count, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(NUM_SHOWN, len(order))).astype(int)]
    rate = task.contract.sample_rate / task.contract.hop_length
    frames = sigmoid(seen["frames"][chosen] / np.array(task.temperatures)[:, None])
    found = []
    for at, index in enumerate(chosen.tolist()):
        peaks = {
            kind: borders(sigmoid(seen[kind][index]), kind, task.contract, task.border_thresholds[kind]).tolist()
            for kind in APART_SECONDS
        }
        named = zip(task.defects, seen["true_strength"][index], strict=True)
        strengths = [f"{name} {value:.2f}" for name, value in named if value]
        said, known = 1 + 9 * float(sigmoid(seen["quality"][index])), float(seen["true_quality"][index])
        found.append(
            graded_timeline(
                task.contract.denormalise(seen["true_mel"][index]),
                dict(zip(task.defects, frames[at], strict=True)),
                truth=dict(zip(task.defects, seen["true_defects"][index], strict=True)),
                frame_seconds=1 / rate,
                borders=peaks,
                title=f"{', '.join(strengths) or 'no defect'}; quality {known:.1f}, said {said:.1f}",
            )
        )
    return found


def _seconds(task: TrainedGrader) -> float:
    return float(task.segment_frames * task.contract.hop_length / task.contract.sample_rate)
