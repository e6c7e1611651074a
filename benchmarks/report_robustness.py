"""docs/results/robustness.md and its pictures, from rows of benchmarks/robustness.py; called by report.py."""

import statistics

from report import RESULTS, Row, rows, table, where
from report_representation import spread

from etude.report.robustness_plots import accuracy_curves

SHOWN = 40.0  # dB, of the table
RARE = ("defects",)  # beds with rare classes: tables under attack have balanced accuracy
BEDS = {
    "styles": (
        "Styles of mels",
        "The style (folk, rock, jazz) of segments of rendered tunes: `task=classifier data=arranged heads=[style]`, a "
        "convolutional network on mels, tested on tunes that it has not heard. The inputs that are attacked are the mels.",
    ),
    "defects": (
        "Defects of audio",
        "Whether a segment of audio has hum, hiss or wow (means of the three decisions). A defect is rare, so accuracy under "
        "attack is balanced, the mean over segments with and without it: always the same answer has .5. `task=grader`, trained "
        "as in [the grader's results](grader.md), then for the stated steps with and without attacks in training. The inputs "
        "that are attacked are the mels.",
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
    measured = ("under_ensemble", "certified", "bounds")  # the short certificates beside early attacks are not shown
    latest = {
        (row.get("bed", "dances"), *(row[name] for name in places), *(name in row for name in measured)): row
        for row in rows("robustness.jsonl")
    }
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
        parts += [_attacked_table(bed, attacked), f"![Robust accuracy](robustness_{bed}_ensemble.png)"]
        _picture(bed, attacked, "ensemble")
    if sure := [row for row in found if "certified" in row and "under_ensemble" not in row]:
        parts += [_certified_table(sure), f"![Certified accuracy](robustness_{bed}_certified.png)"]
        _picture(bed, sure, "certified")
    if bounded := [row for row in found if "bounds" in row]:
        parts += [
            "Interval bounds of a network for which they are known (`model=grader_plain`): how many decisions no change of the "
            "stated size can turn, beside those that PGD does not turn; the truth lies between the two.",
            _bounds_table(bounded),
        ]
    lines, compared = [], [row for row in found if not {"under_ensemble", "certified", "bounds"} & row.keys()] or attacked
    is_balanced = all("balanced" in row for row in compared)
    taught = " The teacher of noisy_student is the plain run, so it has cost twice the steps: compare it with that row."
    taught = taught if any(row["name"] == "noisy_student" for row in compared) else ""
    for name in dict.fromkeys(row["name"] for row in compared):
        mine = [row for row in compared if row["name"] == name]
        steps = ", ".join(sorted({str(row["steps"]) for row in mine}))
        cpu = statistics.mean(row["cpu_s"] for row in mine)
        balanced = [spread([row["balanced"] for row in mine])] if is_balanced else []
        lines.append([name, spread([row["clean"] for row in mine]), *balanced, steps, f"{cpu:.0f}", str(len(mine))])
    return [
        *parts,
        f"Accuracy on {compared[0]['tunes']} unchanged test examples, and what training costs." + taught,
        table(["training", "accuracy", *(["balanced"] if is_balanced else []), "steps", "CPU seconds", "seeds"], lines),
        f"Regenerate: `OMP_NUM_THREADS=1 python benchmarks/robustness.py --bed {bed}`, then `make report`.",
        where(found),
    ]


def _attacked_table(bed: str, found: list[Row]) -> str:
    ratios = sorted({float(ratio) for row in found for ratio in row["under_ensemble"]}, reverse=True)
    is_balanced = bed in RARE
    header = [
        "training",
        "clean, balanced" if is_balanced else "clean",
        *(f"{ratio:g} dB" for ratio in ratios),
        f"noise, {SHOWN:g} dB" + (", not balanced" if is_balanced else ""),
        "seeds",
    ]
    lines = []
    for name in dict.fromkeys(_label(row) for row in found):
        mine = [row for row in found if _label(row) == name]
        under = [spread([row["under_ensemble"][str(ratio)][2 if is_balanced else 0] for row in mine]) for ratio in ratios]
        noise = spread([row["under_ensemble"][str(SHOWN)][1] for row in mine])
        clean = spread([row["balanced_of_attacked" if is_balanced else "clean_of_attacked"] for row in mine])
        lines.append([name, clean, *under, noise, str(len(mine))])
    return table(header, lines)


def _label(row: Row) -> str:
    return str(row["name"]) if row["name"] == "plain" else f"{row['name']} at {row['train_db']:g} dB"


def _certified_table(found: list[Row]) -> str:
    ratios = sorted({float(ratio) for row in found for ratio in row["certified"]}, reverse=True)
    lines = []
    for name in dict.fromkeys(_label(row) for row in found):
        mine = [row for row in found if _label(row) == name]
        cells = [spread([row["certified"][str(ratio)] for row in mine]) for ratio in ratios]
        noise = f"{mine[0]['samples']} at {mine[0]['noise_db']:g} dB"
        lines.append([name, spread([row["smoothed"] for row in mine]), *cells, noise, str(len(mine))])
    header = ["training", "smoothed classifier", *(f"certain at {ratio:g} dB" for ratio in ratios), "noisy copies", "seeds"]
    return table(header, lines)


def _bounds_table(found: list[Row]) -> str:
    ratios = sorted({float(ratio) for row in found for ratio in row["bounds"]}, reverse=True)
    lines = []
    for place, name in enumerate(("certain by bounds", "not turned by PGD")):
        lines.append([name, *(spread([row["bounds"][str(ratio)][place] for row in found]) for ratio in ratios)])
    clean = spread([row["clean_of_bounded"] for row in found])
    return table([f"accuracy without a change: {clean}", *(f"{ratio:g} dB" for ratio in ratios)], lines)


def _picture(bed: str, found: list[Row], kind: str) -> None:
    """Robust accuracy over the budget for kind=ensemble, certified accuracy for certified."""
    place, of_all = (2, "balanced_of_attacked") if bed in RARE else (0, "clean_of_attacked")
    column, values, clean = ("robust", "under_ensemble", of_all) if kind == "ensemble" else ("certified", "certified", "smoothed")
    shown: list[Row] = []
    for name in dict.fromkeys(_label(row) for row in found):
        mine = [row for row in found if _label(row) == name]
        for ratio in mine[0][values]:
            each = [row[values][ratio][place] if kind == "ensemble" else row[values][ratio] for row in mine]
            unchanged = statistics.mean(row[clean] for row in mine)
            shown.append({"training": name, "snr_db": ratio, "clean accuracy": unchanged, column: statistics.mean(each)})
    picture = accuracy_curves(shown, columns=[column], title=f"{column} accuracy", by="training")
    (RESULTS / f"robustness_{bed}_{kind}.png").write_bytes(picture)
