"""docs/results/continual.md and its picture, from rows of benchmarks/continual.py; called by report.py."""

import statistics
from dataclasses import dataclass

import numpy as np
from report import RESULTS, Row, rows, spread, table, where

ENDS = ("fine-tuning", "joint")  # what every method lies between
TOLD = {
    "fine-tuning": "nothing",
    "joint": "all pieces, all the time",
    "replay": "40 pieces",
    "agem": "40 pieces",
    "gem": "40 pieces",
    "ewc": "two numbers a weight",
    "ewc, online": "two numbers a weight",
    "si": "four numbers a weight",
    "packnet": "two numbers a weight; which genre a piece is of",
    "meta_replay": "40 pieces; one number a weight",
    "progressive": "a network for each genre; which genre a piece is of",
    "expandable": "hidden units and ends for each genre; which genre a piece is of",
}


@dataclass(frozen=True)
class Section:
    """What the page says about a task other than language_model, the measure that its table shows first, and that of another."""

    title: str
    about: str
    measure: str
    shown: str
    second: str
    shown_second: str
    better: str


SECTIONS = {
    "classifier": Section(
        "A classifier, class after class",
        """A classifier of {parameters:,} parameters tells the genre of a score. Each of its {phases} phases has the pieces of one
genre alone ({genres}; {steps} steps in all, {pieces} pieces), so that in a phase one answer is always right.""",
        "genre_accuracy", "accuracy", "genre_nll", "nats", "higher",
    ),
    "classifier_domain": Section(
        "A classifier, book after book",
        """A classifier of {parameters:,} parameters tells six dances. The classes are the same in both phases, and the music
differs: {genres} ({steps} steps in all, {pieces} tunes).""",
        "dance_accuracy", "accuracy", "dance_nll", "nats", "higher",
    ),
    "style_transfer": Section(
        "Style transfer, pair after pair",
        """One generator for all directions (`task.shared=true`; {parameters:,} parameters with the discriminator) learns {genres}
({steps} steps in all, {pieces} pieces). Measured is the Fréchet distance of the frames of held-out songs to those of the style
that they are translated to, and the L1 to the same song in that style. Joint training has all three styles in every batch, and
is measured on the same pairs.""",
        "frechet", "Fréchet distance, bel²", "l1", "L1, nats", "lower",
    ),
}  # fmt: skip


def share_of_gap(name: str, groups: dict[str, list[Row]]) -> str:
    """How far from joint training a method ends, as a share of the distance of fine-tuning: means over seeds that all three have.

    Nothing where the seeds differ in which of the two is ahead: then joint training is no bound to come near to.
    """
    if name in ENDS or any(end not in groups for end in ENDS):
        return ""
    finals = {case: {row["seed"]: row["final"] for row in groups[case]} for case in (name, *ENDS)}
    seeds = sorted(set.intersection(*(set(each) for each in finals.values())))
    gaps = [finals["fine-tuning"][s] - finals["joint"][s] for s in seeds]
    if not gaps or min(gaps) * max(gaps) <= 0:
        return ""
    return f"{100 * sum(finals[name][s] - finals['joint'][s] for s in seeds) / sum(gaps):.0f} %"


def matrices(groups: dict[str, list[Row]]) -> None:
    """Draws the forgetting matrix of each case of the language model, of its first seed."""
    from matplotlib.figure import Figure

    shown = {name: found[0] for name, found in groups.items() if len(found[0]["nll_per_note"]) > 2}
    values = np.concatenate([np.asarray(row["nll_per_note"][1:]) for row in shown.values()])
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).flatten()
    for axis, (name, row) in zip(axes, shown.items(), strict=False):
        matrix = np.asarray(row["nll_per_note"][1:])
        axis.imshow(matrix, cmap="Blues", vmin=float(values.min()), vmax=float(np.quantile(values, 0.95)), aspect="auto")
        for (i, j), value in np.ndenumerate(matrix):
            dark = value > (values.min() + np.quantile(values, 0.95)) / 2
            axis.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
        axis.set_xticks(range(len(row["genres"])), row["genres"], fontsize=7, rotation=30)
        axis.set_yticks(range(len(matrix)), row["after"][1:], fontsize=7)
        axis.set_title(f"{name}, seed {row['seed']}", fontsize=9)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    figure.supxlabel("measured on the held-out pieces of", fontsize=8)
    figure.supylabel("after training on", fontsize=8)
    figure.savefig(RESULTS / "continual.png", dpi=140, metadata={"Software": None})


