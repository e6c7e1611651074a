"""The summary of all results, docs/results/summary.md, and the README's short table, which is picked from it."""

from report import RESULTS, table

Cell = tuple[str, str, int]  # the beginning of a table's first heading, the beginning of a line of it, the column

HEADLINES: tuple[tuple[str, Cell, str, Cell | None], ...] = (
    (
        "Bach's chorales (JSB, validation): nats per token",
        ("model", "**Etude, `experiment=jsb`", 1),
        "Music Transformer: {}",
        ("model", "Music Transformer", 1),
    ),
    (
        "five genres: steps until the final likelihood of plain training",
        ("technique", "genres: fast_convergence", 2),
        "plain AdamW: {}",
        ("technique", "genres: bare", 2),
    ),
    ("asked for all at once, and got: key, metre, tempo, instruments, bars", ("generation", "asked and got: all", 1), "", None),
    ("bars with the chords that were asked for", ("generation", "bars with the chords", 1), "", None),
    (
        "transfer from folk to rock on a bed where nothing was chosen: L1 of the mels, affine map → Etude",
        ("second bed", "folk to rock", 1),
        "note F1: {}",
        ("second bed", "folk to rock", 2),
    ),
    (
        "transfer from folk to jazz, the hardest direction there",
        ("second bed", "folk to jazz", 1),
        "note F1: {}",
        ("second bed", "folk to jazz", 2),
    ),
    (
        "scores to sound, held-out tunes: L1 of the mels, nats",
        ("synthesis", "**the model**", 1),
        "linear map of notes: {}",
        ("synthesis", "a linear map", 1),
    ),
    (
        "a new family of tunes told from one example each of five: accuracy",
        ("new tune families", "alignment, `task=few_shot`", 1),
        "n-grams: {}",
        ("new tune families", "n-grams", 1),
    ),
    (
        "seven defects of audio found: mean average precision",
        ("grader", "mean average precision", 1),
        "on a soundfont never heard: {}",
        ("grader", "mean average precision", 2),
    ),
    (
        "five genres learned one after the other: nats per note of all in the end, with a memory of 40 pieces",
        ("five genres, one after the other", "meta_replay", 1),
        "nothing against forgetting: {}",
        ("five genres, one after the other", "fine-tuning", 1),
    ),
    (
        "runs killed at random moments that ended bit for bit as if undisturbed",
        ("sweeps", "killed runs", 1),
        "most of the others found bugs that are mended",
        None,
    ),
    (
        "training against a Llama of the same shape, times as fast",
        ("comparison", "Training against a Llama of the same shape: pieces", 1),
        "rows of equal length: {}",
        ("comparison", "Training against a Llama of the same shape: rows", 1),
    ),
)


def summary(block: str) -> str:
    """Writes docs/results/summary.md with the tables in `block`; returns its table of the summary."""
    about = "One table for each page of results; the pages tell how each row was measured, and what did not work."
    (RESULTS / "summary.md").write_text(f"# Summary of all results\n\n{about}\n\n{block}\n")
    lines = []
    for label, own, form, other in HEADLINES:
        found = cell(block, own)
        beside = form if other is None else form.format(cell(block, other) or "")
        if found:
            lines.append([label, found, beside])
    return table(["measured", "Etude", "beside it"], lines)


def cell(block: str, place: Cell) -> str | None:
    """The cell of a Markdown table among `block`; None if there is none, as where a benchmark was not run.

    A line whose first cell is the beginning itself goes before one that only begins so.
    """
    heading, start, column = place
    inside, found = False, None
    for line in block.splitlines():
        cells = [part.strip() for part in line.strip("|").split(" | ")] if line.startswith("|") else []
        if not cells:
            if inside and found is not None:
                break
            inside = False
        elif inside and cells[0] == start:
            return cells[column]
        elif inside and cells[0].startswith(start):
            found = cells[column] if found is None else found
        elif not inside:
            inside = cells[0].startswith(heading)
    return found
