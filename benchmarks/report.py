"""Generates the tables and figures of docs/results, and the README's short table, from docs/results/rows."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
Row = dict[str, Any]
PUBLISHED = (("Transformer (Huang et al. 2019)", 0.417), ("Music Transformer (Huang et al. 2019)", 0.335))
COLUMNS = ("val_token", "test_token", "val_frame", "test_frame")


def rows(name: str) -> list[Row]:
    """Returns the rows of one benchmark; an empty list if it was not run."""
    path = RESULTS / "rows" / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(header: list[str], lines: list[list[str]]) -> str:
    """Returns a Markdown table; all columns but the first are right-aligned."""
    rule = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join(["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)])


def where(found: list[Row]) -> str:
    """Returns a list of commands, commits, dates, hardware and load of the rows."""
    keys, groups = ("command", "commit", "date", "hardware"), dict[str, list[float]]()
    for row in found:
        line = "; ".join(f"{k}: `{_public(row[k])}`" for k in keys if row.get(k) is not None)
        groups.setdefault(line, []).extend([row["load"]] if row.get("load") is not None else [])
    lines = []
    for line, loads in groups.items():
        shown = "" if not loads else f"{min(loads)}" if min(loads) == max(loads) else f"{min(loads)} to {max(loads)}"
        lines.append(f"- {line}" + (f"; load: `{shown}`" if shown else ""))
    return "\n".join(line for line in lines if line != "- ")


def _public(value: object) -> str:
    return re.sub(r"(?<![\w.])(?:/[\w.+-]+)+/([\w.-]+)", r"\1", str(value))  # remove folders, which differ between machines


def spread(values: list[float], digits: int = 4) -> str:
    """Returns mean and standard deviation as text."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def jsb() -> str:
    """docs/results/jsb.md and its picture; returns its table of the summary."""
    found = rows("jsb.jsonl")
    if not found:
        return ""
    header = ["model", "val, nats/token", "test, nats/token", "val, nats/frame", "test, nats/frame"]
    lines = [[name, f"{value:.3f}", "", f"{4 * value:.3f}", ""] for name, value in PUBLISHED]
    best = {row["model"]: row for row in found if row["seed"] is None}
    lines = [[name, *(f"{row[c]:.3f}" for c in COLUMNS)] for name, row in best.items()] + lines
    runs = [row for row in found if row["model"] == "etude"]
    if runs:
        ours = [f"**Etude, `experiment=jsb`, {len(runs)} seeds**", *(f"**{spread([r[c] for r in runs])}**" for c in COLUMNS)]
        lines.append(ours)
        curve(runs)
    for name in dict.fromkeys(row["model"] for row in found if row["seed"] is not None and row["model"] != "etude"):
        mine = [row for row in found if row["model"] == name]
        lines.append([f"Etude, {name}, {len(mine)} seeds", *(spread([r[c] for r in mine]) for c in COLUMNS)])
    summary = table(header, lines)
    each = [[f"seed {r['seed']}", *(f"{r[c]:.4f}" for c in COLUMNS), f"{r['minutes']:.1f}", str(r["threads"])] for r in runs]
    tried = [
        [f"`{' '.join(r['equivalent_command'].split()[3:])}`", f"{r['parameters'] / 1e6:.1f}", f"{r['steps']} of {r['planned']}",
         f"{r['train']:.3f}", f"{r['best_val']:.4f}", str(r["best_step"])]
        for r in rows("jsb_tried.jsonl")
    ]  # fmt: skip
    tries = table(["change", "parameters, M", "steps", "last train, with dropout", "best val", "at step"], tried)
    notes = (RESULTS / "jsb_notes.md").read_text() if (RESULTS / "jsb_notes.md").exists() else ""
    text = f"""# JSB chorales, sixteenth grid

Negative log-likelihood of the four interleaved voices, weighted by token: every pitch and rest token of every piece is
counted, including the first frame, without padding, and each piece is evaluated as a whole. Canonical split: 229, 76 and 77
pieces. The checkpoint with the best validation likelihood is evaluated in float32, with one forward pass of averaged weights.

{summary}

![Validation likelihood during training](jsb.png)

{table(["run", *header[1:], "minutes", "threads"], each)}

Regenerate: `python benchmarks/jsb.py Jsb16thSeparated.json --seeds 0 1 2`, then `make report`.

{where(found)}

## What was tried

One seed each, validation only. Runs that stop before their last step were stopped early.

{tries}

{notes}"""
    (RESULTS / "jsb.md").write_text(text)
    return summary


