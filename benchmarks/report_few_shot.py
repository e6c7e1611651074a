"""docs/results/few_shot.md, from rows of benchmarks/few_shot.py; called by report.py."""

import math
import statistics

from report import RESULTS, Row, rows, table, where

FLOORS = ("chance", "n-grams", "random encoder", "fine-tuned from scratch")


def _figure(group: list[Row]) -> str:
    """The mean over seeds, with the standard deviation of seeds; of one seed with the 95 % interval over episodes."""
    values = [float(row["accuracy"]) for row in group]
    if len(values) > 1 and not math.isclose(statistics.pstdev(values), 0):
        return f"{statistics.mean(values):.3f} (seeds ± {statistics.stdev(values):.3f})"
    return f"{values[0]:.3f} ± {float(group[0]['interval']):.3f}" if float(group[0]["interval"]) else f"{values[0]:.3f}"


def _name(row: Row) -> str:
    method = str(row["method"])
    if method.startswith(FLOORS):
        return method
    options = f" ({', '.join(row['options'])})" if row["options"] else ""
    options += ", `task=few_shot` as it stands" if row.get("as_it_stands") else ""
    of = f" of {row['algorithm']}" if "this encoder" in method else ""
    return method.replace("this encoder", "the encoder") + of + options


def few_shot() -> str:
    """docs/results/few_shot.md; returns the README's table."""
    every = rows("few_shot.jsonl")
    found = [row for row in every if "shots" in row and not (row.get("as_it_stands") and row["method"].startswith(FLOORS))]
    if not found:
        return ""
    parts, short = [
        "# New tune families from a few tunes",
        "The Essen Folksong Collection in music21: 79 titles that at least six tunes have. 48 families are training, 14 "
        "validation and 17 test, by a fixed hash; families that share a catalogue number fall together; of equal tunes one is "
        "drawn, and none that an earlier split has. No tokenizer reads headers. "
        "Accuracy over episodes of 5 families; the interval is 1.96 "
        "standard errors over episodes where there is one seed. All methods of a table answer the same episodes. Choices "
        "are for validation families.",
    ], []  # fmt: skip
    for data in dict.fromkeys(row["data"] for row in found):
        for split in dict.fromkeys(row["split"] for row in found if row["data"] == data):
            here = [row for row in found if (row["data"], row["split"]) == (data, split)]
            groups: dict[str, dict[str, list[Row]]] = {}
            for row in here:
                mine = groups.setdefault(_name(row), {}).setdefault(str(row["shots"]), [])
                mine[:] = [one for one in mine if one["seed"] != row["seed"]] + [row]
            shots = sorted({str(row["shots"]) for row in here}, key=int)
            lines = []
            for name in sorted(groups, key=lambda name: not name.startswith(FLOORS)):
                cells = [_figure(groups[name][count]) if count in groups[name] else "" for count in shots]
                last = next(iter(groups[name].values()))
                lines.append([name, *cells, str(last[-1]["episodes"]), str(len(last)), str(last[-1]["steps"])])
            header = ["method", *(f"{count} shot{'s' * (count != '1')}" for count in shots), "episodes", "seeds", "steps"]
            parts.append(f"## {data}, {split} split\n\n" + table(header, lines))
            if (data, split) == ("families", "test"):
                short = [line[: 1 + len(shots)] for line in lines]
    if others := {row["split"]: row for row in every if "shots" not in row}:
        lines = [[split, str(row["families"]), str(row["tunes"]), f"{row['accuracy']:.3f}"] for split, row in others.items()]
        parts.append(
            "## What the labels allow\n\nHow often the nearest of *all* other tunes of five families is of the right one, by an "
            "alignment before any training.\n\n" + table(["split", "families", "tunes", "accuracy"], lines)
        )
    notes = RESULTS / "few_shot_notes.md"
    parts.append("Regenerate: `OMP_NUM_THREADS=1 python benchmarks/few_shot.py`, then `make report`.")
    parts += [where(every), notes.read_text() if notes.exists() else ""]
    (RESULTS / "few_shot.md").write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    return table(["new tune families, 5 at a time", *(f"{count}" for count in ("1 shot", "5 shots"))], short) if short else ""
