"""docs/results/generation.md, from rows of infilling.py and requests_kept.py; called by report.py."""

from report import RESULTS, rows, table, where


def generation() -> str:
    """docs/results/generation.md; returns the README's table."""
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
    if len(parts) == 1:
        return ""
    parts.append("Regenerate: `python benchmarks/requests_kept.py`, `python benchmarks/infilling.py`, then `make report`.")
    notes = RESULTS / "generation_notes.md"
    (RESULTS / "generation.md").write_text(
        "\n\n".join([*parts, *([notes.read_text().rstrip()] if notes.exists() else [])]) + "\n"
    )
    return table(["generation, the model that comes with Etude", "measured"], short)
