"""Evaluate a synthesis model against floors: the mean spectrum, and a linear map from the notes of a frame to its mel."""

import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.audio.griffin_lim import GriffinLim
from etude.audio.mel import MelContract
from etude.core.score_protocols import PlaysScores
from etude.evaluation.perceptual import opening
from etude.metrics.audio.mel_distances import frechet_distance, log_mel_l1
from etude.metrics.audio.mel_features import chroma_correlation, onset_agreement
from etude.metrics.audio.note_finder import NoteFinder
from etude.metrics.audio.notes import Floats, note_f1
from etude.report.roll_plots import roll_above_mels
from etude.report.run_page import begin_report, end_report

ROWS = {
    "mean": "the mean spectrum of the training audio in every frame",
    "linear": "a linear map from the notes of a frame to its mel, fitted to the training data (ridge regression)",
    "model": "the model, from the notes alone",
    "rebuilt": "the model with the latents that its encoder finds in the recording, not a prediction",
    "true": "the recording's own mel through the same vocoder; only with task.perceptual_songs",
}
RIDGE = 1.0  # added to the diagonal, in frames
MAX_FRAMES = 60_000  # of the training audio that the linear map is fitted to
SHOWN_SECONDS = 10.0
Row = dict[str, Any]


def score_synthesis(
    *,
    task: PlaysScores,
    datamodule: Any,
    folder: Path,
    split: str = "test",
    num_songs: int | None = None,
    perceptual_songs: int = 0,
) -> list[Row]:
    """Evaluates a synthesis model: writes synthesis.csv, a picture for each style and report.html.

    The table has the rows of `ROWS` for each style. Predictions are compared with the mels of the recordings, frame by frame.

    Args:
        task: a trained model.
        datamodule: the data module of its training, with scores.
        folder: the run's folder.
        split: val or test.
        num_songs: largest number of pieces of each style; None for all.
        perceptual_songs: of each style so many pieces are made sound by Griffin-Lim, and the notes that a network finds in their
            first 15 s are compared with those that it finds in the recording (`note_f1`); needs the packages of the extra
            `perceptual`. 0 for none.

    Returns:
        The rows of the table.

    Raises:
        ValueError: an option is out of its range, or the data has no notes or no piece in the split.
    """
    if split not in ("val", "test"):
        raise ValueError(f"task.split={split} is not held out; choose val or test")
    if num_songs is not None and num_songs < 1:
        raise ValueError(f"num_songs is {num_songs}, must be at least 1, or null for all")
    if perceptual_songs < 0:
        raise ValueError(f"perceptual_songs is {perceptual_songs}, must be at least 0; 0 compares mels only")
    finder = NoteFinder() if perceptual_songs else None
    if not datamodule.score:
        raise ValueError("the evaluation of synthesis needs scores; give data with scores, such as +data.score=true")
    print("fitting the linear map", file=sys.stderr)
    floor = LinearMap.fitted(_training_frames(datamodule))
    report = begin_report(f"Evaluation: synthesis, {split} split", folder)
    rows: list[Row] = []
    for style in datamodule.styles:
        count = datamodule.num_pieces(split, style)
        if not count:
            raise ValueError(f"there is no {split} audio of {style}; add files, or give data.split another share")
        print(f"scoring {style}", file=sys.stderr)
        found, picture = _style_rows(
            task, floor, datamodule, split, style, min(count, num_songs or count), finder, perceptual_songs
        )
        rows += found
        report.heading(style).table(list(found[0])[1:], [list(row.values())[1:] for row in found])
        (folder / f"{style}.png").write_bytes(picture)
        report.image(picture, alt=f"Notes of the first {style} piece above the true mel, the linear map's and the model's")
    report.text("\n".join(f"{name}: {meaning}" for name, meaning in ROWS.items()))
    with (folder / "synthesis.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    end_report(report, folder)
    return rows


class LinearMap:
    """A linear map from the roll of a frame to its log mel: least squares with a penalty of `RIDGE` on the weights.

    Args:
        weights_cm: [c + 1, m], the last row is the constant. used_c: the channels of the roll that it uses, [c].
        mean_m: mean log mel of the frames that it was fitted to.
    """

    def __init__(self, weights_cm: np.ndarray, used_c: np.ndarray, mean_m: np.ndarray) -> None:
        self.weights_cm, self.used_c, self.mean_m = weights_cm, used_c, mean_m

    @classmethod
    def fitted(cls, frames: Iterator[tuple[np.ndarray, np.ndarray]]) -> "LinearMap":
        """Returns the map of least error on (roll [c, f], log mel [m, f]) pairs. Raises: ValueError if there is none."""
        gram_cc, wanted_cm, count = np.zeros((0, 0)), np.zeros((0, 0)), 0
        for roll_cf, mel_mf in frames:
            if not count:
                gram_cc, wanted_cm = (np.zeros((len(roll_cf) + 1, size)) for size in (len(roll_cf) + 1, len(mel_mf)))
            inputs_cf = np.vstack([roll_cf, np.ones((1, roll_cf.shape[1]), np.float32)]).astype(np.float64)
            used = np.flatnonzero(inputs_cf.any(1))  # few of the channels sound in a piece
            gram_cc[np.ix_(used, used)] += inputs_cf[used] @ inputs_cf[used].T
            wanted_cm[used] += inputs_cf[used] @ mel_mf.T.astype(np.float64)
            count += roll_cf.shape[1]
        if not count:
            raise ValueError("there are no training pieces to fit the linear map to; give data.split a larger share for them")
        used = np.flatnonzero(gram_cc.diagonal())
        penalty = np.diag([RIDGE] * (len(used) - 1) + [0.0])
        weights_cm = np.linalg.solve(gram_cc[np.ix_(used, used)] + penalty, wanted_cm[used])
        return cls(weights_cm, used[:-1], wanted_cm[-1] / count)

    def mel(self, roll_cf: np.ndarray) -> np.ndarray:
        """Returns the log mel [m, f] of a roll [c, f]."""
        found: np.ndarray = self.weights_cm[:-1].T @ roll_cf[self.used_c] + self.weights_cm[-1][:, None]
        return found


def _training_frames(datamodule: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (roll [c, f], log mel [m, f]) of training pieces, every style in turn, up to `MAX_FRAMES` frames."""
    places = [(index, style) for style in datamodule.styles for index in range(datamodule.num_pieces("train", style))]
    total = 0
    for index, style in sorted(places):
        roll, mel = datamodule.roll("train", style, index), datamodule.log_mel("train", style, index)
        yield roll.flatten(0, 2).numpy(), mel.numpy()
        total += mel.shape[1]
        if total >= MAX_FRAMES:
            return


def _compared(mels: list[Tensor], truths: list[Tensor], contract: MelContract) -> Row:
    """Returns log-mel L1 in nats, chroma correlation and onset agreement (F within 50 ms), each a mean over the pieces in which
    it is defined, and the Fréchet distance of all frames in bel²."""
    rate, songs = contract.sample_rate / contract.hop_length, list(zip(mels, truths, strict=True))
    single = {
        "l1_nats": [log_mel_l1(*song) for song in songs],
        "chroma_r": [chroma_correlation(*song, contract=contract) for song in songs],
        "onset_f": [onset_agreement(*song, frame_rate=rate) for song in songs],
    }
    defined = {name: [value for value in values if not math.isnan(value)] for name, values in single.items()}
    row: Row = {name: sum(values) / len(values) if values else math.nan for name, values in defined.items()}
    return row | {"frechet_bel2": frechet_distance(torch.cat(mels, 1).numpy(), torch.cat(truths, 1).numpy())}


class _NotesKept:
    """How many notes of recordings [n] are found again in mels of their beginnings, which Griffin-Lim makes sound."""

    def __init__(self, finder: NoteFinder, songs: list[Tensor], contract: MelContract) -> None:
        self._finder, self._contract, self._vocoder = finder, contract, GriffinLim(contract)
        self._songs = [(contract.num_frames(len(song)), self._notes(song)) for song in songs]

    def _notes(self, song_n: Tensor) -> Floats:
        return self._finder(song_n, sample_rate=self._contract.sample_rate)

    def f1(self, mels: list[Tensor]) -> float:
        """Returns the mean F-measure of mels [m, f], over the recordings in which it is defined."""
        pairs = zip(mels, self._songs, strict=False)
        found = [note_f1(self._notes(self._vocoder(mel[None, :, :frames].cpu())[0]), notes) for mel, (frames, notes) in pairs]
        defined = [value for value in found if not math.isnan(value)]
        return sum(defined) / len(defined) if defined else math.nan


def _style_rows(
    task: PlaysScores,
    floor: LinearMap,
    datamodule: Any,
    split: str,
    style: str,
    count: int,
    finder: NoteFinder | None,
    perceptual_songs: int,
) -> tuple[list[Row], bytes]:
    made: dict[str, list[Tensor]] = {name: [] for name in ROWS if name != "true" or finder is not None}
    truths, shown = [], torch.zeros(0)
    for index in range(count):
        roll, truth = datamodule.roll(split, style, index), datamodule.log_mel(split, style, index)
        shown = roll[1] if index == 0 else shown
        truths.append(truth)
        made["mean"].append(torch.from_numpy(floor.mean_m)[:, None].float().expand_as(truth))
        made["linear"].append(torch.from_numpy(floor.mel(roll.flatten(0, 2).numpy())).float())
        made["model"].append(task.play_roll(roll))
        made["rebuilt"].append(task.reconstruct(roll, truth))
    rows = []
    kept = None
    if finder is not None:
        made["true"] = truths
        songs = [opening(datamodule, split, style, index) for index in range(min(count, perceptual_songs))]
        kept = _NotesKept(finder, songs, task.contract)
    for name, mels in made.items():
        row = {"style": style, "row": name, "pieces": count} | _compared(mels, truths, task.contract)
        rows.append(row if kept is None else row | {"note_f1": kept.f1(mels)})
    seconds = task.contract.hop_length / task.contract.sample_rate
    frames = round(SHOWN_SECONDS / seconds)
    panels = {"true": truths[0], "linear map": made["linear"][0], "model": made["model"][0]}
    cut = {name: mel[:, :frames].numpy() for name, mel in panels.items()}
    return rows, roll_above_mels(shown[..., :frames].numpy(), cut, frame_seconds=seconds)
