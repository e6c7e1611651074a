"""How well new classes are told apart from a few pieces of each: accuracy by shots over many episodes, beside honest floors.

Shapes: s pieces of a support, q queries, d features, n ways.
"""

import copy
import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.evaluation.classes import bodies, ngram_features
from etude.evaluation.progress import progress
from etude.evaluation.representation import Encoder, piece_vectors, untrained
from etude.report.run_page import begin_report, end_report
from etude.tokens.grammar import BOS
from etude.wording import counted

Row = dict[str, Any]
ADAPTED = 60  # episodes to which a network is adapted, where no number is given
COLUMNS = ("split", "ways", "shots", "method", "episodes", "accuracy", "interval")
TUNING = {"steps": 10, "lr": 1e-3}  # of fine-tuning: Adam on all weights and a new head


@runtime_checkable
class AnswersEpisodes(Protocol):
    """A task that tells the ways of the queries of episodes."""

    compares_vectors: bool

    def answers(self, batch: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """Returns the logits [q, n] and the true ways [q] of the queries of each episode."""
        ...


class Episode:
    """Support and queries of one episode: rows of the manifest, and their ways."""

    def __init__(self, rows: Sequence[Any], table: np.ndarray) -> None:
        piece = np.array([int(table["row"][int(row.plan[0, 1])]) for row in rows])
        way, query = np.array([row.way for row in rows]), np.array([row.query for row in rows], bool)
        self.rows = rows
        self.support, self.support_way = piece[~query], way[~query]
        self.query, self.query_way = piece[query], way[query]


def score_few_shot(
    *, task: Any, datamodule: Any, folder: Path, split: str = "test", ways: int = 5, shots: Sequence[int] = (1, 5),
    queries: int = 1, episodes: int = 600, adapted_episodes: int | None = None, tuned_episodes: int = 20, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Measures a few-shot task on classes that it has never seen: writes few_shot.csv and report.html, and prints the table.

    All methods answer the same episodes. An interval is 1.96 standard errors of the mean over episodes (95 %).

    Args:
        task: a trained task of few_shot. datamodule: an `EpisodeModule`. folder: the run's folder.
        split: val or test.
        ways, shots, queries: of the episodes; queries: of each class.
        episodes: of methods that read each piece once.
        adapted_episodes: of maml, fomaml and reptile, which adapt a network to each of the first `episodes`; None for 60, and for
            other algorithms.
        tuned_episodes: of fine-tuning a whole network on the shots, from random weights and from this encoder's; 0 for none.
        seed: of the episodes and of the random encoder.

    Returns: a row for each number of shots and method.

    Raises: ValueError for a value out of range, or a split with too few classes.
    """
    if split not in ("val", "test"):
        raise ValueError(f"task.split={split} is not held out; choose val or test")
    for name, value, low in (
        ("ways", ways, 2), ("shots", min(shots, default=0), 1), ("queries", queries, 1), ("episodes", episodes, 1),
        ("adapted_episodes", 1 if adapted_episodes is None else adapted_episodes, 1), ("tuned_episodes", tuned_episodes, 0),
    ):  # fmt: skip
        if value < low:
            given = list(shots) if name == "shots" else value
            raise ValueError(f"task.{name}={given} must be at least {low}")
    own = type(task.algorithm).__name__.lower()
    if task.compares_vectors and adapted_episodes is not None:
        raise ValueError(
            f"task.adapted_episodes={adapted_episodes} does nothing: {own} adapts no network to episodes; leave it out"
        )
    random: Any = untrained(task, seed)
    spaces = {
        "n-grams, nearest centroid": _ngrams(datamodule, split),
        "random encoder, nearest centroid": piece_vectors(random, datamodule.evaluation_loader(split)),
        "this encoder, nearest centroid": piece_vectors(task, datamodule.evaluation_loader(split)),
    }
    compared = {}
    if task.compares_vectors:
        for title, one in ((f"{own}, untrained", random), (own, task)):
            one.train(False)
            compared[title] = one.vector_logits, of_beginnings(one, one.compared, datamodule.evaluation_loader(split))
    rows: list[Row] = []
    for count in shots:
        planner = datamodule.planner(split, seed=seed, ways=ways, shots=count, queries=queries)
        drawn = [Episode(planner.rows(number), planner.documents.view.table) for number in range(episodes)]
        about = {"split": split, "ways": ways, "shots": count}
        rows.append({**about, "method": "chance", "episodes": episodes, "accuracy": 1 / ways, "interval": 0.0})
        for name, vectors in spaces.items():
            rows.append(_row(about, name, [centroid_accuracy(vectors, one, ways=ways) for one in drawn]))
        for title, (logits, read) in compared.items():
            shown = progress(drawn, f"{counted(count, 'shot')}, {title}")
            rows.append(_row(about, title, [_compared_accuracy(logits, read, one, ways=ways) for one in shown]))
        if not compared:
            shown = progress(drawn[: adapted_episodes or ADAPTED], f"{counted(count, 'shot')}, {own}")
            adapted = [_adapted_accuracy(task, datamodule, planner, one) for one in shown]
            rows.append(_row(about, own, adapted))
        for name, encoder in (("fine-tuned from scratch", random), ("fine-tuned from this encoder", task)):
            if tuned_episodes:
                shown = progress(drawn[:tuned_episodes], f"{counted(count, 'shot')}, {name}")
                found = [tuned_accuracy(encoder, datamodule, planner, one, ways=ways) for one in shown]
                rows.append(_row(about, name, found))
    _write(rows, folder, split)
    return rows


def _write(rows: Sequence[Row], folder: Path, split: str) -> None:
    lines = [[f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS] for row in rows]
    with (folder / "few_shot.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([COLUMNS, *lines])
    report = begin_report(f"Evaluation: few shots, {split} split", folder)
    report.table(list(COLUMNS), lines)
    end_report(report, folder)
    for line in lines:
        print(f"{line[1]} ways, {line[2]} shots  {line[3]:34}{line[5]} ± {line[6]}  ({line[4]} episodes)")


def _row(about: Row, method: str, accuracies: Sequence[float]) -> Row:
    spread = 1.96 * float(np.std(accuracies, ddof=1)) / len(accuracies) ** 0.5 if len(accuracies) > 1 else float("nan")
    return {
        **about, "method": method, "episodes": len(accuracies), "accuracy": float(np.mean(accuracies)), "interval": spread,
    }  # fmt: skip


def _ngrams(data: Any, split: str) -> dict[int, np.ndarray]:
    """Returns log(1 + count) of the n-grams of tokens that most training pieces have, for each piece of a split."""
    pieces = {part: np.asarray(data.view(part).table["row"], np.int64) for part in ("train", split)}
    _, found = ngram_features(*(bodies(data, part, rows) for part, rows in pieces.items()))
    return dict(zip(pieces[split].tolist(), found.toarray(), strict=True))


def centroid_accuracy(vectors: Mapping[int, np.ndarray], one: Episode, *, ways: int) -> float:
    """Returns the share of queries whose nearest centroid, by cosine, is that of their way."""
    support, query = (_unit(np.stack([vectors[i] for i in each.tolist()])) for each in (one.support, one.query))
    centres = _unit(np.stack([support[one.support_way == way].mean(0) for way in range(ways)]))
    return float(((query @ centres.T).argmax(1) == one.query_way).mean())


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def of_beginnings(task: Any, read: Callable[[Any], Tensor], batches: Iterable[Mapping[str, Tensor]]) -> dict[int, Tensor]:
    """Returns the row that `read` returns for each piece: of a long one, which comes in several documents, that of its beginning.

    The documents of a piece may come in any order, since rows are packed.
    """
    found: dict[int, Tensor] = {}
    for batch in batches:
        given = {name: value.to(task.device) for name, value in batch.items()}
        with torch.inference_mode():
            begins = task.documents(given, "tokens") == BOS
            for piece, row, first in zip(task.documents(given).tolist(), read(given), begins.tolist(), strict=True):
                if first:
                    found[piece] = row
    return found


def _compared_accuracy(logits: Callable[..., Tensor], rows: Mapping[int, Tensor], one: Episode, *, ways: int) -> float:
    """Returns the accuracy on an episode of what compares rows of queries with those of the support."""
    support, query = (torch.stack([rows[i] for i in each.tolist()]) for each in (one.support, one.query))
    way = torch.as_tensor(one.support_way, device=support.device)
    with torch.inference_mode():
        said = logits(support, way, query, ways=ways).argmax(1)
    return float((said.cpu().numpy() == one.query_way).mean())


def _adapted_accuracy(task: Any, data: Any, planner: Any, one: Episode) -> float:
    """Returns the accuracy on an episode of an algorithm that adapts a network to it."""
    batch = {name: value.to(task.device) for name, value in data.batch(planner, one.rows).items()}
    ((logits, true),) = task.answers(batch)
    return float((logits.argmax(1) == true).float().mean())


def tuned_accuracy(encoder: Any, data: Any, planner: Any, one: Episode, *, ways: int, steps: int | None = None) -> float:
    """Returns the accuracy on an episode of a copy of the encoder and a new head that are trained on the support."""
    tuned: Encoder = copy.deepcopy(encoder)
    batch = {name: value.to(tuned.device) for name, value in data.batch(planner, one.rows).items()}
    support, query = ({n: v[batch["query"].amax(1) == side] for n, v in batch.items()} for side in (0, 1))
    module: Any = tuned
    with torch.random.fork_rng(devices=[tuned.device] if tuned.device.type == "cuda" else []):
        torch.manual_seed(0)
        head = nn.Linear(tuned.features(support).shape[1], ways).to(tuned.device)
        chosen = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam([*chosen, *head.parameters()], lr=TUNING["lr"])
        way: Callable[[Any], Tensor] = lambda part: tuned.documents(part, "way")  # noqa: E731
        for _ in range(int(TUNING["steps"]) if steps is None else steps):
            loss = F.cross_entropy(head(tuned.features(support)), way(support))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            said = head(tuned.features(query)).argmax(1)
    return float((said == way(query)).float().mean())