def curve(runs: list[Row]) -> None:
    """Draws the validation curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    for run in runs:
        axis.plot(*zip(*run["curve"], strict=True), marker="o", markersize=3, label=f"seed {run['seed']}")
    for name, value in PUBLISHED:
        axis.axhline(value, color="#888", linewidth=0.8, linestyle="--")
        axis.annotate(name, (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    axis.set(xlabel="optimizer steps of about 2,000 tokens", ylabel="validation, nats per token", ylim=(0.32, 0.56))
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "jsb.png", dpi=140, metadata={"Software": None})


def speed() -> str:
    """docs/results/speed.md; returns its table of the summary."""
    parts, short = ["# Speed\n\nEach comparison is one run on one machine, alternating sides; ratios are medians over pairs."], []
    for title, name in (
        ("Training against a Llama of the same shape (bf16 autocast, forward, backward, AdamW)", "train_speed.jsonl"),
        ("Generation against the same Llama's `generate`", "generate_speed.jsonl"),
    ):
        found = rows(name)
        pairs = [row for row in found if "ratio" in row]
        if not pairs:
            continue
        lines = [
            [row["case"], f"{row['tokens'] / row['ours_s']:,.0f}", f"{row['tokens'] / row['peer_s']:,.0f}",
             f"{row['ratio']:.2f} ({row['ratio_quartiles'][0]:.2f}-{row['ratio_quartiles'][1]:.2f})", f"{row['cpu_ratio']:.2f}"]
            for row in pairs
        ]  # fmt: skip
        parts.append(
            f"## {title}\n\n" + table(["case", "Etude tokens/s", "peer tokens/s", "ratio (quartiles)", "CPU-time ratio"], lines)
        )
        for row in (row for row in found if "step_ms" in row):
            parts.append(f"{row['case']}: " + ", ".join(f"{ms:.2f}" for ms in row["step_ms"]) + " ms a step in each eighth")
        parts.append(where(pairs))
        short += [[f"{title.split(' (')[0]}: {row['case']}", f"{row['ratio']:.2f}"] for row in pairs]
    parts += long_context() + gpu()
    path = RESULTS / "rows" / "metrics.json"
    if path.exists():
        found = json.loads(path.read_text())
        ms = {side: 1000 * seconds / found["files"] for side, seconds in found["median_seconds"].items()}
        ratio, total = found["times_faster"], found["values_compared"]
        parts.append("## Metrics\n\n" + table(["side", "ms a file"], [[side, f"{value:.2f}"] for side, value in ms.items()]))
        parts.append(
            f"{ratio:.1f} times as fast as muspy on {found['files']} files; "
            f"{found['values_equal']} of {total} values equal to 1e-9."
        )
        parts.append(where([found]))
        short.append([f"Musical metrics against muspy, {found['files']} files", f"{ratio:.1f}"])
    found = rows("data.jsonl")
    if found:
        sides = [row for row in found if "batches_per_s" in row]
        lines = [
            [
                row["case"],
                f"{row['pieces_per_s']:,.1f}",
                f"{row['batches_per_s']:,.1f}",
                f"{row['tokens_per_s']:,.0f}",
                f"{100 * row['padding']:.1f} %",
            ]
            for row in sides
        ]
        parts.append(
            "## Data\n\n" + table(["side", "pieces/s into the store", "batches/s out", "real tokens/s out", "padding"], lines)
        )
        for row in (row for row in found if "share" in row):
            parts.append(
                f"Loader: {1000 * row['draw_s']:.2f} ms of a training step of "
                f"{1000 * row['step_s']:.0f} ms, {100 * row['share']:.2f} %."
            )
            short.append(["Loader's share of a training step", f"{100 * row['share']:.2f} %"])
        parts.append(where(sides))
    notes = RESULTS / "speed_notes.md"
    again = 'Regenerate: `make bench ARGS="--scores MIDI_FOLDER --jsb Jsb16thSeparated.json"`, then `make report`.'
    parts.append(again + ("\n\n" + notes.read_text() if notes.exists() else ""))
    (RESULTS / "speed.md").write_text("\n\n".join(parts) + "\n")
    return table(["comparison, one run, two sides in turn", "ratio"], short) if short else ""


def long_context() -> list[str]:
    """The parts of docs/results/speed.md about long pieces with and without a window."""
    found = rows("long_context.jsonl")
    timed = [row for row in found if "length" in row]
    if not timed:
        return []
    lengths = sorted({row["length"] for row in timed})
    groups: dict[tuple[str, int], dict[int, Row]] = {}
    for row in timed:
        groups.setdefault((row["case"], row["batch"]), {})[row["length"]] = row
    header = ["case", "batch", *(f"{n:,} tokens, ms" for n in lengths), *(f"{n:,} tokens, MB" for n in lengths)]
    lines = [
        [
            case,
            str(batch),
            *(f"{each[n]['cpu_ms']:.1f}" for n in lengths),
            *(f"{each[n]['cache_bytes'] / 1e6:.1f}" for n in lengths),
        ]
        for (case, batch), each in groups.items()
    ]
    parts = [
        "## A token behind long pieces\n\nCPU time of one step of all rows, and memory of the cache, behind that many tokens "
        "(dim 256, 6 layers, 4 heads, float32, 1 thread).\n\n" + table(header, lines)
    ]
    for row in (row for row in found if "step_cpu_ms" in row):
        times = ", ".join(f"{ms:.2f}" for ms in row["step_cpu_ms"])
        parts.append(f"{row['case']}, a piece of {row['along']:,} tokens: {times} CPU ms a step in each eighth")
    return [*parts, where(found)]


def gpu() -> list[str]:
    """The parts of docs/results/speed.md about a CUDA device."""
    found = rows("gpu.jsonl")
    steps = [row for row in found if row["what"] == "step"]
    if not steps:
        return []
    header = ["model", "case", "tokens", "ms", "tokens/s", "TFLOP/s", "of the peak", "of a large product", "memory, GB",
              "products, attention, rest"]  # fmt: skip
    lines = [
        [
            row["model"], row["case"], f"{row['tokens']:,}", f"{row['ms']:.0f}", f"{row['tokens_per_s']:,}",
            f"{row['tflops']:.0f}", f"{100 * row['of_peak']:.1f} %", f"{100 * row['of_product']:.1f} %",
            f"{row['memory_gb']:.0f}",
            ", ".join(f"{100 * row['kernels'][kind]:.0f} %" for kind in ("matrix products", "attention", "the rest")),
        ]
        for row in steps
    ]  # fmt: skip
    top = steps[0]
    return [
        f"## A training step on a GPU\n\n{top['device']}, bfloat16 autocast; forward, backward and fused AdamW on packed pieces. "
        f"The peak is the maker's {top['device_peak'] / 1e12:.0f} TFLOP/s; a product of two 8192 x 8192 matrices reached "
        f"{top['device_product'] / 1e12:.0f}, a copy {top['device_copy'] / 1e12:.1f} TB/s. The last column: shares of the "
        "device's time.\n\n" + table(header, lines),
        where(steps),
    ]


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    from report_adaptation import adaptation
    from report_audio import audio
    from report_continual import continual
    from report_defaults import defaults
    from report_few_shot import few_shot
    from report_generation import generation
    from report_grader import grader
    from report_heads import heads
    from report_optimizers import optimizers
    from report_representation import representation
    from report_robustness import robustness
    from report_styles import style_transfer
    from report_summary import summary
    from report_sweeps import sweeps
    from report_synthesis import synthesis
    from report_techniques import techniques
    from report_tokenizers import tokenizers
    from report_vocoder import vocoder

    block = "\n\n".join(
        part
        for part in (
            jsb(),
            defaults(),
            techniques(),
            optimizers(),
            generation(),
            tokenizers(),
            style_transfer(),
            grader(),
            audio(),
            vocoder(),
            synthesis(),
            representation(),
            heads(),
            continual(),
            robustness(),
            few_shot(),
            adaptation(),
            sweeps(),
            speed(),
        )
        if part
    )
    readme = ROOT / "README.md"
    begin, end = "<!-- results: made by `make report` -->", "<!-- end of results -->"
    head, _, rest = readme.read_text().partition(begin)
    readme.write_text(f"{head}{begin}\n\n{summary(block)}\n\n{end}{rest.partition(end)[2]}")
    print("wrote docs/results and the README's table")


if __name__ == "__main__":
    main()
