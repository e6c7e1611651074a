"""What the vectors of an encoder are worth: linear probe, nearest neighbours, few labels, beside honest floors.

Shapes: n pieces, d features, c classes.
"""

import copy
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from etude.evaluation.classes import NO_LABEL, bodies, fitted, ngram_features
from etude.metrics.sets import classes as scores
from etude.report.run_page import begin_report, end_report
from etude.report.scatter import labelled_scatter

NEIGHBOURS = 5
LEAST = 2  # pieces of a class that a small share of the labels keeps, where there are so many
Row = dict[str, Any]
COLUMNS = ("label", "method", "labels", "training pieces", "pieces", "accuracy", "balanced accuracy")


@runtime_checkable
class Resettable(Protocol):
    """A module that can give itself random weights, as PyTorch's layers and Etude's networks can."""

    def reset_parameters(self) -> None:
        """Initialises its weights."""
        ...


class Encoder(Protocol):
    """What an evaluation needs of a task that computes features of pieces."""

    training: bool
    device: torch.device

    def train(self, mode: bool = True) -> Any:
        """Enters training mode, or evaluation mode."""
        ...

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns features of each document, [n, d]."""
        ...

    def documents(self, batch: Mapping[str, Any], name: str = "piece") -> Tensor:
        """Returns an entry of the batch once for each document."""
        ...


def score_representation(
    *, task: Encoder, datamodule: Any, folder: Path, split: str = "test", shares: Sequence[float] = (0.01, 0.1, 1.0),
    seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Measures how well the labels of data.targets can be read off an encoder's vectors.

    Writes probes.csv, a picture of the held-out pieces for each label, and report.html.

    Args:
        task: a trained encoder. datamodule: the data of its training, with targets. folder: the run's folder.
        split: val or test.
        shares: of the training labels that a probe gets, each in (0, 1].
        seed: of which labels they are, and of the random encoder.

    Returns: a row for each label, method and share.

    Raises: ValueError for another split or share, data without targets, or a split without labelled pieces.
    """
    if split not in ("val", "test") or not shares or any(not 0 < share <= 1 for share in shares):
        raise ValueError(f"split={split} must be val or test, and shares={list(shares)} shares of the labels in (0, 1]")
    if not datamodule.targets:
        raise ValueError("the data has no labels to look for; give +data.targets=[genre], say")
    encoders = {"this encoder": task, "random encoder": untrained(task, seed)}
    vectors = {
        name: {part: piece_vectors(each, datamodule.evaluation_loader(part)) for part in ("train", split)}
        for name, each in encoders.items()
    }
    rows: list[Row] = []
    report = begin_report(f"Evaluation: representation, {split} split", folder)
    for label, names in datamodule.label_parts["labels"].items():
        true = {part: datamodule.classes(part)[label] for part in ("train", split)}
        known = {
            part: np.array([i for i in sorted(vectors["this encoder"][part]) if classes[i] != NO_LABEL], np.int64)
            for part, classes in true.items()
        }
        if not all(map(len, known.values())):
            raise ValueError(f"no piece of the {split} split, or none of training, has a {label}; choose another split")
        found = _probes(datamodule, label, split, shares, seed, vectors=vectors, true=true, known=known)
        rows += found
        report.heading(label).table(list(COLUMNS), [[_shown(row[column]) for column in COLUMNS] for row in found])
        points = np.stack([vectors["this encoder"][split][i] for i in known[split].tolist()])
        picture = labelled_scatter(principal_plane(points), [names[true[split][i]] for i in known[split].tolist()], title=label)
        (folder / f"pieces_{label}.png").write_bytes(picture)
        report.image(picture, alt=f"held-out pieces by their vectors, two principal components, coloured by {label}")
    with (folder / "probes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    end_report(report, folder)
    return rows


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def untrained(task: Any, seed: int) -> Any:
    """Returns a copy whose networks have random weights."""
    other = copy.deepcopy(task)
    devices = [task.device] if task.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for module in reversed(list(other.modules())):  # a network's own initialisation after that of its layers
            if isinstance(module, Resettable):
                module.reset_parameters()
    return other


def piece_vectors(task: Encoder, batches: Iterable[Mapping[str, Tensor]]) -> dict[int, np.ndarray]:
    """Returns the mean features of each piece, [d], by its row in the manifest; a long piece comes in several documents."""
    sums: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}
    was_training = task.training
    task.train(False)
    try:
        for batch in batches:
            given = {name: value.to(task.device) for name, value in batch.items()}
            with torch.inference_mode():
                features = task.features(given).double().cpu().numpy()
            for piece, vector in zip(task.documents(given).tolist(), features, strict=True):
                sums[piece] = sums.get(piece, 0.0) + vector
                counts[piece] = counts.get(piece, 0) + 1
    finally:
        task.train(was_training)
    return {piece: total / counts[piece] for piece, total in sums.items()}


