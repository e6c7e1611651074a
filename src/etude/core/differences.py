"""Compares what two runs have left: checkpoints and metrics, bit for bit or within a tolerance."""

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# of a checkpoint: what training has made. Weights first, since a difference there matters most
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")
OF_SWEEPS = "TrialCallback"  # the callback that a trial of a sweep has, and the same run without the sweep has not
PLACES = ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path", "best_k_models")  # where a run wrote


def leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields (name, value) of everything in nested dictionaries and lists; the names are joined by dots."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key not in PLACES:
                yield from leaves(value, f"{name}.{key}")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from leaves(value, f"{name}.{number}")
    else:
        yield name, node


def compare_checkpoints(
    one: Mapping[str, Any], two: Mapping[str, Any], *, tolerance: float = 0.0, parts: tuple[str, ...] = COMPARED
) -> str | None:
    """Returns the first part of two checkpoints that differs, with by how much; None if they agree.

    What a sweep keeps in a trial is not compared.

    tolerance: the largest allowed relative difference of a tensor, |a - b| / |a| in the Euclidean norm, and of a number; 0 for
        bit for bit. Above 0 only weights are compared, since moments, and what techniques have counted, part sooner.
    parts: of COMPARED, those to compare.
    """
    for part in parts if tolerance == 0 else COMPARED[:1]:
        mine, theirs = (dict(leaves(_without_trial(checkpoint.get(part, {})), part)) for checkpoint in (one, two))
        if missing := sorted(mine.keys() ^ theirs.keys()):
            return f"only one of the runs has {missing[0]}"
        for name, value in mine.items():
            if (difference := _difference(value, theirs[name], tolerance)) is not None:
                return f"{name}: {difference}"
    return None


def _without_trial(part: Any) -> Any:
    return {key: value for key, value in part.items() if key != OF_SWEEPS} if isinstance(part, Mapping) else part


def _difference(one: Any, two: Any, tolerance: float) -> str | None:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape != two.shape or one.dtype != two.dtype:
            return f"{list(one.shape)} {one.dtype} and {list(two.shape)} {two.dtype}"
        if not one.numel() or torch.equal(_bits(one), _bits(two)):
            return None
        size = float(one.double().norm()) or 1.0
        relative = float((one.double() - two.double()).norm()) / size
        return None if relative <= tolerance else f"relative difference {relative:.2g}"
    if isinstance(one, float) and isinstance(two, float) and tolerance:
        return None if math.isclose(one, two, rel_tol=tolerance) else f"{one} and {two}"
    return None if one == two or (one != one and two != two) else f"{str(one)[:60]} and {str(two)[:60]}"


def _bits(value: Tensor) -> Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def compare_metrics(one: Path, two: Path, *, tolerance: float = 0.0, up_to: int | None = None) -> str | None:
    """Returns the first step and metric in which two metrics.csv differ, in the digits that they hold; None if they agree.

    up_to: only rows up to this step. Times are not compared.
    """
    mine, theirs = _rows(one, up_to), _rows(two, up_to)
    for (step, values), (other_step, others) in zip(mine, theirs, strict=False):
        if step != other_step:
            return f"step {step}: the other run has step {other_step} there"
        for name in sorted(values.keys() | others.keys()):
            here, there = values.get(name, ""), others.get(name, "")
            if here != there and not (tolerance and _close(here, there, tolerance)):
                return f"step {step}: {name} is {here or 'missing'} and {there or 'missing'}"
    if len(mine) != len(theirs):
        return f"{len(mine)} and {len(theirs)} rows"
    return None


def _close(one: str, two: str, tolerance: float) -> bool:
    try:
        return math.isclose(float(one), float(two), rel_tol=tolerance)
    except ValueError:
        return False


def _is_time(name: str) -> bool:
    """Whether a metric tells how long something took, which no run repeats."""
    return "seconds" in name or name == "live/share"


def _rows(path: Path, up_to: int | None) -> list[tuple[int, dict[str, str]]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]
    return [
        (int(row["step"]), {name: value for name, value in row.items() if value and name != "step" and not _is_time(name)})
        for row in rows
        if up_to is None or int(row["step"]) <= up_to
    ]
