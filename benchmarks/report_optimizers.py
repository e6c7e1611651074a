"""docs/results/optimizers.md, from rows of optimizers.py; called by report.py."""

import statistics

from report import RESULTS, Row, rows, spread, table, where

DATA = {"jsb": "chorales", "genres": "five genres"}


def _tuning(found: list[Row]) -> str:
    """What tuning found for each optimizer, and what it cost."""
    lines = []
    for row in found:
        finished = [trial for trial in row["trials"] if trial["value"] is not None]
        best = min(finished, key=lambda trial: trial["value"])
        settings = ", ".join(f"{key.removeprefix('optimizer.')} {value:g}" for key, value in best["settings"].items())
        lines.append([
            row["optimizer"], DATA[row["data"]], f"{row['trials'][0]['value']:.3f}", f"{best['value']:.3f}",
            settings or "those of before", f"{len(row['trials'])}, {len(row['trials']) - len(finished)}", f"{row['steps']:,}",
        ])  # fmt: skip
    header = ["optimizer", "tuning pieces", "with the settings of before", "best", "its settings", "trials, of them pruned",
              "steps of tuning"]  # fmt: skip
    return table(header, lines)


def _comparison(found: list[Row]) -> str:
    """Each optimizer and level on each data set, mean and deviation over seeds."""
    names = list(dict.fromkeys(row["name"] for row in found))
    values = {
        name: {data: [r["best"] for r in found if (r["name"], r["data"]) == (name, data)] for data in DATA} for name in names
    }
    seconds = {name: [r["cpu_s"] / r["steps"] for r in found if r["name"] == name] for name in names}
    base = statistics.mean(seconds.get("adamw, shared", [1.0]))
    lines = [
        [name, *(spread(mine) if (mine := values[name][data]) else "" for data in DATA),
         f"{statistics.mean(seconds[name]) / base:.2f}", str(max(len(mine) for mine in values[name].values()))]
        for name in names
    ]  # fmt: skip
    return table(["optimizer or level", *(f"{data}, nats/token" for data in DATA.values()), "cost of a step", "seeds"], lines)


def optimizers() -> str:
    """docs/results/optimizers.md; returns its table of the summary."""
    tuning, compared = rows("optimizer_tuning.jsonl"), rows("optimizers.jsonl")
    if not tuning:
        return ""
    parts = [
        "# Optimizers, each with settings of its own",
        "Small models and short runs (a quarter of a million parameters, 150 steps, a cosine schedule; see "
        "`benchmarks/optimizers.py`). Every optimizer had the same number of trials: random points of the space `optimizer`, the "
        "same ones on both data sets, the median pruner, and its former settings as one trial more. Tuning saw training pieces "
        "only, and validated on a fifth of them.",
        _tuning(tuning), where(tuning),
    ]  # fmt: skip
    short = ""
    if compared:
        parts += [
            "## Compared on pieces that no setting was chosen on",
            "The lowest validation likelihood of a run. *shared*: one setting for both data sets, that of the trial which loses "
            "least on both together. *tuned*: the best setting of this data set. The levels have "
            "the defaults.",
            _comparison(compared), where(compared),
        ]  # fmt: skip
        short = _comparison([row for row in compared if not row["name"].endswith("tuned")])
    if longer := rows("optimizers_long.jsonl"):
        parts += [
            f"## In runs of {longer[0]['steps']} steps",
            "Whether settings that 150 steps chose hold in longer runs. *default*: conf/optimizer.",
            _comparison(longer), where(longer),
        ]  # fmt: skip
    parts.append(
        "Regenerate: `python benchmarks/optimizers.py tune`, then `compare`, with `--data jsb=FILE genres=FOLDER`; `make report`."
    )
    notes = RESULTS / "optimizers_notes.md"
    (RESULTS / "optimizers.md").write_text(
        "\n\n".join([*parts, *([notes.read_text().rstrip()] if notes.exists() else [])]) + "\n"
    )
    return short
