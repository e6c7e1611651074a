"""docs/results/heads.md, from rows of benchmarks/heads.py; called by report.py."""

import statistics

import numpy as np
from report import RESULTS, Row, rows, table, where

from etude.metrics.sets.affinity import best_groups

BEDS = {
    "genres": "A folder of 371 scores in five genres",
    "composers": "Works of seven composers (`data=composers`)",
}
NAMES = {
    "alone": "single tasks, a run for each head",
    "joint": "all heads together, uniform weights",
    "grouped": "groups by measured affinity",
    "longer": "all heads together, uniform weights, three times the steps",
    "soft": "together, sharing=soft",
    "cross_stitch": "together, sharing=cross_stitch",
    "attention": "together, sharing=attention",
}
OURS = "this model"


def spread(values: list[float]) -> str:
    text = f"{statistics.mean(values):.3f}"
    return f"{text} ± {statistics.stdev(values):.3f}" if len(values) > 1 else text


def _name(name: str) -> str:
    return NAMES.get(name, f"together, technique=balance method={name}")


def _scores(found: list[Row], split: str, heads: list[str]) -> list[list[str]]:
    """Returns a line for each floor and each way of training: balanced accuracy of each head, and the mean of them."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        if row["split"] == split:
            groups.setdefault(_name(row["name"]) if row["method"] == OURS else row["method"], []).append(row)
    floors = [name for name, group in groups.items() if group[0]["method"] != OURS]
    lines = []
    for name in [*floors, *(name for name in groups if name not in floors)]:
        own = {head: {r["seed"]: float(r["balanced accuracy"]) for r in groups[name] if r["head"] == head} for head in heads}
        seeds = set.intersection(*(set(each) for each in own.values()))  # with all heads; a single task may not be measured yet
        figures = [spread(list(own[head].values())) if own[head] else "" for head in heads]
        means = [statistics.mean(own[head][seed] for head in heads) for seed in sorted(seeds)]
        lines.append([name, *figures, spread(means) if means else "", str(max(map(len, own.values())))])
    return lines


def _calibration(found: list[Row], heads: list[str]) -> str:
    lines = []
    for name in dict.fromkeys(row["name"] for row in found):
        for head in heads:
            mine = [r for r in found if r["name"] == name and r["head"] == head and r["split"] == "test" and r["method"] == OURS]
            if mine:
                keys = ("temperature", "calibration error before", "calibration error")
                lines.append([f"{_name(name)}: {head}", *(spread([float(r[key]) for r in mine]) for key in keys)])
    return table(["test", "temperature", "calibration error before", "after"], lines)


def _affinity(found: list[Row], heads: list[str]) -> str:
    parts = []
    for step in sorted({row["affinity_step"] for row in found if "affinity" in row}):
        each = {row["seed"]: np.array(row["affinity"]) for row in found if row.get("affinity_step") == step}
        mean = np.mean(list(each.values()), axis=0)
        lines = [[f"a step for {source}", *(f"{value:+.4f}" for value in row)] for source, row in zip(heads, mean, strict=True)]
        groups = "; ".join(" with ".join(heads[i] for i in group) for group in best_groups(mean))
        parts.append(
            f"By how much a step for one head lowers the loss of another (`technique=affinity`, steps of {step:g} of the norm of "
            f"the shared weights; seeds: {len(each)}):\n\n"
            + table(["", *(f"loss of {head}" for head in heads)], lines)
            + f"\n\nThe groups that follow: {groups}."
        )
    return "\n\n".join(parts)


def heads() -> str:
    """docs/results/heads.md; returns the README's table."""
    found = rows("heads.jsonl")
    if not found:
        return ""
    parts = [
        "# Several heads",
        "`task=classifier heads=[...]` with an encoder of 2 layers of width 64. Balanced accuracy, in which every class counts "
        "alike. The head `metre` does not see the tokens of time signatures, and neither do the n-grams beside it; bars tell its "
        "length still. `key` is what an estimate from all notes says. Weights are those after the last step, so nothing is "
        "chosen on the test pieces; which weighting is the best is to be read off the validation table.",
    ]
    for bed in dict.fromkeys(row["bed"] for row in found):
        here = [row for row in found if row["bed"] == bed]
        names = next(row["heads"] for row in here if "heads" in row)
        steps = ", ".join(str(step) for step in sorted({row["steps"] for row in here}))
        header = ["", *names, "mean", "seeds"]
        counts = {row["head"]: f"{row['pieces']} pieces, {row['classes']} classes" for row in here if row["split"] == "test"}
        told = "; ".join(f"{head}: {counts[head]}" for head in names if head in counts)
        test = table(["test", *header[1:]], _scores(here, "test", names))
        parts.append(f"## {BEDS[bed]}\n\n{steps} training steps. Test: {told}.\n\n{test}")
        parts.append(table(["validation", *header[1:]], _scores(here, "val", names)))
        parts += [_affinity(here, names), _calibration(here, names)]
    notes = RESULTS / "heads_notes.md"
    again = "OMP_NUM_THREADS=1 python benchmarks/heads.py genres --scores DIR --floors"
    parts.append(f"Regenerate: `{again}`, `benchmarks/heads.py composers --floors`, then `make report`.")
    parts += [where(found), notes.read_text() if notes.exists() else ""]
    (RESULTS / "heads.md").write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    return ""
