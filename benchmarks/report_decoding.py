"""Sections of docs/results/generation.md on ways of decoding, and lines of the summary; called by report_generation.py."""

from report import rows, table, where

Section = tuple[list[str], list[list[str]]]  # paragraphs, and lines of the summary's table


def repetition() -> Section:
    """From rows of repetition.py."""
    found = rows("repetition.jsonl")
    if not found:
        return [], []
    lines = [
        [row["condition"], str(row["samples"]), f"{row['repeated']:.1%} of {row['passages']}", f"{row['repeated_bars']:.1%}",
         f"{row['nats_per_token']:.3f}"]
        for row in found
    ]  # fmt: skip
    text = (
        "Samples of 16 bars of the model that comes with Etude; the searches continue the first four bars of the plain samples. "
        "*Passages*: six notes of a track that it has played before, at the same distances in time. *Bars*: equal to an earlier "
        "one. Nats per token under the model itself."
    )
    columns = ["drawn by", "samples", "passages again", "bars again", "nats per token"]
    short = [
        [f"passages of six notes that a track plays again, {row['condition']}", f"{row['repeated']:.1%}"]
        for row in found if row["condition"] in ("sampling", "no_repeat_ngram=6")
    ]  # fmt: skip
    return ["## Repetition", text, table(columns, lines), where(found)], short


def speculative() -> Section:
    """From rows of speculative.py."""
    found = rows("speculative.jsonl")
    if not found:
        return [], []
    lines = [
        [f"{row['parameters'] / 1e6:.2f} M", f"{row['draft_parameters'] / 1e6:.2f} M", str(row["draft_length"]),
         f"{row['accepted']:.0%}", f"{row['ratio']:.2f} ({row['ratio_quartiles'][0]:.2f} to {row['ratio_quartiles'][1]:.2f})"]
        for row in found
    ]  # fmt: skip
    text = (
        "Seconds per token of plain sampling over those with a draft, at batch 1, in turn; above 1, the draft is faster. The "
        "median of the pairs, with quartiles. The distribution is the same by construction, which a test plays through."
    )
    columns = ["model", "draft", "drafted tokens", "accepted", "ratio"]
    return ["## Speculative decoding", text, table(columns, lines), where(found)], []


def live() -> Section:
    """From rows of live_latency.py."""
    found = rows("live_latency.jsonl")
    if not found:
        return [], []
    lines = [
        [f"{row['bars']} bars, {row['voices']} voices, {row['case']}", str(row["phrases"]), f"{row['median_ms']:.1f}",
         f"{row['longest_ms']:.1f}", f"{row['late']} of {row['notes']}"]
        for row in found
    ]  # fmt: skip
    text = (
        "Milliseconds from the moment at which the phrase counts as ended, of the program alone: without the silence itself, "
        "and without what a MIDI driver and a synthesizer add. *At once*: nothing was done before that moment. *After a "
        "silence*: the answer was begun in the silence. *Late*: notes more than 20 ms after they were due."
    )
    short = [
        [f"`etude live`, first note of an answer, {row['bars']} bars, {row['case']}: ms", f"{row['median_ms']:.1f}"]
        for row in found if (row["bars"], row["voices"]) == (4, 1)
    ]  # fmt: skip
    columns = ["phrase", "phrases", "median, ms", "longest, ms", "late notes"]
    heading = "## `etude live`: from the end of a phrase to the first note of the answer"
    return [heading, text, table(columns, lines), where(found)], short
