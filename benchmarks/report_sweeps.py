"""docs/results/sweeps.md, from rows of its benchmarks; called by report.py."""

import statistics
from collections import Counter

from report import RESULTS, Row, rows, table, where


def _gain(found: list[Row]) -> str:
    header = ["seed", "random search: best", "its trials", "its steps", "TPE: best", "its trials, of them pruned", "its steps",
              "share of the steps"]  # fmt: skip
    lines = [
        [
            str(row["seed"]), f"{row['random_best']:.4f}", str(row["trials"]), f"{row['random_steps']:,}",
            f"{row['tpe_best']:.4f}", f"{row['tpe_trials']}, {row['tpe_pruned']}", f"{row['tpe_steps']:,}",
            f"{100 * row['share']:.0f} %" + ("" if row["reached"] else ", not reached"),
        ]
        for row in found
    ]  # fmt: skip
    return table(header, lines)


def _kills(found: list[Row]) -> str:
    ran = [row for row in found if row.get("held") is not None and row.get("kills")]
    signals = Counter(kill for row in ran for kill in row["kills"])
    held = sum(bool(row["held"]) for row in ran)
    told = ", ".join(f"{count} {name}" for name, count in signals.most_common())
    return (
        f"{held} of {len(ran)} runs that were killed, {signals.total()} times in all, ended with the weights, the optimizer's "
        f"state and the metrics of the uninterrupted run, bit for bit ({told})."
    )


def sweeps() -> str:
    """docs/results/sweeps.md; returns its table of the summary."""
    gain, speed, killed, runs = (rows(f"{name}.jsonl") for name in ("sweep_gain", "sweep_speed", "sweep_kills", "random_kills"))
    parts, short = ["# Sweeps and recovery"], []
    if gain:
        share = statistics.mean(row["share"] for row in gain)
        parts += [
            "## Steps that TPE with pruning needs for what random search finds",
            "A small chorale model, six settings (two rates, weight decay, warm-up, two dropouts), validation after every 8 of "
            "40 steps. Random search finishes all its trials; TPE with the median pruner searches until a trial is as good as "
            "the best of random search. Steps are those of all trials, pruned ones included.",
            _gain(gain), where(gain),
        ]  # fmt: skip
        seeds = "1 seed" if len(gain) == 1 else f"{len(gain)} seeds"
        short.append([f"steps of TPE with pruning until random search's best, {seeds}", f"{100 * share:.0f} %"])
    if speed:
        row = speed[-1]
        parts += [
            "## What a sweep costs",
            f"{row['trials']} trials that take no time cost {1000 * row['seconds_per_trial']:.0f} ms each. Twenty trials of one "
            f"second took {row['one_slot']:.1f} s in one slot and {row['two_slots']:.1f} s in two: {row['speedup']:.2f} times as "
            "fast.",
            where([row]),
        ]
        short.append([f"{row['trials']} trivial trials, each", f"{1000 * row['seconds_per_trial']:.0f} ms"])
        short.append(["two slots against one", f"{row['speedup']:.2f} times as fast"])
    if killed:
        parts += [
            "## Sweeps that are killed",
            table(
                ["kills", "jobs", "trials", "finished", "done twice", "the same as uninterrupted", "best", "best uninterrupted"],
                [
                    [str(row[key]) for key in ("kills", "jobs", "trials", "finished", "twice", "same")]
                    + [f"{row['best']:.4f}", f"{row['best_uninterrupted']:.4f}"]
                    for row in killed
                ],
            ),
            where(killed),
        ]
    if runs:
        parts += ["## Runs that are killed", _kills(runs)]
        ran = [row for row in runs if row.get("kills")]
        short.append(["killed runs with a bit-identical ending", f"{sum(bool(row['held']) for row in ran)} of {len(ran)}"])
    if loggers := rows("logger_overhead.jsonl"):
        row = loggers[-1]
        parts += [
            "## What the loggers cost",
            f"{row['loggers'].replace(',', ', ')} together, written every {row['every']} steps: {100 * row['share']:.1f} % of a "
            f"training step (a mean over {len(row['shares'])} periods, from {100 * min(row['shares']):.1f} to "
            f"{100 * max(row['shares']):.1f} %), beside {100 * row['own_process_share']:.1f} % in W&B's own process.",
            where([row]),
        ]
        short.append(["the three loggers, of a training step", f"{100 * row['share']:.1f} %"])
    if len(parts) == 1:
        return ""
    parts.append(
        "Regenerate: `python benchmarks/sweep_gain.py`; `sweep_speed.py`, `sweep_kills.py`, `logger_overhead.py` and "
        "`random_kills.py --kills 500`, each with `--rows docs/results/rows/NAME.jsonl`; then `make report`."
    )
    notes = RESULTS / "sweeps_notes.md"
    (RESULTS / "sweeps.md").write_text("\n\n".join([*parts, *([notes.read_text().rstrip()] if notes.exists() else [])]) + "\n")
    return table(["sweeps and recovery", "measured"], short)
