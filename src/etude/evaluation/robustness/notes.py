"""Accuracy of a classifier of scores after a few notes were changed by a semitone.

Shapes: t tokens of a piece, k pieces that are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.attacks.notes import Changes, change_notes
from etude.attacks.objectives import margin
from etude.core.batch import Batch
from etude.core.class_protocols import ClassifiesInputs
from etude.core.protocols import Tokenized
from etude.evaluation.progress import progress
from etude.evaluation.robustness.examples import NO_LABEL, attacked, heads_of, held_out, no_example
from etude.evaluation.robustness.tables import Row, write

UNDER, CHANCE = "accuracy under attack", "accuracy after random changes"


def score_notes(
    *, task: Any, datamodule: Any, folder: Path, notes: int = 3, heads: Sequence[str] | None = None,
    num_examples: int | None = 20, split: str = "test", seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Changes the notes of each piece that matter most, one after the other, by a semitone: writes tables and a picture.

    Every note is tried at every round, both ways (`attacks.notes.change_notes`), beside as many changes at random.

    Args:
        task: a classifier of scores. datamodule: the data of its training. folder: the run's folder.
        notes: most changes of a piece, at least 1. The rest: see `attacking.score`.

    Returns: a row for each head and number of changes.

    Raises: ValueError for a number below 1, or a task that does not classify scores.
    """
    if not isinstance(task, ClassifiesInputs) or not isinstance(task, Tokenized):
        raise ValueError(
            f"robustness=notes changes notes of scores that are classified, and ckpt holds a {type(task).__name__}; give a run "
            "of task=classifier on scores"
        )
    if notes < 1:
        raise ValueError(f"robustness.notes={notes} must be at least 1")
    rows, batches = list[Row](), held_out(task, datamodule, split=split, num=num_examples, seed=seed)
    draws = torch.Generator().manual_seed(seed)
    with attacked(task), torch.no_grad():
        for head in heads_of(task, heads):
            kept = torch.zeros(2, notes + 1)
            labels = [enumerate(task.documents(batch, f"label_{head}").tolist()) for batch in batches]
            pieces = [(b, n, c) for b, each in zip(batches, labels, strict=True) for n, c in each if c != NO_LABEL]
            if not (total := len(pieces)):
                raise no_example(head)
            for batch, number, true in progress(pieces, f"{head}, pieces", total=total):
                kept += _one(task, batch, number, head, true, notes, draws)
            clean = float(kept[0, 0]) / total
            rows += [
                {"head": head, "notes": count, "examples": total, "clean accuracy": clean, UNDER: float(kept[0, count]) / total,
                 CHANCE: float(kept[1, count]) / total}
                for count in range(notes + 1)
            ]  # fmt: skip
    about = (
        f"The notes that matter most, found by trying all of them, are changed by a semitone, up to {notes} in each piece. A "
        "piece counts as right as long as no change so far has made it wrong."
    )
    write(folder, "notes changed", about, rows, shown=(UNDER, CHANCE), over="notes")
    return rows


def _one(task: Any, batch: Batch, number: int, head: str, true: int, notes: int, draws: torch.Generator) -> Tensor:
    """Returns whether a piece is still right after 0, 1, ... changes by the attack, and at random: [2, notes + 1]."""
    length = int((batch["documents"][number] >= 0).sum())
    piece = {name: value[number : number + 1, :length] for name, value in batch.items()}
    tokens = piece["tokens"][0].cpu()
    changes = semitones(task.tokenizer, tokens)
    order, found = torch.randperm(len(changes.place), generator=draws), torch.zeros(2, notes + 1)

    def loss_of(tried: Tensor) -> Tensor:
        many = {name: value.expand(len(tried), *value.shape[1:]) for name, value in piece.items()}
        logits = task.class_logits({**many, "tokens": tried.to(task.device)})[head]
        return margin(logits.float(), torch.full((len(tried),), true, device=logits.device)).cpu()

    if float(loss_of(tokens[None])[0]) >= 0:  # wrong without a change
        return found
    _, losses = change_notes(loss_of, tokens, changes, notes=notes)
    found[0] = torch.tensor([losses[min(count, len(losses) - 1)] < 0 for count in range(notes + 1)]).float()
    now, still, place = tokens.clone(), losses[0] < 0, 0
    for count in range(notes + 1):
        if count and place < len(order):
            now[changes.place[order[place]]] = changes.token[order[place]]
            place += 1
            still = still and float(loss_of(now[None])[0]) < 0
        found[1, count] = float(still)
    return found


def semitones(tokenizer: Any, tokens_t: Tensor) -> Changes:
    """Returns all changes of one token to that of the pitch a semitone above or below, where the tokenizer has it."""
    places, values = [], []
    for shift in (-1, 1):
        table = torch.from_numpy(tokenizer.transposition(shift)).long()
        inside = (tokens_t >= tokenizer.first_body) & (tokens_t < len(table))
        moved = torch.where(inside, table[tokens_t.clamp(max=len(table) - 1)], tokens_t)
        place = ((moved != tokens_t) & (moved >= 0)).nonzero()[:, 0]
        places.append(place)
        values.append(moved[place])
    return Changes(torch.cat(places), torch.cat(values))
