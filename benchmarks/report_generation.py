"""docs/results/generation.md, from the rows of the benchmarks in SCRIPTS; called by report.py."""

from report import RESULTS, rows, table, where
from report_decoding import live, repetition, speculative
from report_own_style import own_style
from report_structure import form, latents, strangers_case, structure

SCRIPTS = (
    "requests_kept", "infilling", "infilling_voices", "latents", "structure", "form", "strangers_case", "my_style", "repetition",
    "speculative", "live_latency",
)  # fmt: skip


def generation() -> str:
    """docs/results/generation.md; returns its table of the summary."""
    filled, asked = rows("infilling.jsonl"), rows("requests.jsonl")
    parts, short = ["# Generation"], []
    if asked:
        labels = ("key", "metre", "tempo_bpm", "programs", "num_bars")
        lines = [[row["condition"], *(row["kept"].get(label, "") for label in labels)] for row in asked]
        parts += [
            "## What was asked for, and how many samples have it",
            "Samples of 8 bars of the model that comes with Etude. The key is estimated from the pitches; all else is read from "
            "the notes. *Model alone*: without the transposition that `generate.py` makes, so it tells what the model learnt.",
            table(["asked for", "key", "metre", "tempo", "programs", "bars"], lines), where(asked),
        ]  # fmt: skip
        short += [
            [f"asked and got: {row['condition']}", ", ".join(row["kept"].values())] for row in asked if row["condition"] == "all"
        ]
    part, line = notes_asked()
    parts, short = parts + part, short + line
    if filled:
        lines = [
            [row["data"], str(row["passages"]), str(row["notes"]), f"{row['left']:.3f}", f"{row['infilled']:.3f}",
             f"{row['ratio']:.3f} ({row['ratio_interval'][0]:.3f} to {row['ratio_interval'][1]:.3f})"]
            for row in filled
        ]  # fmt: skip
        parts += [
            "## Infilling: the true notes of four bars",
            "Nats per note under one model: continuing what comes before, and filling in, which sees eight bars behind the "
            "passage, too. Intervals by resampling the passages.",
            table(["held-out pieces", "passages", "notes", "from the left alone", "filled in", "ratio"], lines), where(filled),
        ]  # fmt: skip
        short += [[f"infilling against the left alone, {row['data']}: nats per note", f"{row['ratio']:.3f}"] for row in filled]
    if voices := rows("infilling_voices.jsonl"):
        lines = [
            [row["case"], str(row["particles"]), str(row["pieces"]), f"{row['left']:.3f}", f"{row['infilled']:.3f}",
             f"{row['ratio']:.3f} ({row['ratio_interval'][0]:.3f} to {row['ratio_interval'][1]:.3f})", f"{row['equal']:.2f}"]
            for row in voices
        ]  # fmt: skip
        parts += [
            "## Infilling chorales: the true cells of some voices or bars",
            "Nats per token of the missing cells under the chorale model (`experiment=jsb`), test pieces of the canonical split: "
            "from the past alone, and given all else, estimated by particles (too low, by less the more there are). "
            "Intervals by resampling the pieces. *Equal*: drawn tokens that are the true ones.",
            table(["missing", "particles", "pieces", "from the past alone", "filled in", "ratio", "equal"], lines),
            where(voices),
        ]  # fmt: skip
        most = max(row["particles"] for row in voices)
        short += [
            [f"infilling chorales against the past alone, {row['case']}: nats per token", f"{row['ratio']:.3f}"]
            for row in voices if row["particles"] == most
        ]  # fmt: skip
    for more, lines in (strangers_case(), latents(), structure(), form(), own_style(), repetition(), speculative(), live()):
        parts += more
        short += lines
    if len(parts) == 1:
        return ""
    scripts = ", ".join(f"`python benchmarks/{name}.py`" for name in SCRIPTS)
    parts.append(f"Regenerate: {scripts}, then `make report`.")
    notes = RESULTS / "generation_notes.md"
    (RESULTS / "generation.md").write_text(
        "\n\n".join([*parts, *([notes.read_text().rstrip()] if notes.exists() else [])]) + "\n"
    )
    return table(["generation, the model that comes with Etude", "measured"], short)


def notes_asked() -> tuple[list[str], list[list[str]]]:
    """The sections on what is asked of the notes and on guidance, and lines of the summary's table."""
    asked, guided = rows("wishes.jsonl"), rows("guidance.jsonl")
    parts, short = [], []
    if asked:
        lines, sounding, shares = [], [], []
        for row in asked:
            mine, free = row["asked"], row["not asked"]
            for (name, wanted, got, share), (*_, sounds, without) in zip(mine["heard"], free["heard"], strict=True):
                nats, scale = (f"{mine[key]:.3f} / {free[key]:.3f}" for key in ("nats per token", "in scale"))
                lines.append([row["condition"], name, wanted.replace("|", "\\|"), share, without, nats, scale])
                if name == "chords":
                    sounding.append(f"- {row['condition']}: {got}; not asked: {sounds}")
                    shares.append(float(share.partition("%")[0]))
        short += [[f"bars with the chords asked for, {len(shares)} conditions", f"{min(shares):.0f} to {max(shares):.0f} %"]]
        parts += [
            "## What was asked of the notes",
            f"{asked[0]['samples']} samples of 8 bars each, with and without asking. A bar has its chords if two thirds of its "
            "sounding time belong to them; a sample has a register, a polyphony or a density if every note and bar keeps to it. "
            "*Nats* are those of the model per token, given the same other labels, and *in scale* the share of notes in the best "
            "scale, both with / without asking.",
            table(["asked for", "option", "value", "have it", "have it, not asked", "nats", "in scale"], lines),
            "How much of the time the chords sound:", "\n".join(sounding), where(asked),
        ]  # fmt: skip
    if guided:
        lines = [[f"{r['guidance']:g}", r["kept"]["key"], f"{r['nats per token']:.3f}", f"{r['pitches']:.1f}"] for r in guided]
        parts += [
            "## Guidance",
            "Fiddle tunes in D major, asked of the model alone, without transposing. *Nats* per token are those of the model "
            "without guidance; *pitches* are the different ones of a sample.",
            table(["guidance", "in D major", "nats", "pitches"], lines), where(guided),
        ]  # fmt: skip
    return parts, short
