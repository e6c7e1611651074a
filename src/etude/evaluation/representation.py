"""What the vectors of an encoder are worth: linear probe, nearest neighbours, fine-tuning, few labels, beside honest floors.

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

from etude.evaluation.classes import NO_LABEL
from etude.evaluation.fine_tuning import fine_tuned
from etude.evaluation.floors import floor_features
from etude.evaluation.progress import progress
from etude.metrics.sets import classes as scores
from etude.report.run_page import begin_report, end_report
from etude.report.scatter import labelled_scatter

NEIGHBOURS = 5
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse strengths of regularisation among which a probe chooses
FOLDS = 3  # of the training labels, by which it chooses
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

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

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
    fine_tune_steps: int = 100, fine_tune_lr: float = 1e-3, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Measures how well the labels of data.targets can be read off an encoder's vectors.

    Writes probes.csv, a picture of the held-out pieces for each label with the table of its points, and report.html.

    Args:
        task: a trained encoder. datamodule: the data of its training, with targets. folder: the run's folder.
        split: val or test.
        shares: of the training labels that a probe gets, each in (0, 1].
        fine_tune_steps: also train this encoder, and a random one (supervised training), further on each share of the labels for
            so many steps; 0 for not. fine_tune_lr: the highest rate of both.
        seed: of which labels they are, and of the random encoder.

    Returns: a row for each label, method and share.

    Raises: ValueError for another split or share, data without targets, a split without labelled pieces,
        or a label that is the same for all training pieces.
    """
    if split not in ("val", "test"):
        raise ValueError(f"task.split={split} is not held out; choose val or test")
    if not shares or any(not 0 < share <= 1 for share in shares):
        raise ValueError(f"task.shares={list(shares)} must be shares of the training labels in (0, 1], such as [0.1,1.0]")
    if fine_tune_steps < 0 or fine_tune_lr <= 0:
        raise ValueError(f"fine_tune_steps={fine_tune_steps} must be at least 0, and fine_tune_lr={fine_tune_lr} above 0")
    if not datamodule.targets:
        raise ValueError("the data has no labels to look for; give +data.targets=[genre], say")
    encoders = {"this encoder": task, "random encoder": untrained(task, seed)}
    vectors = {
        name: {part: piece_vectors(each, datamodule.evaluation_loader(part)) for part in ("train", split)}
        for name, each in progress(list(encoders.items()), "vectors of all pieces")
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
        if len(set(true["train"][known["train"]])) == 1:
            only = names[true["train"][known["train"][0]]]
            raise ValueError(f"all training pieces have the same {label}, {only}: nothing to tell apart; give data of several")
        found = _probes(datamodule, label, split, shares, seed, vectors=vectors, true=true, known=known)
        if fine_tune_steps:
            options = {"label": label, "num_classes": len(names), "steps": fine_tune_steps, "lr": fine_tune_lr, "seed": seed}
            found += _fine_tuned(encoders, datamodule, split, shares, options, true=true, known=known)
        rows += found
        report.heading(label).table(list(COLUMNS), [[_shown(row[column]) for column in COLUMNS] for row in found])
        points = np.stack([vectors["this encoder"][split][i] for i in known[split].tolist()])
        plane, classes = principal_plane(points), [names[true[split][i]] for i in known[split].tolist()]
        pieces = [str(datamodule.labels(split, "name")[row]) for row in known[split].tolist()]
        picture = labelled_scatter(plane, classes, title=label, notes={i: pieces[i] for i in typical(plane, classes)})
        _write_points(folder / f"pieces_{label}.csv", plane, classes, pieces)
        (folder / f"pieces_{label}.png").write_bytes(picture)
        report.image(picture, alt=f"held-out pieces by their vectors, two principal components, coloured by {label}")
    with (folder / "probes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    end_report(report, folder)
    return rows


def typical(plane_n2: np.ndarray, classes: Sequence[str]) -> list[int]:
    """Returns the indices of two points of each class: the one nearest to its median, and the one farthest from it."""
    names, found = np.asarray(classes), set[int]()
    for name in np.unique(names):
        own = np.flatnonzero(names == name)
        distance = np.linalg.norm(plane_n2[own] - np.median(plane_n2[own], axis=0), axis=1)
        found |= {int(own[distance.argmin()]), int(own[distance.argmax()])}
    return sorted(found)


def _write_points(path: Path, plane_n2: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> None:
    """Writes the points of a picture: which piece each is, its class, and its place."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["piece", "class", "x", "y"])
        writer.writerows([name, one, f"{x:.4f}", f"{y:.4f}"] for name, one, (x, y) in zip(names, classes, plane_n2, strict=True))


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
    floor, *floors = floor_features(data, split, known["train"], known[split])
    features[floor] = floors
    largest = np.bincount(train_y).argmax()
    rows = [_row(label, "most frequent class", 1.0, len(train_y), np.full(len(y), largest), y)]
    for share in progress(shares, f"{label}, logistic regressions"):
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


def _fine_tuned(
    encoders: Mapping[str, Any], data: Any, split: str, shares: Sequence[float], options: dict[str, Any], *, true: Any, known: Any
) -> list[Row]:  # fmt: skip
    train_y, y, rows = true["train"][known["train"]], true[split][known[split]], list[Row]()
    for share, name in progress([(share, name) for share in shares for name in encoders], f"{options['label']}, fine-tuning"):
        places = chosen(train_y, share, seed=options["seed"])
        model = fine_tuned(encoders[name], data, rows=known["train"][places], **options)
        logits = piece_vectors(model, data.evaluation_loader(split))
        said = np.stack([logits[i] for i in known[split].tolist()]).argmax(1)
        method = "this encoder, fine-tuned" if name == "this encoder" else "supervised from scratch"
        rows.append(_row(options["label"], method, share, len(places), said, y))
    return rows


def probe(x_nd: Any, true_n: np.ndarray) -> Any:
    """Returns a logistic regression on standardised (dense) or scaled (sparse) features.

    The strength of its regularisation is the one of `STRENGTHS` that is most often right in cross-validation on the labels given;
    1 if a class has fewer examples than folds. The same for vectors of networks and for floors.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler, StandardScaler

    def model(strength: float) -> Any:
        scaler = StandardScaler() if isinstance(x_nd, np.ndarray) else MaxAbsScaler()
        return make_pipeline(scaler, LogisticRegression(C=strength, max_iter=2000))

    best = 1.0
    if np.unique(true_n, return_counts=True)[1].min() >= FOLDS:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        right = [cross_val_score(model(strength), x_nd, true_n, cv=folds).mean() for strength in STRENGTHS]
        best = STRENGTHS[int(np.argmax(right))]
    return model(best).fit(x_nd, true_n)


def nearest(train_x: np.ndarray, x: np.ndarray, true_n: np.ndarray) -> np.ndarray:
    """Returns the most frequent class among the nearest training vectors by cosine."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(n_neighbors=min(NEIGHBOURS, len(true_n)), metric="cosine").fit(train_x, true_n)
    found: np.ndarray = model.predict(x)
    return found
