"""docs/results/representation.md, from rows of benchmarks/representation.py; called by report.py."""

import statistics

from report import RESULTS, Row, rows, table, where

BEDS = {
    "dances": (
        "Dances, from one tune book to another",
        "The dance (reel, jig, hornpipe, slip jig, strathspey, clog) of tunes of two books, which the headers of 1,874 of them "
        "name. Training and its labels are of Ryan's Mammoth Collection, the test is O'Neill's Music of Ireland, which has "
        "four of the six dances.",
    ),
    "essen": (
        "Regions of folk songs",
        "The region (nine, such as China, Lorraine and Silesia) of songs of the Essen collection; 3,705 headers name one. Songs "
        "are split at random, variants together; a third of those with a region are from China, so balanced accuracy counts.",
    ),
    "audio": (
        "Styles of rendered audio",
        "The style (folk, rock, jazz) of segments of mels, in which the same held-out tunes are arranged and rendered; a piece "
        "is the mean of its segments.",
    ),
}  # fmt: skip
FLOORS = ("most frequent class", "n-grams", "band statistics", "random encoder")
CELLS = ("accuracy", "balanced accuracy")


def spread(values: list[float]) -> str:
    text = f"{statistics.mean(values):.3f}"
    return f"{text} ± {statistics.stdev(values):.3f}" if len(values) > 1 else text


def _name(row: Row) -> str:
    """The name of a line: of the floors alone, else the objective, its steps and what was done with its encoder."""
    method, objective = str(row["method"]), str(row["objective"])
    if row["kind"] == "classes" and method == "this model":
        start = objective.removeprefix("fine-tuned").strip()
        return f"task=classifier from the weights of {start or 'an encoder'}" if start != objective else "task=classifier"
    return method.replace("this encoder", f"{objective} ({row['steps']} steps)")


def _lines(here: list[Row]) -> tuple[list[list[str]], list[list[str]]]:
    groups: dict[tuple[str, str], dict[object, Row]] = {}
    for row in here:
        if row["kind"] == "classes" and row["method"] != "this model":
            continue  # the floors, once more
        name = _name(row)
        of = row["objective"] if name.startswith("random encoder") else None  # each objective draws another one with a seed
        groups.setdefault((name, row.get("labels") or "100 %"), {})[row["seed"], of] = row
    order = sorted(groups, key=lambda key: (float(key[1].split()[0]), not key[0].startswith(FLOORS), key[0]))
    lines, best = [], []
    for name, labels in order:
        each = list(groups[name, labels].values())
        line = [name, *(spread([float(row[cell]) for row in each]) for cell in CELLS), str(len(each))]
        lines.append([labels, *line])
        if labels == "100 %" and "nearest" not in name:
            best.append(line)
    return lines, best


def _costs() -> str:
    """The seconds of CPU of a step of each objective, and those of the supervised step as 1."""
    found = {(row["bed"], row["objective"]): row for row in rows("representation_cost.jsonl")}
    if not found:
        return ""
    lines = []
    for (bed, objective), row in found.items():
        one = found.get((bed, "classifier"))
        ratio = f"{row['cpu_s_per_step'] / one['cpu_s_per_step']:.2f}" if one else ""
        lines.append([bed, objective, f"{row['cpu_s_per_step']:.2f}", ratio])
    header = ["data", "objective", "CPU s per step", "times a supervised step"]
    again = "OMP_NUM_THREADS=1 python benchmarks/representation.py --cost"
    return "## The cost of a step\n\n" + table(header, lines) + f"\n\nRegenerate: `{again}`.\n\n{where(list(found.values()))}"


def representation() -> str:
    """docs/results/representation.md; returns its table of the summary."""
    found, notes = rows("representation.jsonl"), RESULTS / "representation_notes.md"
    parts, short = [
        "# What representations are worth",
        "No tokenizer reads headers or titles. A row of an objective: an encoder (3 layers of width 128; of mels 4 layers of "
        "width 96) was trained on all pieces of the training split without labels; then a logistic regression, or five nearest "
        "neighbours, reads the label off its vectors with the stated share of the training labels. The random encoder has the "
        "same network without training, another one for each objective and seed; n-grams are those of 1 to 3 tokens, band "
        "statistics mean and deviation of each mel band. "
        "Every logistic regression chooses its strength of regularisation by cross-validation on the labels that it gets. "
        "*Fine-tuned*: the encoder was trained further on those labels; *supervised from scratch*: a random one likewise.",
    ], []  # fmt: skip
    for bed, (title, text) in BEDS.items():
        here = [row for row in found if row["bed"] == bed]
        if not here:
            continue
        lines, best = _lines(here)
        parts.append(f"## {title}\n\n{text} {here[0]['pieces']} test pieces.\n")
        parts.append(table(["labels", "method", "accuracy", "balanced accuracy", "seeds"], lines))
        parts.append(where(here))
        short += [[title, *line] for line in best]
    if not found:
        parts.append("No measurement yet.")
    parts += [_costs(), f"Regenerate: `OMP_NUM_THREADS=1 python benchmarks/representation.py --beds {' '.join(BEDS)}`."]
    parts += [notes.read_text() if notes.exists() else ""]
    (RESULTS / "representation.md").write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    return table(["data", "method", "accuracy", "balanced accuracy", "seeds"], short) if short else ""
