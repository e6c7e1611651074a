"""docs/results/robustness.md and its pictures, from rows of benchmarks/robustness.py; called by report.py."""

import statistics

from report import RESULTS, Row, rows, table, where
from report_representation import spread

from etude.report.robustness_plots import accuracy_curves

SHOWN = 40.0  # dB, of the table
BEDS = {
    "styles": (
        "Styles of mels",
        "The style (folk, rock, jazz) of segments of rendered tunes: `task=classifier data=arranged heads=[style]`, a "
        "convolutional network on mels, tested on tunes that it has not heard. The inputs that are attacked are the mels.",
    ),
    "composers": (
        "Composers of scores",
        "The composer (seven of them) of `data=composers`: a Transformer of 2 layers of width 64 on rows of 512 tokens. An "
        "example is a passage of up to 512 tokens. The seed also says which works are held out.",
    ),
    "dances": (
        "Dances of scores",
        "The dance (six of them) of `data=dances`, trained on Ryan's Mammoth Collection and tested on O'Neill's Music of "
        "Ireland: a Transformer of 2 layers of width 64 on packed rows of 512 tokens. The inputs that are attacked are the "
        "embeddings of a tune's tokens.",
    ),
}  # fmt: skip


def robustness() -> str:
    """docs/results/robustness.md and its pictures; returns the README's table: none, since the page says it all."""
    places = ("name", "seed", "steps", "train_db")
    latest = {(row.get("bed", "dances"), *(row[name] for name in places)): row for row in rows("robustness.jsonl")}
    if not latest:
        return ""
    parts = [
        "# Robust and semi-supervised training",
        "The budget of an attack is the least signal-to-noise ratio of the change (linf): at 40 dB no value changes by more than "
        "a hundredth of the root mean square, at 10 dB by a third, at 0 dB by as much. Robust accuracy: right, and still right "
        "after the ensemble (APGD on cross-entropy, on DLR and targeted, then Square). Certified: by randomized smoothing (l2) "
        "with a confidence of 99.9 % for each example.",
    ]
    for bed, (title, text) in BEDS.items():
        found = [row for key, row in latest.items() if key[0] == bed]
        if found:
            parts += [f"## {title}\n\n{text}", *_bed(bed, found)]
    notes = RESULTS / "robustness_notes.md"
    parts.append(notes.read_text() if notes.exists() else "")
    (RESULTS / "robustness.md").write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    return ""


def _bed(bed: str, found: list[Row]) -> list[str]:
    """The tables of a bed."""
    attacked = [row for row in found if "under_ensemble" in row]
    parts = []
    if attacked:
        parts += [_attacked_table(attacked), f"![Robust accuracy](robustness_{bed}_ensemble.png)"]
        parts.append(f"![Certified accuracy](robustness_{bed}_certified.png)")
        _pictures(bed, attacked)
    lines, compared = [], [row for row in found if "under_ensemble" not in row] or found
    for name in dict.fromkeys(row["name"] for row in compared):
        mine = [row for row in compared if row["name"] == name]
        steps = ", ".join(sorted({str(row["steps"]) for row in mine}))
        cpu = statistics.mean(row["cpu_s"] for row in mine)
        balanced = [spread([row["balanced"] for row in mine])] if "balanced" in mine[0] else []
        lines.append([name, spread([row["clean"] for row in mine]), *balanced, steps, f"{cpu:.0f}", str(len(mine))])
    return [
        *parts,
        f"Accuracy on {compared[0]['tunes']} unchanged test examples, and what training costs. The teacher of noisy_student is "
        "the plain run, so it has cost twice the steps: compare it with that row.",
        table(
            ["training", "accuracy", *(["balanced"] if "balanced" in compared[0] else []), "steps", "CPU seconds", "seeds"], lines
        ),
        f"Regenerate: `OMP_NUM_THREADS=1 python benchmarks/robustness.py --bed {bed}`, then `make report`.",
        where(found),
    ]


def _attacked_table(found: list[Row]) -> str:
    ratios = sorted({float(ratio) for row in found for ratio in row["under_ensemble"]}, reverse=True)
    header = [
        "training",
        "clean",
        *(f"{ratio:g} dB" for ratio in ratios),
        f"noise, {SHOWN:g} dB",
        f"certified, {SHOWN:g} dB",
        "seeds",
    ]
    lines = []
    for name in dict.fromkeys(_label(row) for row in found):
        mine = [row for row in found if _label(row) == name]
        under = [spread([row["under_ensemble"][str(ratio)][0] for row in mine]) for ratio in ratios]
        noise = spread([row["under_ensemble"][str(SHOWN)][1] for row in mine])
        sure = spread([row["certified"][str(SHOWN)] for row in mine])
        lines.append([name, spread([row["clean_of_attacked"] for row in mine]), *under, noise, sure, str(len(mine))])
    return table(header, lines)


def _label(row: Row) -> str:
    return str(row["name"]) if row["name"] == "plain" else f"{row['name']} at {row['train_db']:g} dB"


def _pictures(bed: str, found: list[Row]) -> None:
    shown: dict[str, list[Row]] = {"ensemble": [], "certified": []}
    for name in dict.fromkeys(_label(row) for row in found):
        mine = [row for row in found if _label(row) == name]
        for ratio in mine[0]["under_ensemble"]:
            under = statistics.mean(row["under_ensemble"][ratio][0] for row in mine)
            sure = statistics.mean(row["certified"][ratio] for row in mine)
            clean = statistics.mean(row["clean_of_attacked"] for row in mine)
            smoothed = statistics.mean(row["smoothed"] for row in mine)
            shown["ensemble"].append({"training": name, "snr_db": ratio, "clean accuracy": clean, "robust": under})
            shown["certified"].append({"training": name, "snr_db": ratio, "clean accuracy": smoothed, "certified": sure})
    for kind, column in (("ensemble", "robust"), ("certified", "certified")):
        picture = accuracy_curves(shown[kind], columns=[column], title=f"{column} accuracy", by="training")
        (RESULTS / f"robustness_{bed}_{kind}.png").write_bytes(picture)
