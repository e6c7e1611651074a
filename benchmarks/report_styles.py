"""docs/results/style_transfer.md and its pictures, from rows of the style benchmarks; called by report.py."""

import statistics
from typing import Any

from report import RESULTS, Row, rows, table, where
from report_one_generator import one_generator

NAMES = {
    "copy": "copy (no transfer)",
    "affine": "affine (no training)",
    "stranger": "another song in the style",
    "model": "**Etude**",
    "oracle": "oracle (the true rendering)",
}
COLUMNS = {
    "accuracy": ("style accuracy, %", 100, 1),
    "l1_nats": ("L1, nats", 1, 3),
    "mcd_db": ("MCD, dB", 1, 1),
    "frechet_bel2": ("Fréchet, bel²", 1, 2),
    "mmd": ("MMD²", 1, 3),
    "onset_f": ("onset F", 1, 3),
    "chroma": ("chroma cosine", 1, 3),
    "chroma_r": ("chroma correlation", 1, 3),
}
GOALS = (("accuracy", 0.95, 1), ("l1_nats", 0.75, -1), ("mcd_db", 25.0, -1), ("frechet_bel2", 2.0, -1))


def cell(found: list[Row], column: str) -> str:
    _, factor, digits = COLUMNS[column]
    values = [factor * row[column] for row in found]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 and statistics.stdev(values) > 0 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def direction(found: list[Row]) -> str:
    """Returns the table of one direction at one budget: mean and standard deviation over seeds."""
    lines = []
    for name, label in NAMES.items():
        mine = [row for row in found if row["row"] == name]
        if mine:
            speed = f"{statistics.median(row['real_time_factor'] for row in mine):.0f}" if name == "model" else ""
            lines.append([label, *(cell(mine, column) for column in COLUMNS), speed])
    return table(["row", *(label for label, _, _ in COLUMNS.values()), "times real time"], lines)


def against_affine(found: list[Row], column: str) -> float:
    """Returns by how many percent a value is lower than that of the affine map, from means over seeds."""
    mean = {name: statistics.mean(row[column] for row in found if row["row"] == name) for name in ("affine", "model")}
    return 100 * (1 - mean["model"] / mean["affine"])


def goals(found: list[Row]) -> str:
    """Returns a sentence with the goals and whether they were reached."""
    model = [row for row in found if row["row"] == "model"]
    told = []
    for column, goal, sign in GOALS:
        value = statistics.mean(row[column] for row in model)
        label, factor, digits = COLUMNS[column]
        verdict = "reached" if sign * (value - goal) >= 0 else "missed"
        told.append(f"{label} {factor * value:.{digits}f} (goal {factor * goal:g}: {verdict})")
    better = [f"{label} {against_affine(found, column):.0f} %" for column, label in (("l1_nats", "L1"), ("mcd_db", "MCD"))]
    return f"{'; '.join(told)}. Less than affine: {', '.join(better)}."


def curves(found: list[Row]) -> None:
    """Draws validation during training, with one panel per pair and metric."""
    from matplotlib.figure import Figure

    pairs = sorted({row["pair"] for row in found})
    figure = Figure(figsize=(10, 2.6 * len(pairs)), layout="constrained")
    axes = figure.subplots(len(pairs), 2, squeeze=False)
    for line, pair in enumerate(pairs):
        runs = {(row["budget_s"], row["seed"]): row["curve"] for row in found if row["pair"] == pair}
        for axis, column, label in zip(axes[line], (1, 2), ("Fréchet distance, bel²", "log-mel L1, nats"), strict=True):
            for (budget, seed), curve in sorted(runs.items()):
                seconds, values = [point[0] for point in curve], [point[column] for point in curve]
                axis.plot(seconds, values, marker=".", linewidth=1, label=f"{budget:.0f} s, seed {seed}")
            axis.set(title=pair.replace(",", " and "), xlabel="CPU-seconds of training", ylabel=label, xscale="log")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 1].legend(fontsize=7)
    figure.savefig(RESULTS / "style_transfer.png", dpi=110, metadata={"Software": None})


