"""Technique cutmix: replaces a passage of each example by one of another, with both labels; models of music learn the result."""

from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.alone import NO_LABEL, PADDED, alone
from etude.core.batch import Batch
from etude.core.class_protocols import MixesTargets
from etude.core.protocols import PredictsTokens, Tokenized
from etude.core.task import Task
from etude.core.technique import BatchSlot, Technique
from etude.tokens.joined_bars import BarredDocument, barred, can_join, joined, transposed, without_controls
from etude.tokens.musical_changes import bar_borders
from etude.tokens.row_documents import documents_of_rows, repacked

CONTRADICTED = ("genre", "metre", "instrument")  # controls that bars of another piece may contradict


class Cutmix(Technique):
    """Replaces a passage of each example by one of another example of the batch; its loss is the mean of the losses of both
    labels, weighted by what each has in the result.

    Of scores whole bars are replaced by as many whole bars from a random place of the other piece, fewer if that is shorter, and
    never by its last one, which may be incomplete; keys and metres are those of either piece. Of mels an interval of frames is
    replaced by the same frames of the other one; a grader learns the truths of the frames as they then are. The part that is
    replaced is uniform in (0, most].

    A language model learns the music with the passage in it, every token of it, in packed rows as before. The other bars are
    transposed into the key signature of the document (A minor goes with C major; keys are estimated from the notes), keep their
    instruments and metres, and take over the tempo. The first bar, the last one and bars whose instruments a window does not tell
    stay. The document loses its controls of genre, metre and instruments, which the other bars may contradict; those of key,
    tempo and length remain true. Pieces with holes (`data.infill`) stay as they are.

    When to use: as `mixup`; what is heard stays music. Suggested: most 0.5.

    Args:
        most: largest part that is replaced, in [0, 1]; 0 replaces nothing.
        seed: of the passages and the pairs.

    Raises:
        ValueError: most is out of its range; in setup, a task that is neither a classifier nor a language model, or tokens whose
            bars can't be joined.

    Source: Yun et al. 2019, section 3; passages in place of rectangles.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.MIX

    def __init__(self, *, most: float = 0.5, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if not 0 <= most <= 1:
            raise ValueError(f"technique.cutmix.most is {most}, must be in [0, 1]; 0.5 is a good start")
        self.most = most

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        kind = type(pl_module).__name__
        if isinstance(pl_module, PredictsTokens):
            if not can_join(pl_module.tokenizer):
                raise ValueError(
                    f"technique cutmix joins bars, which needs tokens of REMI without plans or of four voices; this {kind} has "
                    "others; set tokenizer=remi, or remove it from technique=[...]"
                )
        elif not isinstance(pl_module, MixesTargets):
            raise ValueError(
                f"technique cutmix is for classifiers and language models, and {kind} is neither; remove it from technique=[...]"
            )

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        draws = self.generator(task.batches_trained * 65_536 + task.global_rank)
        part = self.most * float(torch.rand((), generator=draws))
        if isinstance(task, PredictsTokens):
            return _spliced(task.tokenizer, batch, part, draws)
        batch = alone(task, batch)
        return self._bars(task, batch, part, draws) if "documents" in batch else self._frames(task, batch, part, draws)

    def _frames(self, task: Task, batch: Batch, part: float, draws: torch.Generator) -> Batch:
        assert isinstance(task, MixesTargets)
        axis = task.example_axis or 0
        ((name, own),) = task.inputs(batch).items()
        count, frames = own.shape[axis], own.shape[-1]
        length = round(part * frames)
        start = int(torch.randint(0, frames - length + 1, (), generator=draws))
        order = torch.randperm(count, generator=draws).to(own.device)
        cut = own.clone()
        cut[..., start : start + length] = own.index_select(axis, order)[..., start : start + length]
        share = torch.full((count,), 1 - length / frames, device=own.device)
        targets = task.mixed_targets(batch, order, share, (start, start + length))
        return {**task.with_inputs(batch, {name: cut}), **targets}

    def _bars(self, task: Task, batch: Batch, part: float, draws: torch.Generator) -> Batch:
        assert isinstance(task, MixesTargets) and isinstance(task, Tokenized)
        count, device = len(batch["documents"]), batch["documents"].device
        order = torch.randperm(count, generator=draws)
        lengths = (batch["documents"] >= 0).sum(1).tolist()
        tokens = batch["tokens"].cpu().numpy()
        borders = [bar_borders(row[:length], task.tokenizer) for row, length in zip(tokens, lengths, strict=True)]
        rows, places, shares = list[Tensor](), list[Tensor](), list[float]()
        for own, other in enumerate(order.tolist()):
            mine, theirs = borders[own], borders[other]
            whole = max(0, len(theirs) - 2)  # the last bar may not be complete
            number = min(round(part * (len(mine) - 1)), whole)
            first = int(torch.randint(0, len(mine) - number, (), generator=draws))
            taken = int(torch.randint(0, whole - number + 1, (), generator=draws))
            begin, end = mine[first], mine[first + number]
            there, after = torch.arange(theirs[taken], theirs[taken + number]), torch.arange(end, lengths[own])
            places.append(torch.cat([torch.arange(begin), there, after]))
            row = torch.full((len(places[-1]),), own)
            row[begin : begin + len(there)] = other
            rows.append(row)
            shares.append(1 - len(there) / max(1, len(row)))
        made = gathered(batch, rows, places)
        share = torch.tensor(shares, device=device)
        return {**made, **task.mixed_targets(made, order.to(device), share)}

    def state_dict(self) -> dict[str, Any]:
        return {}


def _spliced(tokenizer: Any, batch: Batch, part: float, draws: torch.Generator) -> Batch:
    """Returns packed rows in whose documents a part of the bars is of another document."""
    documents = documents_of_rows(batch, tokenizer)
    music = [barred(document, tokenizer) for document in documents]
    able = [number for number, each in enumerate(music) if each is not None]
    new: list[np.ndarray | None] = [None] * len(documents)
    if len(able) < 2:
        return batch
    for place, number in enumerate(able):
        other = able[(place + 1 + int(torch.randint(len(able) - 1, (), generator=draws))) % len(able)]
        own, source = music[number], music[other]
        assert own is not None and source is not None
        new[number] = _with_bars_of(own, source, part, draws)
    return repacked(batch, tokenizer, documents, new)


def _with_bars_of(own: BarredDocument, source: BarredDocument, part: float, draws: torch.Generator) -> np.ndarray | None:
    """Returns the sequence of a document with bars of another; None where no bar is replaced, or the range has no room."""
    number = min(round(part * len(own)), own.last - own.first, source.last - source.first)
    begin = own.first + int(torch.randint(own.last - own.first - number + 1, (), generator=draws))
    taken = source.first + int(torch.randint(source.last - source.first - number + 1, (), generator=draws))
    moved = transposed(source, own.key) if number else None
    if moved is None:
        return None
    ids = joined(own, [(own, 0, begin), (moved, taken, taken + number), (own, begin + number, len(own))])
    return without_controls(ids, own.tokenizer, CONTRADICTED)


def gathered(batch: Batch, rows: list[Tensor], places: list[Tensor]) -> Batch:
    """Returns the batch of documents that consist of the tokens at (row, place); labels stay those of the same number's row."""
    length = max(map(len, places))
    found: Batch = {}
    for name, value in batch.items():
        label = name.startswith("label_")
        made = value.new_full((len(rows), length, *value.shape[2:]), NO_LABEL if label else PADDED.get(name, 0))
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            if label or name == "piece":
                made[number, : len(place)] = value[number, 0]
            else:
                made[number, : len(place)] = value[row.to(value.device), place.to(value.device)]
        found[name] = made
    real = found["documents"] >= 0
    found["positions"] = torch.where(real, torch.arange(length, device=real.device), 0)
    return found
