"""docs/results/audio.md, from rows of the style benchmarks on both test beds; called by report.py."""

import math
import statistics

from report import RESULTS, Row, rows, table, where

NAMES = {
    "copy": "copy (no transfer)",
    "affine": "affine (no training)",
    "model": "**Etude**",
    "oracle": "oracle (the true rendering)",
}
COLUMNS = {
    # key: (name and unit, factor, digits)
    "l1_nats": ("L1 of the mel, nats", 1, 3),
    "wav_l1_nats": ("L1 of the WAV, nats", 1, 3),
    "chroma_r": ("chroma r, mel", 1, 3),
    "wav_chroma_r": ("chroma r, WAV", 1, 3),
    "note_f1": ("note F1", 1, 3),
    "note_f1_source": ("note F1 with the source", 1, 3),
    "onset_f": ("onset F", 1, 3),
    "squeals": ("squeals, % of frames", 100, 2),
    "clicks_db": ("clicks, dB", 1, 1),
    "fad": ("FAD", 1, 1),
    "kad": ("KAD", 1, 2),
    "range_off_db": ("range off, dB", 1, 1),
}
SHARE, SQUEALS = 0.75, 0.001  # goals: L1 as a share of affine's; share of frames


def mean(found: list[Row], name: str, column: str) -> float:
    values = [row[column] for row in found if row["row"] == name and not math.isnan(row.get(column, math.nan))]
    return statistics.mean(values) if values else math.nan


def cell(found: list[Row], name: str, column: str) -> str:
    value, (_, factor, digits) = mean(found, name, column), COLUMNS[column]
    return "" if math.isnan(value) else f"{factor * value:.{digits}f}"


def goals(found: list[Row]) -> str:
    """Returns what was reached, and what was not."""
    share = mean(found, "model", "l1_nats") / mean(found, "affine", "l1_nats")
    wav = mean(found, "model", "wav_l1_nats") / mean(found, "affine", "wav_l1_nats")
    told = [
        (f"L1 of the mel {100 * share:.0f} % of affine's (goal {100 * SHARE:.0f})", share <= SHARE),
        (f"of the WAV {100 * wav:.0f} %", wav <= SHARE),
        ("chroma correlation above copying's", mean(found, "model", "chroma_r") > mean(found, "copy", "chroma_r")),
        ("note F1 above affine's", mean(found, "model", "note_f1") > mean(found, "affine", "note_f1")),
        (f"squeals at most {100 * SQUEALS:.1f} %", mean(found, "model", "squeals") <= SQUEALS),
    ]
    return "; ".join(f"{text}: {'reached' if reached else '**missed**'}" for text, reached in told) + "."


def audio() -> str:
    """Writes docs/results/audio.md; returns its table of the summary, '' if nothing was measured."""
    latest = {tuple(row[key] for key in ("pair", "budget_s", "seed", "source", "target", "row")): row
              for row in rows("style_second.jsonl") if row["recipe"] == "default"}  # fmt: skip
    found = list(latest.values())
    if not found:
        return ""
    parts, summary = ["# Restyled audio on a second test bed", INTRODUCTION], []
    for source, target in dict.fromkeys((row["source"], row["target"]) for row in found):
        budget = max(row["budget_s"] for row in found if (row["source"], row["target"]) == (source, target))
        mine = [row for row in found if (row["source"], row["target"], row["budget_s"]) == (source, target, budget)]
        seeds = len({row["seed"] for row in mine})
        spent = f"{budget:.0f} CPU-seconds" if budget < 600 else f"{budget / 60:.0f} CPU-minutes"
        parts.append(f"## {source} to {target}: {spent} of training, seeds: {seeds}")
        lines = [[label, *(cell(mine, name, column) for column in COLUMNS)] for name, label in NAMES.items()]
        parts += [table(["row", *(label for label, _, _ in COLUMNS.values())], lines), goals(mine), first_bed(source, target)]
        both = [f"{cell(mine, 'affine', c)} → **{cell(mine, 'model', c)}**" for c in ("l1_nats", "note_f1", "fad")]
        chroma = f"{cell(mine, 'copy', 'chroma_r')} → **{cell(mine, 'model', 'chroma_r')}**"
        summary.append([f"{source} to {target}", *both, chroma, cell(mine, "model", "squeals")])
    parts += real() + live()
    notes = RESULTS / "audio_notes.md"
    parts += [notes.read_text() if notes.exists() else "", "## Where the rows come from\n\n" + where(found)]
    (RESULTS / "audio.md").write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    header = ["second bed, affine → **Etude**", "L1, nats", "note F1", "FAD", "chroma r, copy → Etude", "squeals, %"]
    return table(header, summary)