def style_transfer() -> str:
    """Writes docs/results/style_transfer.md; returns its table of the summary."""
    latest = {  # a row that was measured again takes the place of the earlier one
        tuple(row[key] for key in ("recipe", "pair", "budget_s", "seed", "source", "target", "row")): row
        for row in rows("style_transfer.jsonl")
        if row["budget_s"] is not None and row.get("split", "test") == "test"  # the others are those of `lengths`
    }
    found = [row for row in latest.values() if row["recipe"] == "default"]
    if not found:
        return ""
    parts = ["# Style transfer against the truth", INTRODUCTION]
    summary = []
    for budget in sorted({row["budget_s"] for row in found}):
        name = f"{budget:.0f} CPU-seconds" if budget < 600 else f"{budget / 60:.0f} CPU-minutes"
        parts.append(f"## {name} of training")
        here = [row for row in found if row["budget_s"] == budget]
        for source, target in dict.fromkeys((row["source"], row["target"]) for row in here):
            mine = [row for row in here if (row["source"], row["target"]) == (source, target)]
            seeds = len({row["seed"] for row in mine})
            parts += [f"### {source} to {target}, {seeds} seeds", direction(mine), goals(mine)]
            model = [row for row in mine if row["row"] == "model"]
            affine = [row for row in mine if row["row"] == "affine"]
            both = [f"{cell(affine, c)} → **{cell(model, c)}**" for c in ("l1_nats", "mcd_db", "frechet_bel2")]
            summary.append([f"{source} to {target}, {name}", *both, cell(model, "accuracy")])
        model = [row for row in here if row["row"] == "model"]
        runs = {(row["pair"], row["seed"]): row for row in model}.values()
        parts.append(
            f"Steps: {min(r['steps'] for r in runs)} to {max(r['steps'] for r in runs)}; parameters of both generators: "
            f"{model[0]['parameters'] / 1e6:.2f} M; losses that were not finite: {sum(r['not_finite'] for r in runs)}; "
            f"CPU-seconds of the steps: {min(r['cpu_s'] for r in runs):.0f} to {max(r['cpu_s'] for r in runs):.0f}."
        )
    parts += bound(found, [row for row in latest.values() if row["recipe"] == "supervised"])
    parts += lengths([row for row in rows("style_transfer.jsonl") if row["budget_s"] is None])
    parts += floor(found)
    curves(found)
    parts.append("## Curves\n\n![Validation during training](style_transfer.png)")
    pictures = sorted(path.name for path in RESULTS.glob("style_*_to_*.png"))
    if pictures:
        parts.append("## Pictures\n\nThe first held-out song, the longest training, seed 0.")
        parts += [
            f"{name.removeprefix('style_').removesuffix('.png').replace('_', ' ')}\n\n![{name}]({name})" for name in pictures
        ]
    parts += real()
    tried = [row for row in latest.values() if row["recipe"] not in ("default", "supervised") and row["row"] == "model"]
    if tried:
        parts.append("## What was tried\n\nOne seed each, otherwise the same budget; one thing changed.")
        lines = [
            [f"{r['recipe']}: `{' '.join(r['options'].split()[3:])}`", f"{r['source']} to {r['target']}", f"{r['budget_s']:.0f}",
             *(cell([r], c) for c in ("l1_nats", "mcd_db", "frechet_bel2", "accuracy", "onset_f", "chroma_r"))]
            for r in tried
        ]  # fmt: skip
        parts.append(table(["change", "direction", "CPU-s", "L1", "MCD", "Fréchet", "accuracy, %", "onset F", "chroma r"], lines))
    parts += one_generator(COLUMNS, found)
    parts += speeds()
    notes = RESULTS / "style_transfer_notes.md"
    parts.append(notes.read_text() if notes.exists() else "")
    parts.append("## Where the rows come from\n\n" + where(found))
    (RESULTS / "style_transfer.md").write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    return table(["transfer, affine → **Etude**", "L1, nats", "MCD, dB", "Fréchet, bel²", "style accuracy, %"], summary)


def bound(found: list[Row], supervised: list[Row]) -> list[str]:
    """Returns the section on training with pairs, the bound that training without them approaches, by budget and direction.

    found: rows of the default recipe. supervised: of the same networks, trained on paired tunes.
    """
    lines = []
    places = dict.fromkeys((row["budget_s"], row["source"], row["target"]) for row in supervised)
    for budget, source, target in places:
        sides = [
            [r for r in rows if (r["budget_s"], r["source"], r["target"], r["row"]) == (budget, source, target, "model")]
            for rows in (supervised, found)
        ]
        if not sides[1]:
            continue
        paired, unpaired = (statistics.mean(row["l1_nats"] for row in side) for side in sides)
        lines.append(
            [
                f"{source} to {target}, {budget:.0f} CPU-s",
                *(cell(sides[0], column) for column in ("l1_nats", "mcd_db", "onset_f", "chroma_r")),
                f"{statistics.mean(row['steps'] for row in sides[0]):.0f}",
                cell(sides[1], "l1_nats"),
                f"{unpaired / paired:.1f}, {'reached' if unpaired <= 2 * paired else '**missed**'}",
            ]
        )
    if not lines:
        return []
    columns = ["direction", "L1 with pairs, nats", "MCD, dB", "onset F", "chroma correlation", "steps", "L1 of Etude, without",
               "ratio (goal: at most 2)"]  # fmt: skip
    return ["## The supervised bound", BOUND, table(columns, lines), where(supervised)]


