"""docs/results/vocoder.md, from rows of vocoder.py; called by report.py."""

from report import RESULTS, Row, rows, table, where

COLUMNS = {
    # key: (name and unit, digits, whether lower is better; None: neither)
    "wav_l1_nats": ("L1 of the WAV to the truth, nats", 3, True),
    "wav_chroma_r": ("chroma r", 3, False),
    "note_f1": ("note F1", 3, False),
    "asked_l1_nats": ("L1 to the mel asked for, nats", 3, True),
    "clicks_db": ("clicks, dB", 1, None),
    "realtime_factor": ("times real time", 1, None),
}
GOAL = ("wav_l1_nats", "wav_chroma_r", "note_f1")
BASELINE = "griffin_lim"
INTRODUCTION = """Waveforms of restyled mels, by each vocoder from the same mels and the same source, against the true rendering
of the same song on the first test bed. The baseline is Griffin-Lim from the source's magnitudes and phases (`griffin_lim`).
"Generated" mels are those of a trained transfer model; "true" ones are those of the true rendering, what a perfect model would
give. Behind a figure stands in how many of the songs it is better than the baseline's. L1 and pitch classes are of the waveform,
scaled to the truth's loudness; note F1 is that of the notes that a network finds (equal semitone, onset within 50 ms).

Regenerate: `python benchmarks/style_transfer.py --steps 5000 --pairs folk,rock --seeds 0 --keep outputs/style`,
`python train.py task=mel_inverter optimizer.lr=0.003 'styles=[folk,rock]'`, the same with `technique=[ema,generated_mels]
technique.generated_mels.transfer=outputs/style/... technique.generated_mels.share=0.7`, then
`python benchmarks/vocoder.py --transfer ... --neural inverter=... aligned=... --split test
--rows docs/results/rows/vocoder.jsonl`, and `make report`."""


def cell(row: Row, key: str) -> str:
    text, wins = f"{row[key]:.{COLUMNS[key][1]}f}", row["wins"].get(key)
    return text if wins is None or row["vocoder"] == BASELINE else f"{text} ({wins} of {row['songs']})"


def goal(found: list[Row], name: str) -> str:
    """Returns which of the three figures of a vocoder are better than the baseline's."""
    mine, base = (next(row for row in found if row["vocoder"] == each) for each in (name, BASELINE))
    told = []
    for key in GOAL:
        label, digits, lower = COLUMNS[key]
        gain = round(base[key] - mine[key] if lower else mine[key] - base[key], digits)  # in the digits that are shown
        told.append(f"{label}: {'better' if gain > 0 else 'equal' if gain == 0 else '**worse**'}")
    return f"{name} against the baseline: {'; '.join(told)}."


def vocoder() -> str:
    """Writes docs/results/vocoder.md; returns '', since the README has no table of it."""
    latest = {tuple(row[key] for key in ("source", "target", "mels", "split", "vocoder")): row for row in rows("vocoder.jsonl")}
    if not latest:
        return ""
    parts = ["# Vocoders on restyled mels", INTRODUCTION]
    for place in dict.fromkeys(key[:4] for key in latest):
        found = [row for key, row in latest.items() if key[:4] == place]
        source, target, mels, split = place
        held = {"val": "validation songs, on which choices are made", "test": "held-out songs"}[split]
        parts.append(f"## {source} to {target}, {mels} mels, {found[0]['songs']} {held}")
        lines = [[row["vocoder"], *(cell(row, key) for key in COLUMNS)] for row in found]
        parts.append(table(["vocoder", *(label for label, _, _ in COLUMNS.values())], lines))
        parts += [goal(found, row["vocoder"]) for row in found if row["vocoder"] != BASELINE and mels == "generated"]
    notes = RESULTS / "vocoder_notes.md"
    parts += [notes.read_text() if notes.exists() else "", "## Where the rows come from\n\n" + where(list(latest.values()))]
    (RESULTS / "vocoder.md").write_text("\n\n".join(part.strip() for part in parts if part).rstrip() + "\n")
    return ""
