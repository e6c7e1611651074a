"""Sections of docs/results/generation.md on latents and on material that comes back; called by report_generation.py."""

from typing import Any

from report import rows, table, where


def latents() -> tuple[list[str], list[list[str]]]:
    """The section on task=vae, and its lines of the summary."""
    found = rows("latents.jsonl")
    if not found:
        return [], []
    bounds = [
        [row["data"], f"{row['neg_elbo']:.3f}", f"{row['nll']:.3f}", f"{row['kl']:.3f}", f"{100 * row['active_units']:.0f} %"]
        for row in found
    ]
    slides = [
        [row["data"], name, f"{slide['correlation']:.2f}", f"{slide['other']:.2f}",
         f"{slide['change_of_one_deviation']:+.2f} {'notes a bar' if name == 'density' else 'semitones'}"]
        for row in found for name, slide in row["slides"].items()
    ]  # fmt: skip
    between = [
        [
            row["data"],
            str(row["between"]["pairs"]),
            f"{row['between']['correlation']:.2f}",
            f"{row['between']['likeness_of_ends']:.2f}",
        ]
        for row in found
    ]
    parts = [
        "## Latents of bars (task=vae)",
        "Held-out pieces, nats per token: the evidence lower bound (negative), its reconstruction and its divergence, and the "
        "share of the latents that differ between bars.",
        table(["data", "bound", "reconstruction", "divergence", "active latents"], bounds),
        "Bars whose latents were moved by -2 to 2 standard deviations of an attribute: the correlation of what was asked with "
        "what the notes say; of the attribute that was not asked for, which should be 0; and "
        "what one standard deviation brings.",
        table(["data", "attribute", "asked and got", "the other attribute", "change of one deviation"], slides),
        "Pieces between two scores: the correlation of their place with how many more notes they share with the last score than "
        "with the first, and the share of notes that a piece at either end has in common with its score.",
        table(["data", "pairs", "place and likeness", "likeness at the ends"], between), where(found),
    ]  # fmt: skip
    short = [[f"slider of {line[1]}, {line[0]}: correlation of asked and got", line[2]] for line in slides]
    return parts, short


def strangers_case() -> tuple[list[str], list[list[str]]]:
    """The section on the defaults on a folder, and its lines of the summary."""
    found = rows("strangers_case.jsonl")
    if not found:
        return [], []
    names = list(found[0]["metrics"])

    def line(who: str, values: dict[str, float], turing: str) -> list[str]:
        return [who, *(f"{values[name]:.3f}" for name in names), turing]

    lines = []
    for row in found:
        told = ["{:.2f} ({:.2f} to {:.2f})".format(*row[split]["turing"]) for split in ("val", "test")]
        lines.append(line(f"samples, temperature {row['temperature']:g}", row["metrics"], "; ".join(told)))
    for split, name in (("val", "validation"), ("test", "test")):
        lines.append(line(f"real, {name}: {found[0][split]['pieces']} pieces", found[0][split]["real"], ""))
    keys = next((f"{row['in_key']} of {row['keys_asked']}" for row in found if row["keys_asked"]), "")
    parts = [
        "## The defaults on five genres",
        "`python train.py data=folder data.root=FOLDER`, nothing else: 800 steps from the model that comes with Etude, 17 "
        "minutes on one core of a busy machine. 48 samples of 32 bars beside the first 32 bars of held-out pieces. *Turing*: "
        "balanced accuracy of a classifier that tells samples from validation pieces, and from test pieces (0.5: it can't). "
        f"The temperature was chosen on the validation pieces. Keys asked for and kept: {keys}.",
        table(["", *names, "Turing: validation; test"], lines), where(found),
    ]  # fmt: skip
    chosen = next((row for row in found if row["temperature"] == 0.9), found[0])
    short = [
        [f"defaults on five genres, {name}: samples, real", f"{chosen['metrics'][name]:.3f}, {chosen['test']['real'][name]:.3f}"]
        for name in ("out of key", "key clarity", "repeated bars")
    ]
    return parts, [*short, ["defaults on five genres, keys kept", keys]]


def structure() -> tuple[list[str], list[list[str]]]:
    """The section on recurrence, and its lines of the summary."""
    found = list({row["music"]: row for row in rows("structure.jsonl")}.values())
    if not found:
        return [], []
    lines = [
        [row["music"], str(row["pieces"]), *(f"{row['recurrence'][scale]:.2f}" for scale in ("4", "8", "16"))] for row in found
    ]
    parts = [
        "## Material that comes back",
        "Recurrence of passages of 4, 8 and 16 bars among the first 32 (`recurrence` in `metrics/scores/similarity.py`, 0 to 1). "
        "*Bars shuffled*: what key and rhythm alone give.",
        table(["music", "pieces", "4 bars", "8 bars", "16 bars"], lines), where(found),
    ]  # fmt: skip
    return parts, [[f"recurrence of 4 and 8 bars: {line[0]}", f"{line[2]}, {line[3]}"] for line in lines]


def form() -> tuple[list[str], list[list[str]]]:
    """The section on plans of bars, and its lines of the summary."""
    found = rows("form.jsonl")
    cases = {row["case"]: row for row in found}
    if "plan" not in cases or "no plan" not in cases:
        return [], []
    plain, plan, real = (cases[name] for name in ("no plan", "plan", "real"))
    told = plan["asked"]

    def line(who: str, row: dict[str, Any], recurrence: dict[str, float], pairs: dict[str, float] | None) -> list[str]:
        shares = ["", "", ""] if pairs is None else [f"{pairs[name]:.2f}" for name in ("kept", "strayed", "rand_index")]
        asked = told if recurrence is plan["recurrence_asked"] else row["by_itself"]
        return [who, *(f"{recurrence[bars]:.2f}" for bars in ("4", "8", "16")), *shares, f"{asked['has_form']:.2f}"]

    lines = [
        line("real, held out", real, real["recurrence"], None),
        line("no plan", plain, plain["recurrence"], None),
        line("plan, its own", plan, plan["recurrence"], plan["own_plan"]),
        line(f"plan, form={told['form'][:4]} asked for", plan, plan["recurrence_asked"], told["plan"]),
    ]
    nats = [
        [name, str(row["steps"]), *(f"{row['nats_per_note'][part]:.3f}" for part in ("all", "letters", "notes"))]
        for name, row in (("no plan", plain), ("plan", plan))
    ]
    parts = [
        "## A plan of the bars (tokenizer.form=true)",
        f"The bundled model, trained on for {plan['seconds']:.0f} CPU-seconds with and without a plan on folk tunes; "
        f"{plan['samples']} samples of 32 bars beside the first 32 bars of {real['samples']} held-out pieces.",
        table(["music", "4 bars", "8 bars", "16 bars", "same letter, alike", "different letters, alike", "Rand index",
               f"sections are {told['form'][:4]}"], lines),
        "Held-out pieces, nats per note: all, the letters of the plan and of the bars, and the notes given these.",
        table(["case", "steps", "all", "letters", "notes"], nats), where(found),
    ]  # fmt: skip
    short = [
        ["plan of bars: bars with the same letter that come back; with different ones",
         f"{plan['own_plan']['kept']:.2f}, {plan['own_plan']['strayed']:.2f}"],
        [f"form={told['form'][:4]}, samples that have it: asked for, without a plan",
         f"{told['has_form']:.2f}, {plain['by_itself']['has_form']:.2f}"],
    ]  # fmt: skip
    return parts, short