def lengths(found: list[Row]) -> list[str]:
    """Returns the section on runs of given numbers of steps, by split, direction, recipe and length."""
    model = [row for row in found if row["row"] == "model"]
    places = ("split", "source", "target", "recipe", "asked_steps", "stops")
    lines = []
    for place in dict.fromkeys(tuple(row[name] for name in places) for row in model):
        mine = [row for row in model if tuple(row[name] for name in places) == place]
        split, source, target, recipe, asked, stops = place
        made = sorted({row["steps"] for row in mine})
        told = f"{recipe}, {asked} steps" + (f", ended after {', '.join(map(str, made))}" if stops else "")
        values = [cell(mine, column) for column in ("l1_nats", "mcd_db", "frechet_bel2", "onset_f", "chroma_r")]
        lines.append([f"{source} to {target}, {split}", told, str(len({row["seed"] for row in mine})), *values])
    columns = ["direction and tunes", "run", "seeds", "L1, nats", "MCD, dB", "Fréchet, bel²", "onset F", "chroma correlation"]
    return ["## Runs of given lengths", table(columns, lines), where(found)] if lines else []


def floor(found: list[Row]) -> list[str]:
    """Returns the section on the noise floor: the same scores with other soundfonts and synthesizers, by style."""
    latest = {(row["style"], row["soundfont"], row["synthesizer"]): row for row in rows("style_floor.jsonl")}
    if not latest:
        return []
    longest = max(row["budget_s"] for row in found)
    lines = []
    for style in dict.fromkeys(style for style, _, _ in latest):
        here = [row for row in latest.values() if row["style"] == style]
        lines += [[f"{style}: {row['soundfont']} by {row['synthesizer']}", *(cell([row], c) for c in COLUMNS)] for row in here]
        for name in ("model", "stranger"):
            mine = [r for r in found if (r["target"], r["row"], r["budget_s"]) == (style, name, longest)]
            if mine:
                lines.append([f"{style}: {NAMES[name]}", *(cell(mine, c).split(" ")[0] for c in COLUMNS)])
    row = next(iter(latest.values()))
    return [
        "## The noise floor: how much two General-MIDI soundfonts differ",
        f"The same scores of the {row['songs']} held-out tunes rendered differently, compared with the truth of all tables, "
        f"{row['truth']}; only the style classifier is trained, on that truth. For comparison: the means over directions and "
        f"seeds of the model after {longest / 60:.0f} CPU-minutes, and another song in the style.",
        table(["row", *(label for label, _, _ in COLUMNS.values())], lines),
        FLOOR,
        where(list(latest.values())),
    ]


def real() -> list[str]:
    """Returns the section on real recordings, as tables and pictures."""
    found = list({(row["recording"], row["style"]): row for row in rows("style_real.jsonl")}.values())
    if not found:
        return []
    lines = [
        [f"{row['recording'].replace('_', ' ')} to {row['style']}", f"{row['distance_before']:.2f} → {row['distance_after']:.2f}",
         f"{row['onset_f']:.2f}", f"{row['chroma_r']:.2f}"]
        for row in found
    ]  # fmt: skip
    pictures = [f"![{name}]({name})" for name in sorted(path.name for path in RESULTS.glob("style_real_*.png"))]
    return [
        "## Real recordings\n\n"
        f"Excerpts restyled by the default run ({found[0]['steps']:,} steps, three styles): the strings of a Hungarian dance, "
        "Let's Go Fishin' by Karissa Hobbs, Dance of the Sugar Plum Fairy and Vibe Ace by Kevin MacLeod (all CC BY 3.0), a "
        "trumpet. There is no true result for them. The table has the distance of band means and deviations to the style's "
        "training audio (root mean square, nats, regardless of loudness), and onsets and chroma compared with the recording"
        ". All are unlike the training data. Towards folk and rock all but one come nearer; towards jazz, the nearest style of "
        "most recordings, three of five move away.",
        table(["recording", "distance to the style", "onset F with itself", "chroma correlation with itself"], lines),
        *pictures,
        where(found),
    ]


