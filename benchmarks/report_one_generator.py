"""The section of docs/results/style_transfer.md on one generator for all styles, and on clips that give styles."""

import statistics
from collections.abc import Mapping
from typing import Any

from report import Row, rows, table, where

SHOWN = ("l1_nats", "chroma_r", "accuracy", "frechet_bel2", "onset_f")
SIDES = {"pairwise": "a generator for each direction", "shared": "one generator"}
Columns = Mapping[str, tuple[str, Any, int]]  # label, factor, decimal places

KNOWN = """Held-out tunes, restyled by the style's name, by three clips of its training tunes in turn, and as a control by the
name with clips of a third style: what the clip adds to the name."""

UNKNOWN = """A style that the model never heard: a brass band that plays the same held-out tunes (trumpet, horns, tuba, drums),
shown by three clips of validation tunes in turn. *Nearest style*: of the two that are not the source, the one whose bands are
nearest to the clip; its name stands for the unknown style. *Bands of the clip*: the result gets the mean and deviation of the
clip's bands, not those of the nearest style."""


def one_generator(columns: Columns) -> list[str]:
    """Returns the section: one generator against one for each direction, then styles given by clips.

    columns: of the tables of styles.
    """
    latest = {(r["recipe"], r["source"], r["target"], r["row"]): r for r in rows("style_shared.jsonl")}
    if not latest:
        return []
    models = [row for row in latest.values() if row["row"] == "model"]
    lines = []
    for source, target in dict.fromkeys((row["source"], row["target"]) for row in models):
        kinds = {"affine": (next(iter(SIDES)), "affine"), **{label: (recipe, "model") for recipe, label in SIDES.items()}}
        for label, (recipe, kind) in kinds.items():
            if (row := latest.get((recipe, source, target, kind))) is not None:
                lines.append([f"{source} to {target}: {label}", *_means([row], columns, SHOWN)])
    for recipe, label in SIDES.items():
        if mine := [row for row in models if row["recipe"] == recipe]:
            lines.append([f"**mean of all directions: {label}**", *_means(mine, columns, SHOWN)])
    runs = {row["recipe"]: row for row in models}
    told = "; ".join(f"{name}: {r['steps']:,} steps, {r['parameters'] / 1e6:.2f} M parameters" for name, r in runs.items())
    seconds = max(row["budget_s"] for row in models)
    introduction = (
        f"Folk, rock and jazz in one run, six directions, {seconds:.0f} CPU-seconds of training in total for each of the two, "
        f"one seed: task=style_transfer (pairwise) and task=stargan (shared). {told}."
    )
    parts = ["## One generator for all styles", introduction, table(["direction", *_labels(columns, SHOWN)], lines)]
    return [*parts, where(list(latest.values())), *_clips(columns)]


def _clips(columns: Columns) -> list[str]:
    latest = list({(r["model"], r["source"], r["target"], r["row"]): r for r in rows("style_clips.jsonl")}.values())
    parts, without_accuracy = [], [column for column in SHOWN if column != "accuracy"]
    for model in dict.fromkeys(row["model"] for row in latest):
        mine = [row for row in latest if row["model"] == model]
        known, unknown = ([row for row in mine if ("accuracy" in row) is wanted] for wanted in (True, False))
        parts += [f"### A style given by a clip: {model}", KNOWN, _by_row("mean of six directions", known, columns, SHOWN)]
        parts += [UNKNOWN, _by_row("mean of three sources", unknown, columns, without_accuracy), where(mine)]
    return parts


def _by_row(title: str, found: list[Row], columns: Columns, shown: Any) -> str:
    names = dict.fromkeys(row["row"] for row in found)
    lines = [[name, *_means([row for row in found if row["row"] == name], columns, shown)] for name in names]
    return table([title, *_labels(columns, shown)], lines)


def _labels(columns: Columns, shown: Any) -> list[str]:
    return [columns[name][0] for name in shown]


def _means(found: list[Row], columns: Columns, shown: Any) -> list[str]:
    scales = [(name, *columns[name][1:]) for name in shown]
    return [f"{factor * statistics.mean(row[name] for row in found):.{digits}f}" for name, factor, digits in scales]