def first_bed(source: str, target: str) -> str:
    """Returns a line with the share of affine's L1 on the first bed, on which all choices are made."""
    mine = [r for r in rows("style_transfer.jsonl") if (r["recipe"], r["source"], r["target"]) == ("default", source, target)]
    found, told = [row for row in mine if row["budget_s"] is not None], []  # the others have a given number of steps
    for budget in sorted({row["budget_s"] for row in found}):
        mine = [row for row in found if row["budget_s"] == budget]
        told.append(f"{100 * mean(mine, 'model', 'l1_nats') / mean(mine, 'affine', 'l1_nats'):.0f} % at {budget:.0f} CPU-seconds")
    return f"On the first bed, the L1 of the mel as a share of affine's was {', '.join(told)}." if told else ""


def real() -> list[str]:
    """Returns the section on real recordings, for which there is no true result."""
    found = list({(row["recording"], row["style"]): row for row in rows("style_real_second.jsonl")}.values())
    if not found:
        return []

    def change(pair: list[float], factor: float, digits: int) -> str:
        return " → ".join("none" if math.isnan(value) else f"{factor * value:.{digits}f}" for value in pair)

    lines = [
        [f"{row['recording'].replace('_', ' ')} to {row['style']}", f"{row['note_f1']:.2f}", f"{row['onset_f']:.2f}",
         f"{row['chroma_r']:.2f}", change(row["squeals"], 100, 1), change(row["clicks_db"], 1, 1), change(row["range_db"], 1, 1)]
        for row in found
    ]  # fmt: skip
    header = ["recording", "note F1 with itself", "onset F", "chroma r", "squeals, %", "clicks, dB", "loudness range, dB"]
    return [f"## Real recordings\n\n{REAL} It was trained for {found[0]['steps']} steps.", table(header, lines), where(found)]