def grouped(found: list[Row]) -> dict[str, list[Row]]:
    """Returns the rows by the name of their case."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        groups.setdefault(row["name"], []).append(row)
    return groups


def task_of(row: Row) -> str:
    """Returns the task of a row; the oldest rows, all of the language model, do not say it."""
    return str(row.get("task", "language_model"))


def shown_rows(measured: list[Row], task: str) -> list[Row]:
    """Returns the rows of a task's table: those on test or, as long as there are none, the latest on val.

    On val, rows count that have the options of the latest one but for its technique, if a technique was measured at all.
    """
    mine = [row for row in measured if task_of(row) == task]
    if found := [row for row in mine if row["split"] == "test"]:
        return found
    found = [row for row in mine if plain_options(row) == plain_options(mine[-1])]
    return found if {row["name"] for row in found} - set(ENDS) else []


def plain_options(row: Row) -> dict[str, str]:
    """Returns the options of a row but for those of its technique and phases; of one that is given twice, the last."""
    last = dict(each.split("=", 1) for each in row["options"].split())
    return {key: value for key, value in last.items() if not key.startswith(("technique", "stage"))}


def tried_options(row: Row) -> str:
    """Returns the options of a row that choices were about; of one that is given twice, the last."""
    last = dict(each.split("=", 1) for each in row["options"].split())
    keys = ("technique.", "optimizer.lr", "model.dim", "max_steps")
    return " ".join(f"{key}={value}" for key, value in last.items() if key.startswith(keys) and value != "val")


def first_measure(row: Row) -> float:
    """Returns the mean over phases, in the end, of the measure that a task's table shows first."""
    about = SECTIONS.get(task_of(row))
    return float(row["final"]) if about is None else statistics.mean(row[about.measure][-1])


def section(task: str, found: list[Row]) -> str:
    """Returns what the page says about a task other than language_model."""
    about, groups, one, split = SECTIONS[task], grouped(found), found[0], found[0]["split"]

    def final(row: Row, measure: str) -> float:
        return statistics.mean(row[measure][-1])

    ends = [statistics.mean(final(row, about.measure) for row in groups[end]) for end in ENDS if end in groups]
    bounded = len(ends) == 2 and (ends[1] > ends[0]) == (about.better == "higher")  # else there is no gap to be a share of
    lines = []
    for name, own in groups.items():
        transfers = [[row[key] for row in own if key in row] for key in ("backward_transfer", "forward_transfer")]
        keeps = (
            TOLD.get(name, "").replace("pieces", "segments")
            if task == "style_transfer" and name != "joint"
            else TOLD.get(name, "")
        )
        lines.append(
            [name, keeps, spread([final(row, about.measure) for row in own], 3),
             share_of_gap(name, groups) if bounded else "",
             spread([final(row, about.second) for row in own], 3), *(spread(values, 3) if values else "" for values in transfers),
             f"{statistics.mean(row['cpu_s'] for row in own):.0f}", str(len(own))]
        )  # fmt: skip
    header = ["technique", "keeps", f"{split}, {about.shown}", "of the gap to joint", f"{split}, {about.shown_second}",
              "backward transfer", "forward transfer", "CPU-seconds", "seeds"]  # fmt: skip
    genres = ", then ".join(name.rpartition(": ")[2].replace("+", " and ") for name in one["genres"])
    text = about.about.format(**{**one, "genres": genres, "phases": len(one["genres"])})
    told = f"\nThe table has the mean over phases at the end; {about.better} is better. Transfers are of the first measure."
    if split == "val":
        told += (
            " The figures are of val, on which the size, the steps and the learning rate were chosen; test is not measured yet."
        )
    seeds = " ".join(sorted({str(row["seed"]) for row in found}))
    command = f"python benchmarks/continual.py --task {task} --seeds {seeds}" + (
        " --scores FOLDER" if task == "classifier" else ""
    )
    return f"""## {about.title}

{text}{told}

{table(header, lines)}

{matrix_table(groups, about)}

Regenerate: `OMP_NUM_THREADS=1 {command}`, then `make report`.

{where(found)}"""


