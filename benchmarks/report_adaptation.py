"""docs/results/adaptation.md, from rows of benchmarks/adapt_style.py; called by report.py."""

import math
import statistics
from typing import Any

from report import RESULTS, Row, rows, table, where

CASES = {"plain": "trained on all styles at once", "reptile": "Reptile", "fomaml": "first-order MAML", "maml": "MAML"}
FLOOR = "n-grams"


def _name(row: Row) -> str:
    method = str(row["method"])
    if method.startswith(FLOOR) or method == "from random weights":
        return method
    how = {"all weights": "fine-tuning", "adapters": "adapters"}.get(method, method)
    options = f" ({', '.join(row['options'])})" if row["options"] else ""
    return f"{CASES[row['case']]}{options}: {how}"


def _figure(group: list[Row]) -> str:
    """The mean over seeds, with their standard deviation; of one seed with the 95 % interval over draws of pieces."""
    values = [float(row["nats_per_note"]) for row in group]
    if len(values) > 1:
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    interval = float(group[0]["interval"])
    return f"{values[0]:.2f}" + ("" if math.isnan(interval) else f" ± {interval:.2f}")


def adaptation() -> str:
    """docs/results/adaptation.md; returns the README's table."""
    found = rows("adaptation.jsonl")
    if not found:
        return ""
    first = found[-1]
    parts = [
        "# A generator in a new style from a few pieces",
        f"Nats per note of whole pieces of a style ({first['test_style']}) that no training has seen, after adaptation to the "
        "first 256 tokens of 1, 5 or 20 other pieces of it; lower is better. A small language model (dim 64, 2 layers) is "
        f"trained on three styles for {first['start']} steps; each case goes on from it, by ordinary training or by "
        "meta-learning on episodes of one style, with as many passes over pieces. Rates are chosen on another style "
        f"({first['val_style']}). Fine-tuning and adapters (rank 8) are Adam on up to four pieces a step; `the algorithm's own "
        "steps` are gradient descent, as in its training. All methods of a seed learn from and are asked about the same pieces. "
        "± is the standard deviation of seeds; with one seed 1.96 standard errors over draws of pieces.",
    ]  # fmt: skip
    short: list[list[str]] = []
    for split in dict.fromkeys(row["split"] for row in found):
        for count in sorted({int(row["pieces"]) for row in found}):
            here = [row for row in found if (row["split"], int(row["pieces"])) == (split, count)]
            steps = sorted({int(row["steps"]) for row in here if row["steps"]})
            groups: dict[str, dict[str, dict[int, Row]]] = {}
            for row in here:
                groups.setdefault(_name(row), {}).setdefault(row["steps"], {})[row["seed"]] = row
            lines = []
            for name, cells in sorted(groups.items(), key=lambda item: (not item[0].startswith(FLOOR), item[0])):
                last = next(iter(next(iter(cells.values())).values()))
                if name.startswith(FLOOR):
                    shown = [_figure(list(cells[""].values())), *[""] * (len(steps) - 1)]
                else:
                    shown = [_figure(list(cells[str(step)].values())) for step in steps]
                seeds = len(next(iter(cells.values())))
                lines.append([name, *shown, str(last["rate"]), str(seeds)])
            header = [f"{count} piece{'s' * (count > 1)}", *(f"{step} steps" for step in steps), "rate", "seeds"]
            parts.append(f"## {split} style, {count} piece{'s' * (count > 1)}\n\n" + table(header, lines))
            if (split, count) == ("test", 5):
                short = [[line[0], line[1], line[-3]] for line in lines]
    cost: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        cost.setdefault(CASES[row["case"]], []).append(row)
    costs = [
        [
            name,
            str(mine[-1]["more"]),
            "default" if mine[-1]["lr"] is None else str(mine[-1]["lr"]),
            f"{mine[-1]['train_cpu_s']:.0f}",
            f"{mine[-1]['evaluate_cpu_s']:.0f}",
            f"{mine[-1]['val_nll']:.3f}",
        ]
        for name, mine in cost.items()
    ]
    header = [
        "second stage",
        "steps",
        "learning rate",
        "CPU-seconds of training",
        "of evaluation",
        f"val nats per token ({first['val_style']})",
    ]
    parts.append("## Cost\n\n" + table(header, costs))
    parts.append("Regenerate: `OMP_NUM_THREADS=1 python benchmarks/adapt_style.py --data FOLDER`, then `make report`.")
    notes = RESULTS / "adaptation_notes.md"
    parts += [where(found), notes.read_text() if notes.exists() else ""]
    (RESULTS / "adaptation.md").write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    return table(["a new style from 5 pieces, nats per note", "0 steps", "most steps"], short) if short else ""
