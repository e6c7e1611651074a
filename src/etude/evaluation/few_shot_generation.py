"""How fast a language model takes up a new style: nats per note of other pieces after some steps on a few, beside floors."""

import copy
import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from etude.core.adapters import adaptable_layers, add_adapter
from etude.core.measuring import measured_batches
from etude.evaluation.progress import progress
from etude.evaluation.representation import untrained
from etude.evaluation.token_ngrams import TokenNgrams
from etude.report.run_page import begin_report, end_report

Row = dict[str, Any]
Batches = Sequence[dict[str, Any]]
COLUMNS = ("split", "pieces", "method", "steps", "rate", "draws", "nats_per_note", "interval")
NAMES = {  # method -> what the table calls it
    "all": "all weights", "adapters": "adapters", "inner": "the algorithm's own steps", "scratch": "from random weights",
}  # fmt: skip
RANK, ALPHA = 8, 16.0  # of the adapters, as in conf/technique/lora.yaml
SPLITS = ("val", "test")


@runtime_checkable
class TakesUpStyles(Protocol):
    """A language model whose initial weights may depend on the pieces that it adapts to."""

    def starting_weights(self, support: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Returns the weights from which it adapts to a support."""
        ...

    def inner_rates(self) -> Mapping[str, float] | None:
        """Returns the learning rate of each weight in its own inner steps; None if it has none."""
        ...


class Draw:
    """A style's pieces to learn from, in a random order, and other pieces of it that are asked about."""

    def __init__(self, task: Any, data: Any, planner: Any, split: str, number: int) -> None:
        rows = planner.rows(number)
        support, asked = ([row for row in rows if row.query == side] for side in (0, 1))
        self.support = [
            {n: v.to(task.device) for n, v in data.batch(planner, [row]).items() if n not in _ABOUT} for row in support
        ]
        place = [int(row.plan[0, 1]) for row in rows]
        table, view = planner.documents.view.table["row"], planner.documents.view
        chosen = np.zeros(len(data.held_out(split)["notes"]), bool)
        chosen[[int(table[at]) for at, row in zip(place, rows, strict=True) if row.query]] = True
        self.notes = int(data.held_out(split)["notes"][chosen].sum())
        self.queries: Batches = list(data.loader_of(split, chosen))
        bodies = [np.asarray(view.body(at)) for at in place]
        self.bodies = (
            [b for b, row in zip(bodies, rows, strict=True) if not row.query],
            [b for b, row in zip(bodies, rows, strict=True) if row.query],
        )
        assert len(asked) == int(chosen.sum())


_ABOUT = ("episode", "query")


def score_few_shot_generation(
    *, task: Any, datamodule: Any, folder: Path, split: str = "test", pieces: Sequence[int] = (1, 5, 20),
    steps: Sequence[int] = (0, 5, 20, 100), queries: int = 20, draws: int = 3, methods: Sequence[str] | None = None,
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2), batch_size: int = 4, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Measures how a language model takes up styles that it has never seen: writes few_shot_generation.csv and report.html.

    For each draw of a style's pieces, each method adapts a copy of the model to the first 1, 5, 20 of them by Adam (the
    algorithm's own steps: by gradient descent at its rates), and the same other pieces are asked about, as wholes. The rate of a
    method is the one of `rates` that is best on one draw of the validation styles, which is not among those shown, in the mean
    over numbers of pieces and of steps. An interval is 1.96 standard errors of the mean over draws, within whose styles pieces
    are drawn anew.

    Args:
        task: a trained task of few_shot_generation. datamodule: an `EpisodeModule`. folder: the run's folder.
        split: val or test.
        pieces: numbers of pieces to learn from. steps: after how many steps to ask.
        queries: pieces that are asked about. draws: of pieces to learn from and to be asked about.
        methods: of all, adapters, inner, scratch: all weights; low-rank adapters of rank 8; the algorithm's own steps; random
            weights. None for all that the model has.
        rates: learning rates of Adam to choose from.
        batch_size: pieces of a step, at most.
        seed: of the draws, the adapters and the random weights.

    Returns: a row for each number of pieces, method and number of steps.

    Raises: ValueError for a value out of range, or a split without a style that has enough pieces.
    """
    methods = _checked(task, split, pieces, steps, queries, draws, methods, rates, batch_size)
    made = {name: maker(task, seed) for name, maker in _MAKERS.items() if name in methods}

    def drawn(part: str, numbers: Iterable[int]) -> list[Draw]:
        try:
            planner = datamodule.planner(part, seed=seed, ways=1, shots=max(pieces), queries=queries)
        except ValueError as error:
            raise ValueError(
                f"task.pieces={list(pieces)} and task.queries={queries} take {max(pieces) + queries} different pieces, "
                f"which the {part} split has of no style; lower them, or give data with more"
            ) from error
        return [Draw(task, datamodule, planner, part, number) for number in numbers]

    def curves(method: str, draw: Draw, rate: float) -> list[list[float]]:
        """Returns nats per note by number of pieces and number of steps."""
        adapt = made[method]
        return [adapt(draw, count, rate, sorted(steps), batch_size) for count in pieces]

    found, (choosing,) = drawn(split, range(draws)), drawn("val", [draws if split == "val" else 0])  # none that is shown
    rows = _floors(task, datamodule, split, pieces, found)
    later = [place for place, count in enumerate(sorted(steps)) if count] or [0]
    for method in methods:
        rate = None
        if method != "inner":
            means = [float(np.mean([[line[at] for at in later] for line in curves(method, choosing, each)])) for each in rates]
            rate = rates[int(np.argmin(means))]
        values = np.array([curves(method, draw, rate or 0.0) for draw in progress(found, method)])  # [draws, pieces, steps]
        for place, count in enumerate(pieces):
            for at, step in enumerate(sorted(steps)):
                rows.append(_row(split, count, NAMES[method], values[:, place, at], steps=step, rate=rate))
    _write(rows, folder, split)
    return rows


def _checked(
    task: Any, split: str, pieces: Sequence[int], steps: Sequence[int], queries: int, draws: int, methods: Sequence[str] | None,
    rates: Sequence[float], batch_size: int,
) -> list[str]:  # fmt: skip
    """Returns the methods. Raises: ValueError for an option out of range."""
    if split not in SPLITS:
        raise ValueError(f"task.split={split} is not held out; choose val or test")
    for name, values, low in (
        ("pieces", list(pieces), 1), ("steps", list(steps), 0), ("queries", [queries], 1), ("draws", [draws], 1),
        ("batch_size", [batch_size], 1),
    ):  # fmt: skip
        if not values or min(values) < low:
            raise ValueError(f"task.{name}={values} must be at least {low}")
    if not rates or min(rates) <= 0:
        raise ValueError(f"task.rates={list(rates)} must be learning rates above 0")
    has = [name for name in NAMES if name != "inner" or task.inner_rates() is not None]
    if unknown := [name for name in methods or () if name not in has]:
        raise ValueError(f"task.methods names {unknown[0]}; this model has {', '.join(has)}")
    return has if methods is None else list(methods)


# --- adaptation ---


def _adapting(copied: Callable[[Draw, int], Any], optimizer: Callable[[Any, float], torch.optim.Optimizer]) -> Any:
    """Returns a function that adapts a copy of a model to pieces of a draw: nats per note of its queries by number of steps."""

    def adapt(draw: Draw, count: int, rate: float, steps: Sequence[int], batch_size: int) -> list[float]:
        support = draw.support[:count]
        model = copied(draw, count)
        chosen = optimizer(model, rate)
        order = np.random.default_rng(count)
        found, waiting = list[float](), list[int]()
        for step in range(max(steps) + 1):
            if step in steps:
                found.append(nats(model, draw.queries) / draw.notes)
            if step == max(steps):
                break
            size = min(batch_size, count)
            if len(waiting) < size:
                waiting += order.permutation(count).tolist()
            batch, waiting = _joined([support[at] for at in waiting[:size]]), waiting[size:]
            with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
                torch.manual_seed(step)
                loss = model.losses(batch)["nll"]
            chosen.zero_grad()
            torch.autograd.backward(loss)
            chosen.step()
        return found

    return adapt


def _trained(model: Any) -> list[nn.Parameter]:
    """The weights of a language model that can be trained, without those of its algorithm."""
    return [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("algorithm.")]


def _adam(model: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(_trained(model), lr=rate)


def _descent(model: Any, rate: float) -> torch.optim.Optimizer:
    rates = model.inner_rates()
    own = {name: p for name, p in model.named_parameters() if not name.startswith("algorithm.")}
    return torch.optim.SGD([{"params": [p], "lr": rates[name]} for name, p in own.items()])


def _started(task: Any, draw: Draw, count: int) -> Any:
    """Returns a copy of the model with the weights from which it adapts to the first pieces of a draw."""
    weights = task.starting_weights(_joined(draw.support[:count]))
    model = copy.deepcopy(task)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    model.train()
    return model


def _with_adapters(model: Any, seed: int) -> Any:
    layers = adaptable_layers(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    draws = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        add_adapter(layer, rank=min(RANK, *layer.weight.shape), alpha=ALPHA, draws=draws)
    return model


_MAKERS: dict[str, Callable[[Any, int], Any]] = {
    "all": lambda task, seed: _adapting(lambda draw, count: _started(task, draw, count), _adam),
    "adapters": lambda task, seed: _adapting(lambda draw, count: _with_adapters(_started(task, draw, count), seed), _adam),
    "inner": lambda task, seed: _adapting(lambda draw, count: _started(task, draw, count), _descent),
    "scratch": lambda task, seed: _adapting(lambda draw, count: untrained(task, seed).train(), _adam),
}


def nats(model: Any, batches: Batches) -> float:
    """Returns the negative log-likelihood of all counted tokens of batches, in nats."""
    total = 0.0
    for _, found in measured_batches(model, batches):
        total += float(found["nll"].mean) * float(found["nll"].count)
    return total


def _joined(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns rows [1, t] of different lengths as one batch, with padding at the end."""
    most = max(row["tokens"].shape[1] for row in rows)
    fill = {"tokens": 0, "targets": -100, "positions": 0}
    return {
        name: torch.cat(
            [
                nn.functional.pad(
                    row[name], (0, most - row[name].shape[1]), value=fill.get(name, 0 if "feature_" in name else -1)
                )
                for row in rows
            ]
        )
        for name in rows[0]
    }


# --- floors and tables ---


def _floors(task: Any, data: Any, split: str, pieces: Sequence[int], found: Iterable[Draw]) -> list[Row]:
    """n-grams of tokens: of the training pieces, of these and the style's, and of the style's pieces alone."""
    view = data.view("train")
    size = task.tokenizer.base_size
    trained = TokenNgrams(size).add([np.asarray(view.body(number)) for number in range(len(view))])
    values: dict[tuple[int, str], list[float]] = {}
    for draw in found:

        def per_note(model: TokenNgrams, draw: Draw = draw) -> float:
            each = [model.nats(body)[~task.tokenizer.uncounted(body)].sum() for body in draw.bodies[1]]
            return float(sum(each)) / draw.notes

        for count in pieces:
            both = copy.deepcopy(trained).add(draw.bodies[0][:count])
            alone = TokenNgrams(size).add(draw.bodies[0][:count])
            for name, model in (("n-grams of training and these pieces", both), ("n-grams of these pieces", alone)):
                values.setdefault((count, name), []).append(per_note(model))
    return [_row(split, count, name, each) for (count, name), each in values.items()]


def _row(
    split: str,
    count: int,
    method: str,
    values: Sequence[float] | np.ndarray,
    *,
    steps: int | None = None,
    rate: float | None = None,
) -> Row:
    spread = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {
        "split": split, "pieces": count, "method": method, "steps": steps, "rate": rate, "draws": len(values),
        "nats_per_note": float(np.mean(values)), "interval": spread,
    }  # fmt: skip


def _write(rows: Sequence[Row], folder: Path, split: str) -> None:
    shown = [[_shown(row[name]) for name in COLUMNS] for row in rows]
    with (folder / "few_shot_generation.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *shown])
    report = begin_report(f"Evaluation: new styles, {split} split", folder)
    report.table(list(COLUMNS), shown)
    end_report(report, folder)
    for row in rows:
        steps = "" if row["steps"] is None else f"{row['steps']} steps"
        around = "" if math.isnan(row["interval"]) else f" ± {row['interval']:.3f}"
        print(f"{row['pieces']:3} pieces  {row['method']:40}{steps:10}{row['nats_per_note']:.3f}{around} nats per note")


def _shown(value: object) -> str:
    """Returns a cell of the table; what is not known, such as the interval of a single draw, is empty."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)