def matrix_table(groups: dict[str, list[Row]], about: Section) -> str:
    """Returns what fine-tuning and the technique that ends best can do after each phase, as means over seeds."""
    phased = {name: own for name, own in groups.items() if len(own[0]["after"]) > 2}
    if "fine-tuning" not in phased:
        return ""

    def final(name: str) -> float:
        return statistics.mean(statistics.mean(row[about.measure][-1]) for row in phased[name])

    pick = max if about.better == "higher" else min
    shown = dict.fromkeys(["fine-tuning", pick(phased, key=final)])
    one = phased["fine-tuning"][0]
    short = [name.rpartition(": ")[2] for name in one["genres"]]
    lines = []
    for name in shown:
        mean = np.mean([row[about.measure] for row in phased[name]], axis=0)
        for after, values in zip(one["after"], mean, strict=True):
            if after != "start" or name == "fine-tuning":
                lines.append(["" if after == "start" else name, after.rpartition(": ")[2], *(f"{value:.3f}" for value in values)])
    return table(["technique", f"{about.shown} after", *short], lines)


def continual() -> str:
    """docs/results/continual.md; returns the README's table."""
    measured = rows("continual.jsonl")
    found = [row for row in measured if row["split"] == "test" and task_of(row) == "language_model"]
    if not found:
        return ""
    groups = grouped(found)
    matrices(groups)
    header = ["technique", "keeps", "weights", "test, nats per note", "of the gap to joint", "backward transfer",
              "forward transfer", "CPU-seconds", "seeds"]  # fmt: skip
    lines = []
    for name, own in groups.items():
        transfers = [[row[key] for row in own if key in row] for key in ("backward_transfer", "forward_transfer")]
        lines.append(
            [name, TOLD.get(name, ""), f"{own[0]['parameters']:,}", spread([row["final"] for row in own], 2),
             share_of_gap(name, groups),
             *(spread(values, 2) if values else "" for values in transfers), f"{statistics.mean(r['cpu_s'] for r in own):.0f}",
             str(len(own))]
        )  # fmt: skip
    one = found[0]
    notes = RESULTS / "continual_notes.md"
    sections = [section(task, own) for task in SECTIONS if (own := shown_rows(measured, task))]
    tried = [row for row in measured if row["split"] == "val"]
    choices = [
        [task_of(row), row["name"], f"`{tried_options(row)}`", str(row["seed"]), f"{first_measure(row):.3f}"] for row in tried
    ]
    chosen = table(["tried on val", "technique", "options", "seed", "val, first measure"], choices)
    seeds = " ".join(sorted({str(row["seed"]) for row in found}))
    text = f"""# Learning one genre after the other

A language model of {one["parameters"]:,} parameters is trained on {", ".join(one["genres"])}, one after the other, {one["steps"]}
steps in all, with `stage=genres`; it isn't told the genre, but packnet, progressive and expandable read each piece as one of its
genre. The training data are {one["pieces"]} pieces of {one["tokens"]:,}
tokens. After the last genre the likelihood of the held-out pieces of each genre is measured; the table has the mean over genres.
Fine-tuning has nothing against forgetting; joint training takes as many steps on all genres at once. The gap is the distance of
fine-tuning from joint training: 0 % is as good as joint training, 100 % as bad as fine-tuning. Backward transfer below 0 is what
the earlier genres lost; forward transfer is what the genres before gave to one that had not come yet (Lopez-Paz, Ranzato 2017).

{table(header, lines)}

![Forgetting matrices](continual.png)

Regenerate: `OMP_NUM_THREADS=1 python benchmarks/continual.py --scores FOLDER --seeds {seeds}`,
then `make report`.

{where(found)}
"""
    parts = [text.rstrip(), *sections, chosen if tried else "", notes.read_text().rstrip() if notes.exists() else ""]
    (RESULTS / "continual.md").write_text("\n\n".join(part for part in parts if part) + "\n")
    short = [[name, spread([row["final"] for row in own], 2), share_of_gap(name, groups)] for name, own in groups.items()]
    return table(["five genres, one after the other", "test, nats per note", "of the gap to joint"], short)