def speeds() -> list[str]:
    """Returns the sections on the speed of training and transfer."""
    parts = []
    found: list[dict[str, Any]] = rows("style_speed.jsonl")
    if found:
        lines = [
            [row["case"], f"{row['parameters'] / 1e6:.1f}", f"{row['ours_steps_per_s']:.1f}", f"{row['peer_steps_per_s']:.1f}",
             f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f}-{row['ratio_range'][1]:.2f})"]
            for row in found
        ]  # fmt: skip
        parts.append(
            "## Training speed\n\nAgainst plain eager float32 PyTorch of the same networks and losses, sides in turn.\n\n"
            + table(["case", "generators, M", "Etude steps/s", "plain steps/s", "ratio (range)"], lines)
        )
        parts.append(where(found))
    found = rows("transfer_speed.jsonl")
    if found:
        lines = [
            [
                f"{row['minutes']:g} minutes, {row['task']}",
                _mels_of(row),
                str(row["threads"]),
                f"{row['wall_s']:.1f}",
                f"{row['realtime_factor']:.1f}",
                f"{row['peak_rss_mb']:.0f}",
            ]
            for row in found
        ]
        columns = ["file", "model", "threads", "seconds", "times real time", "peak memory, MB"]
        parts.append("## Transfer speed\n\n" + table(columns, lines))
        parts.append(where(found))
    for row in rows("style_stress.jsonl"):
        parts.append(
            f"## Robustness\n\n{row['steps']} steps of {row['asked']} over {row['files']} files of random lengths, rates and "
            f"channels: {row['asked'] - row['steps']} failed or skipped batches, {row['not_finite']} losses not finite; "
            f"{row['left_out']} files left out ({'; '.join(row['reasons'])})."
        )
        parts.append(where([row]))
    return parts


def _mels_of(row: dict[str, Any]) -> str:
    """Returns the sample rate and bands of a row's model; rows from before contract=44k lack them."""
    contract = row.get("contract", {"sample_rate": 16_000, "n_mels": 64})
    return f"{contract['sample_rate'] / 1000:g} kHz, {contract['n_mels']} mels"


INTRODUCTION = """Tunes that ship with a dependency, arranged in three styles and rendered with General-MIDI sounds (16 kHz, 64
mels); 60 training tunes a style, others in each, and 40 held-out ones that exist in all styles, to compare outputs with.
Rows: mean and standard deviation over seeds. Columns: accuracy of a classifier trained in the run on real audio; mean
absolute difference of natural-log mels; mel-cepstral distortion (13 coefficients without the energy); Fréchet distance of
log10-mel frames; unbiased MMD of band means and deviations of segments; F-measure of onsets within 50 ms; cosine and
correlation of pitch classes, all against the *paired truth*. Accuracy alone says nothing: noise can reach it. L1, MCD and
Fréchet do not suffice either: another song in the right style scores well; onsets and chroma correlation tell the songs apart.

Budget: CPU-seconds of training steps on one thread. The checkpoint at the end of the budget is measured (averaged weights);
no choice uses held-out music. Regenerate: `make styles`, then `make report`."""

BOUND = """The same networks with the same optimizer, schedule and average, trained for the same CPU-seconds with the L1 to the
true rendering and nothing else: the training tunes of both styles of a pair are rendered in both, held-out tunes are those of all
tables. It says how much of the truth can be predicted from the source at all. A step costs less, so there are more of them.
Regenerate: `OMP_NUM_THREADS=1 python benchmarks/style_transfer.py --case supervised --budget 90 --seeds 0 1 2 --rows
docs/results/rows/style_transfer.jsonl`, then `make report`."""

FLOOR = """How to read it: the same soundfont with the other synthesizer (which adds reverb and chorus) shows how much two
faithful renderings of a score differ: the noise floor. Another soundfont plays the same notes on the same instruments, and yet
is farther from the truth than the model in L1, MCD, Fréchet distance and MMD: these columns tell how well the sounds of one
soundfont are learned. Onsets and chroma correlation depend on the sound, too: at 64 bands pitch classes follow
overtones, and those of two distorted guitars differ; FluidR3's violin swells, and takes several times as long to reach half
its amplitude as TimGM6mb's (90 to 310 ms against 24 to 44 on four pitches, a separate measurement). Regenerate:
`python benchmarks/style_floor.py --soundfont FluidR3_GM.sf2 --rows docs/results/rows/style_floor.jsonl`, then with
`--synthesizer fluidsynth`, with and without `--soundfont`, then `make report`. Debian has the soundfont in
`fluid-soundfont-gm` and the program in `fluidsynth`."""
