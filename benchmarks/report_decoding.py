"""Sections on ways of decoding of docs/results/generation.md, and lines for the README; called by report_generation.py."""

from report import rows, table, where

Section = tuple[list[str], list[list[str]]]  # paragraphs, and lines of the README's table


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