def live() -> list[str]:
    """Returns the section on live transfer and on stereo, from rows of live_transfer.py."""
    found = rows("live_transfer.jsonl")
    if not found:
        return []
    settings: dict[tuple[int, int], list[Row]] = {}
    latency = {(row["block"], row["ahead"]): row for row in found if row["case"] == "latency"}  # the newest of each
    for row in found:
        if row["case"] == "live":
            settings.setdefault((row["block"], row["ahead"]), []).append(row)

    def average(mine: list[Row], column: str, digits: int) -> str:
        return f"{statistics.mean(row[column] for row in mine):.{digits}f}"

    lines = [
        [f"{block} and {ahead}", *(f"{latency[block, ahead][f'latency_{rate}_ms']:.0f}" for rate in (16_000, 44_100, 48_000)),
         average(mine, "l1_nats", 3),
         f"{100 * sum(r['l1_nats'] for r in mine) / sum(r['change_nats'] for r in mine):.0f}",
         average(mine, "cpu_ms_per_block", 1), average(mine, "realtime_factor", 1),
         f"{average(mine, 'border_file_db', 2)} → {average(mine, 'border_db', 2)}"]
        for (block, ahead), mine in sorted(settings.items())
    ]  # fmt: skip
    header = ["block and frames ahead", "latency at 16 kHz, ms", "at 44.1 kHz, ms", "at 48 kHz, ms",
              "L1 to the file's result, nats", "% of the change", "CPU ms a block", "times real time", "borders, dB"]  # fmt: skip
    treatments: dict[str, list[Row]] = {}
    for row in found:
        if row["case"] == "stereo":
            treatments.setdefault(row["stereo"], []).append(row)
    stereo = [
        [f"`stereo={name}`", average(mine, "mono_l1_nats", 3), average(mine, "mono_snr_db", 1),
         f"{average(mine, 'correlation_before', 3)} → {average(mine, 'correlation', 3)}",
         f"{average(mine, 'width_before_db', 1)} → {average(mine, 'width_db', 1)}", average(mine, "width_off_db", 2),
         f"{average(mine, 'clicks_before_db', 2)} → {average(mine, 'clicks_db', 2)}", average(mine, "realtime_factor", 1)]
        for name, mine in treatments.items()
    ]  # fmt: skip
    columns = ["treatment", "L1 of the mono mix, nats", "its SNR, dB", "correlation", "width, dB", "width off by band, dB",
               "clicks, dB", "times real time"]  # fmt: skip
    return [f"## Live\n\n{LIVE}", table(header, lines), f"## Stereo\n\n{STEREO}", table(columns, stereo), where(found)]


INTRODUCTION = """Tunes of another book (Aird's Airs), an arranger that shares no code with the first, FluidSynth and FluidR3_GM:
48 training tunes a style, others in each, and 12 held-out ones that exist in all styles. Trained and measured with the defaults
of `task=style_transfer`. **Nothing is chosen on this bed**; choices are made on the first (docs/results/style_transfer.md).

Columns, all against the paired truth unless said otherwise: L1 of the generator's mel, and of the mel of the waveform that
Griffin-Lim makes of it, scaled to the truth's loudness; correlation of pitch classes of mel and waveform; F-measure of the notes
that a network finds (equal semitone, onset within 50 ms), with the truth and with the source; onsets; share of frames with any
band more than 6 dB above all training frames of the style; how much the energy of the quietest parts repeats at the hop rate;
distances of embeddings to 24 training tunes of the style (FAD is biased upwards for so few songs, KAD is not); and by how much
the loudness range differs. The oracle's note F1 is 1 by definition; its other values show what real audio has.

Regenerate: `python benchmarks/second_bed.py`, then `OMP_NUM_THREADS=1 python benchmarks/style_transfer.py --bed
outputs/second_bed --heard 12 --budget 600 --seeds 0 --rows docs/results/rows/style_second.jsonl`, then `make report`."""

REAL = """Twelve seconds of each, restyled by a model trained on the second bed; before → after where two values stand. Squeals
are counted against the training frames of the *target*, so a recording that is louder or brighter than these has some before."""

LIVE = """Real recordings, 6 s of each, streamed hop by hop: a block, and the frames after it that are waited for, in mel frames
of 16 ms. The latency is the algorithm's: block, frames ahead, the rest of the last window, resampling, limiter and
reading; the time in which a block is processed and a sound card's buffers add to it. L1: of the log mels, to the
result of a file, also as a share of what restyling changes. CPU time on one core of a machine that did other things,
too. Borders: energy of the second difference within 1 ms of block borders over that elsewhere, of the file's result →
live; a click would raise it. Regenerate: `OMP_NUM_THREADS=1 python benchmarks/live_transfer.py --ckpt RUN --audio
RECORDINGS`, then `make report`."""

STEREO = """Two recordings, panned to the two sides (0.9 and 0.1), restyled as a file. Against the restyled mono mix: L1 of the
log mels of the result's mono mix, and signal over difference. Correlation of the channels and width (side over mid),
before → after; mean difference of the width over the bands; clicks at the hop rate in the left channel."""
