"""Evaluates a classifier on held-out pieces beside honest floors: tables, confusion, reliability.

Shapes: n pieces, c classes, v features of a floor.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from etude.core.protocols import TokenViews
from etude.metrics.sets import classes as scores
from etude.report.grade_plots import confusion_matrix, reliability_diagram
from etude.report.run_page import begin_report, end_report

NO_LABEL = -1
NGRAMS = 3  # longest run of tokens that the floor counts
FEATURES = 20_000  # n-grams that the floor keeps, those in most pieces
Row = dict[str, Any]


class TrainedClassifier(Protocol):
    """What an evaluation needs of a classifier."""

    labels: Mapping[str, Sequence[str]]
    temperatures: Mapping[str, float]
    reads: Any  # how batches go into the networks, see `tasks.class_inputs`
    training: bool
    device: torch.device

    def train(self, mode: bool = True) -> Any:
        """Enters training mode, or evaluation mode."""
        ...

    def class_logits(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Returns the logits of each document for each head, [n, c]."""
        ...

    def documents(self, batch: Mapping[str, Any], name: str = "piece") -> Tensor:
        """Returns an entry of the batch once for each document."""
        ...


def score_classifier(
    *, task: TrainedClassifier, datamodule: Any, folder: Path, split: str = "test", floors: bool = True
) -> list[Row]:
    """Evaluates a classifier on the held-out pieces of its data: writes classes.csv, pictures and report.html.

    Args:
        task: a trained classifier. datamodule: the data of its training. folder: the run's folder.
        split: val or test.
        floors: also fit a logistic regression on n-grams of the training pieces' tokens, as the classifier reads them, or, of
            audio, on the mean and the deviation of each mel band.

    Returns: a row for each head and method.

    Raises: ValueError for another split, or one without a piece that has a label.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split={split} is not held out; choose val or test")
    loader = datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()
    logits = predicted(task, loader)
    report = begin_report(f"Evaluation: classifier, {split} split", folder)
    rows: list[Row] = []
    for name, classes in task.labels.items():
        true = datamodule.classes(split)[name]
        known = np.array([piece for piece in sorted(logits[name]) if true[piece] != NO_LABEL], np.int64)
        if not len(known):
            raise ValueError(f"no piece of the {split} split has a {name} that the classifier knows; choose another split")
        z = np.stack([logits[name][piece] for piece in known.tolist()])
        mine = _floors(task, datamodule, name, split, known, classes) if floors else []
        mine.append(_row(name, "this model", z.argmax(-1), true[known], len(classes)))
        said = {"before": scores.softmax(z), "after": scores.softmax(z / task.temperatures[name])}
        mine[-1] |= {
            "nats": scores.log_loss(z / task.temperatures[name], true[known]), "temperature": task.temperatures[name],
            "calibration error before": scores.calibration_error(said["before"], true[known]),
            "calibration error": scores.calibration_error(said["after"], true[known]),
        }  # fmt: skip
        counts = scores.confusion(z.argmax(-1), true[known], num_classes=len(classes))
        picture = confusion_matrix(counts, list(classes), title=name, what="class")
        (folder / f"confusion_{name}.png").write_bytes(picture)
        report.heading(name).table(list(COLUMNS), [[_shown(row.get(column)) for column in COLUMNS] for row in mine])
        report.image(picture, alt=f"{name}: true classes by predicted ones")
        curves = {f"{when} temperature scaling": scores.reliability(p, true[known]) for when, p in said.items()}
        picture = reliability_diagram(curves, title=f"{name}: temperature {task.temperatures[name]:.2f}")
        (folder / f"reliability_{name}.png").write_bytes(picture)
        report.image(picture, alt=f"{name}: how often the most probable class is right, by its probability")
        rows += mine
    with (folder / "classes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    end_report(report, folder)
    return rows


COLUMNS = (
    "head", "method", "pieces", "classes", "accuracy", "balanced accuracy", "nats", "temperature", "calibration error before",
    "calibration error",
)  # fmt: skip


def _row(head: str, method: str, said: np.ndarray, true: np.ndarray, classes: int) -> Row:
    return {
        "head": head, "method": method, "pieces": len(true), "classes": classes, "accuracy": scores.accuracy(said, true),
        "balanced accuracy": scores.balanced_accuracy(said, true),
    }  # fmt: skip


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def predicted(task: TrainedClassifier, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, dict[int, np.ndarray]]:
    """Returns for each head the mean logits of each piece, by its row in the manifest."""
    sums: dict[str, dict[int, np.ndarray]] = {name: {} for name in task.labels}
    counts: Counter[int] = Counter()
    was_training = task.training
    task.train(False)
    try:
        for batch in batches:
            given = {name: value.to(task.device) for name, value in batch.items()}
            with torch.inference_mode():
                logits = {name: value.double().cpu().numpy() for name, value in task.class_logits(given).items()}
            pieces = task.documents(given).tolist()
            counts.update(pieces)
            for name, values in logits.items():
                for piece, value in zip(pieces, values, strict=True):
                    sums[name][piece] = sums[name].get(piece, 0.0) + value
    finally:
        task.train(was_training)
    return {name: {piece: value / counts[piece] for piece, value in found.items()} for name, found in sums.items()}


# --- floors ---


def _floors(task: TrainedClassifier, data: Any, name: str, split: str, known: np.ndarray, classes: Sequence[str]) -> list[Row]:
    """The most frequent class of training, and logistic regressions on features of the pieces, also with balanced classes."""
    train_true, true = data.classes("train")[name], data.classes(split)[name][known]
    scored = isinstance(data, TokenViews)
    usable = data.view("train").table["row"].tolist() if scored else range(len(train_true))
    train_known = np.array([piece for piece in usable if train_true[piece] != NO_LABEL])
    largest = np.bincount(train_true[train_known], minlength=len(classes)).argmax()
    rows = [_row(name, "most frequent class", np.full(len(true), largest), true, len(classes))]
    if scored:
        shown = [_shown_bodies(task, data, each, pieces) for each, pieces in (("train", train_known), (split, known))]
        train_x, x = ngram_features(*shown)
    else:
        train_x, x = (band_features(data, each, pieces) for each, pieces in (("train", train_known), (split, known)))
    what = "n-grams" if scored else "mean and deviation of bands"
    for method, weight in ((f"{what}, logistic regression", None), ("the same, balanced classes", "balanced")):
        model = fitted(train_x, train_true[train_known], weight=weight)
        rows.append(_row(name, method, model.predict(x), true, len(classes)))
    return rows


def _shown_bodies(task: TrainedClassifier, data: Any, split: str, pieces: np.ndarray) -> list[np.ndarray]:
    return [task.reads.shown(torch.from_numpy(body.astype(np.int64))).numpy() for body in bodies(data, split, pieces)]


def band_features(data: Any, split: str, pieces: np.ndarray) -> np.ndarray:
    """Returns the mean and the deviation over time of each band of the log mels of pieces, [n, 2 m].

    pieces: their numbers, counted through all styles in their order.
    """
    places = [(style, index) for style in data.styles for index in range(data.num_pieces(split, style))]
    mels = [data.log_mel(split, *places[piece]).numpy() for piece in pieces.tolist()]
    return np.stack([np.concatenate([mel.mean(1), mel.std(1)]) for mel in mels]).astype(np.float64)


def bodies(data: Any, split: str, pieces: np.ndarray) -> list[np.ndarray]:
    """Returns the tokens of pieces, given as rows of the manifest."""
    view = data.view(split)
    place = {row: number for number, row in enumerate(view.table["row"].tolist())}
    return [np.asarray(view.body(place[piece])) for piece in pieces.tolist()]


def ngram_features(train: Sequence[np.ndarray], held_out: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """Returns sparse rows of log(1 + count) of the n-grams of tokens, n = 1 to 3, that occur in the most training pieces."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [[" ".join(map(str, body.tolist())) for body in each] for each in (train, held_out)]
    counter = CountVectorizer(ngram_range=(1, NGRAMS), max_features=FEATURES, token_pattern=r"\S+", lowercase=False)
    return counter.fit_transform(texts[0]).astype(np.float64).log1p(), counter.transform(texts[1]).astype(np.float64).log1p()


def fitted(x_nv: Any, true_n: np.ndarray, *, weight: str | None = None) -> Any:
    """Returns a logistic regression, fitted on features scaled to a largest absolute value of 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    model = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=2000, class_weight=weight))
    return model.fit(x_nv, true_n)
