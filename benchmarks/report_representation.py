"""docs/results/representation.md, from rows of benchmarks/representation.py; called by report.py."""

import statistics

from report import RESULTS, Row, rows, table, where

BOOKS = {
    "oneills1850": "Ryan's Mammoth Collection to O'Neill's Music of Ireland",
    "ryansMammoth": "O'Neill's Music of Ireland to Ryan's Mammoth Collection",
    "null": "Tunes of both books, split at random",
}
FLOORS = ("most frequent class", "n-grams", "random encoder")


def spread(values: list[float]) -> str:
    text = f"{statistics.mean(values):.3f}"
    return f"{text} ± {statistics.stdev(values):.3f}" if len(values) > 1 else text


def _name(row: Row) -> str:
    method = str(row["method"])
    if method.startswith(FLOORS) or row["kind"] == "classes":
        return method.replace("this model", f"{row['objective']}: the whole network")
    return method.replace("this encoder", str(row["objective"]))


def representation() -> str:
    """docs/results/representation.md; returns its table of the summary."""
    found = rows("representation.jsonl")
    if not found:
        return ""
    parts, short = [
        "# Representations and classifiers of scores",
        "The dance (reel, jig, hornpipe, slip jig, strathspey, clog) of tunes of two books, which the headers of 1,874 of them "
        "name; no tokenizer reads headers or titles. Every encoder has 3 layers of width 128. A row of an objective: it was "
        "trained on all tunes of the training split without labels; then a logistic regression, or five nearest neighbours, "
        "reads the dance off its vectors with the stated share of the training labels. The random encoder has the same network "
        "without training; n-grams are those of 1 to 3 tokens, by a logistic regression. Balanced accuracy weighs dances alike.",
    ], []  # fmt: skip
    for book in dict.fromkeys(row["held_out"] for row in found):
        here = [row for row in found if row["held_out"] == book]
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in here:
            groups.setdefault((_name(row), row.get("labels") or "100 %"), []).append(row)
        order = sorted(groups, key=lambda key: (not key[0].startswith(FLOORS), float(key[1].split()[0])))
        lines = []
        for name, labels in order:
            group = list({row["seed"]: row for row in groups[name, labels]}.values())
            figures = [spread([float(row[key]) for row in group]) for key in ("accuracy", "balanced accuracy")]
            lines.append([name, labels, *figures, str(len(group))])
            if labels == "100 %" and "5 nearest" not in name and "balanced" not in name:
                short.append([f"{BOOKS[book].split(' to ')[0]}: {name}" if book == "null" else name, *figures, str(len(group))])
        steps = ", ".join(str(step) for step in sorted({row["steps"] for row in here}))
        header = ["method", "labels", "accuracy", "balanced accuracy", "seeds"]
        parts.append(f"## {BOOKS[book]}\n\n{here[0]['pieces']} test tunes, {steps} training steps.\n\n" + table(header, lines))
    notes = RESULTS / "representation_notes.md"
    again = "OMP_NUM_THREADS=1 python benchmarks/representation.py --held-out oneills1850"
    parts.append(f"Regenerate: `{again}`, then `make report`.")
    parts += [where(found), notes.read_text() if notes.exists() else ""]
    (RESULTS / "representation.md").write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    return table(["dances, from one tune book to another: test tunes", "accuracy", "balanced accuracy", "seeds"], short)
