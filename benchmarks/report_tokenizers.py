"""docs/results/tokenizers.md, from rows of tokenizer_choice.py, and the adversarial game's part of techniques.md."""

from report import RESULTS, Row, rows, table, where

KEPT = {
    "onset": "notes", "duration": "with duration", "velocity": "with velocity", "program": "with program", "part": "with part",
    "metre": "metres", "tempo": "tempos",
}  # fmt: skip
PARTS = 0.9  # share of notes whose part is kept from which a tokenizer counts as one that keeps parts


def _group(row: Row) -> str:
    """What a row's bits pay for: rows of one group can be compared."""
    if "controls=[]" not in row["options"]:
        return "labels told"
    return "with parts" if row["kept"]["part"] >= PARTS else "without parts"


def _rates(row: Row) -> list[str]:
    cells = []
    for split in ("val", "test"):
        found = row[split]
        cells.append(f"{found['bits_per_note']:.2f} ± {found['bits_per_note_stderr']:.2f}")
    test = row["test"]
    return [*cells, f"{test['tokens_per_note']:.2f}", f"{test['nats_per_token']:.3f}"]


def _comparison(found: list[Row]) -> str:
    lines = [
        [row["case"], _group(row), *_rates(row), str(row["steps"]), f"{row['trained_tokens'] / 1000:.0f}", str(row["vocabulary"]),
         f"{row['parameters'] / 1e6:.2f}", str(row["seed"])]
        for row in found
    ]  # fmt: skip
    header = ["tokenizer", "group", "val, bits per note", "test, bits per note", "tokens per note", "test, nats per token",
              "steps", "tokens trained on, thousands", "vocabulary", "parameters, M", "seed"]  # fmt: skip
    return table(header, lines)


def _classes(found: list[Row]) -> str:
    mine = [row for row in found if "bits_by_class" in row["test"]]
    names = [name for name in mine[0]["test"]["bits_by_class"] if name != "control"] if mine else []
    lines = [[row["case"], *(f"{row['test']['bits_by_class'][name]:.2f}" for name in names)] for row in mine]
    return table(["test, bits per note", *names], lines) if mine else ""


def tokenizers() -> str:
    """docs/results/tokenizers.md; nothing for the summary."""
    every = rows("tokenizers.jsonl")
    if not every:
        return ""
    longest = max(row["seconds"] for row in every)
    found = sorted(
        {(row["case"], row["seed"], row.get("iteration")): row for row in every if row["seconds"] == longest}.values(),
        key=lambda row: (_group(row), row["test"]["bits_per_note"]),
    )
    now = [row for row in found if row.get("iteration") != "bfloat16"]
    before = [row for row in found if row.get("iteration") == "bfloat16"]
    told = list({row["case"]: row for row in found}.values())
    kept = [[row["case"], *(f"{100 * row['kept'][name]:.1f} %" for name in KEPT)] for row in told]
    tried = [
        f"{row['case']}: " + ", ".join(f"{rate}: {nats:.3f}" for rate, nats in row["tried"].items())
        for row in found if "tried" in row
    ]  # fmt: skip
    pieces = found[0]
    notes = RESULTS / "tokenizers_notes.md"
    parts = [
        "# Tokenizers",
        "A folder of scores in five genres, split by piece as `data=folder` does: "
        f"{pieces['val']['pieces']} validation pieces with {pieces['val']['notes']:,} notes, {pieces['test']['pieces']} test "
        f"pieces with {pieces['test']['notes']:,}. For each tokenizer the same Transformer (2 layers of 64) is trained from "
        f"random weights for {longest:g} CPU-seconds on one core, so that longer sequences cost what they cost, with the "
        "defaults else, in rows of 512 tokens. Bits per note: the sum over all tokens of the pieces, divided by the notes of the "
        "scores as they are, with its standard error over pieces. Only rows of one group pay for the same content and can be "
        "compared.",
        _comparison(now),
        "## With Muon in emulated bfloat16\n\nThe same before Muon iterated in float32 on CPUs without instructions for "
        "bfloat16: in the same time less than half of the steps. The peer, which has AdamW, is the same run." if before else "",
        _comparison([row for row in found if row in before or "iteration" not in row]) if before else "",
        "## What is encoded\n\nWhat encoding and decoding leaves of the held-out pieces. Notes: onset (on a grid of a twelfth "
        "of a quarter) and pitch; then the same with the duration, with the velocity (to half a bin of 8), with the program, and "
        "with the track among those of one program. A note that lacks its onset lacks the rest, too.",
        table(["tokenizer", *KEPT.values()], kept),
        "## Where the bits go", _classes(now),
        f"The peer's learning rate was chosen on every tenth training piece, in a third of the time each; nats per token: "
        f"{'; '.join(tried)}." if tried else "",
        "Regenerate: `python benchmarks/tokenizer_choice.py --root FOLDER`, then `make report`.",
        where(found), notes.read_text() if notes.exists() else "",
    ]  # fmt: skip
    (RESULTS / "tokenizers.md").write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    return ""


def adversarial() -> str:
    """The section of techniques.md on technique=adversarial."""
    found = rows("adversarial.jsonl")
    if not found:
        return ""
    lines = [
        [row["case"], str(row["seed"]), str(row["steps"]), f"{row['val']['bits_per_note']:.3f}",
         "{:.2f} ({:.2f} to {:.2f})".format(*row["turing"]),
         *(f"{row['closeness'][name]:.3f}" for name in ("rhythm", "harmony", "melody", "structure", "quality"))]
        for row in found
    ]  # fmt: skip
    text = (
        "## A critic beside the likelihood (technique=adversarial)\n\nFive genres, from the weights that come with Etude, for "
        f"{found[0]['seconds']:g} CPU-seconds of training each, the critic's included, one row of 1,024 tokens a step. "
        f"{found[0]['samples']} samples of 16 bars beside the openings of {found[0]['real']} held-out pieces: the balanced "
        "accuracy of a classifier that tells them apart (0.5: it can't), and how close they are in each dimension (1: as close "
        "as other real music)."
    )
    header = ["", "seed", "steps", "val, bits per note", "told apart", "rhythm", "harmony", "melody",
              "structure", "mean"]  # fmt: skip
    return "\n\n".join((text, table(header, lines), where(found)))