def chosen(true_n: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """Returns the places of a share of the examples, as many of each class, but at least two of each where there are so many."""
    rng, places = np.random.default_rng(seed), list[np.ndarray]()
    for one in np.unique(true_n):
        members = rng.permutation(np.flatnonzero(true_n == one))
        places.append(members[: max(min(LEAST, len(members)), round(share * len(members)))])
    return np.sort(np.concatenate(places))


def principal_plane(points_nd: np.ndarray) -> np.ndarray:
    """Returns the points in the plane of their two largest principal components, [n, 2]."""
    centred = points_nd - points_nd.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane: np.ndarray = centred @ directions[:2].T
    return plane


def _probes(
    data: Any, label: str, split: str, shares: Sequence[float], seed: int, *, vectors: Any, true: Any, known: Any
) -> list[Row]:  # fmt: skip
    train_y, y = true["train"][known["train"]], true[split][known[split]]
    features: dict[str, list[Any]] = {
        name: [np.stack([each[part][i] for i in known[part].tolist()]) for part in ("train", split)]
        for name, each in vectors.items()
    }
    features["n-grams"] = list(ngram_features(bodies(data, "train", known["train"]), bodies(data, split, known[split])))
    largest = np.bincount(train_y).argmax()
    rows = [_row(label, "most frequent class", 1.0, len(train_y), np.full(len(y), largest), y)]
    for share in shares:
        places = chosen(train_y, share, seed=seed)
        for name, (train_x, x) in features.items():
            said = probe(train_x[places], train_y[places]).predict(x)
            rows.append(_row(label, f"{name}, logistic regression", share, len(places), said, y))
    for name in vectors:
        rows.append(
            _row(
                label,
                f"{name}, {NEIGHBOURS} nearest",
                1.0,
                len(train_y),
                nearest(features[name][0], features[name][1], train_y),
                y,
            )
        )
    return rows


def _row(label: str, method: str, share: float, count: int, said: np.ndarray, y: np.ndarray) -> Row:
    return {
        "label": label, "method": method, "labels": f"{100 * share:g} %", "training pieces": count, "pieces": len(y),
        "accuracy": scores.accuracy(said, y), "balanced accuracy": scores.balanced_accuracy(said, y),
    }  # fmt: skip


def probe(x_nd: Any, true_n: np.ndarray) -> Any:
    """Returns a logistic regression; dense features are standardised first."""
    if not isinstance(x_nd, np.ndarray):
        return fitted(x_nd, true_n)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x_nd, true_n)


def nearest(train_x: np.ndarray, x: np.ndarray, true_n: np.ndarray) -> np.ndarray:
    """Returns the most frequent class among the nearest training vectors by cosine."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(n_neighbors=min(NEIGHBOURS, len(true_n)), metric="cosine").fit(train_x, true_n)
    found: np.ndarray = model.predict(x)
    return found
