"""Short passages first: documents are cut at bar lines, mels at frames, less and less."""

from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.protocols import HasMelContract, Styled, Tokenized
from etude.core.task import Task
from etude.core.technique import BatchSlot, Technique
from etude.optim.pacing import check_share

MULTIPLE = 8  # tokens to which a shortened row is rounded up: matrix kernels like it
FRAMES = 4  # to a multiple of which mels are cut


class LengthWarmup(Technique):
    """Cuts what is trained on to a length that grows over the first `end` of the run; then nothing is cut.

    Scores: each document of a row keeps its beginning, up to a bar line, so never a pitch without its duration: at most
    start_bars * (full_bars / start_bars)^t bars, t from 0 to 1. What is left moves together and the row ends with the longest,
    so a step costs less. Mels: every row keeps the same random place of start + (1 - start) t of its frames, a multiple of 4.

    When to use: long pieces, whose attention costs most while little is learnt from it yet.
    Source: Press, Smith and Lewis 2021 (staged training on short inputs); Li, Zhang and He 2022 (sequence length warm-up).

    Args:
        start_bars: bars at the beginning, at least 1. full_bars: at the end, at least start_bars.
        start: share of a mel's frames at the beginning, in (0, 1]. end: share of the run, in (0, 1].
        seed: of the places in mels.

    Raises:
        ValueError: an option out of its range; in setup, a task with neither tokens of scores nor mels.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.CROP

    def __init__(self, *, start_bars: int = 4, full_bars: int = 64, start: float = 0.5, end: float = 0.3, seed: int = 0) -> None:
        super().__init__(seed=seed)
        check_share("length_warmup.start", start)
        check_share("length_warmup.end", end)
        if not 1 <= start_bars <= full_bars:
            raise ValueError(
                f"technique.length_warmup.start_bars is {start_bars}, must be at least 1 and at most full_bars={full_bars}"
            )
        self.start_bars, self.full_bars, self.start, self.end = start_bars, full_bars, start, end
        self._span = 1.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Tokenized | HasMelContract):
            raise ValueError(f"technique length_warmup cuts scores or mels, {type(pl_module).__name__} has neither; take it out")
        if isinstance(pl_module, HasMelContract) and not isinstance(pl_module, Styled):
            raise ValueError(
                f"technique length_warmup cuts mels that come without samples, {type(pl_module).__name__} wants both; take it out"
            )
        if trainer.max_steps < 1:
            raise ValueError("technique length_warmup counts shares of the run; set max_steps")
        self._span = max(1.0, self.end * trainer.max_steps * trainer.accumulate_grad_batches)

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        progress = task.batches_trained / self._span
        if progress >= 1:
            return batch
        if "tokens" in batch:
            bars = int(self.start_bars * (self.full_bars / self.start_bars) ** progress)
            return shortened(batch, task.tokenizer, bars)
        frames = batch["mel"].shape[-1]
        kept = min(frames, max(FRAMES, int(frames * (self.start + (1 - self.start) * progress)) // FRAMES * FRAMES))
        first = int(torch.randint(0, frames - kept + 1, (), generator=self.generator(task.batches_trained)))
        return {**batch, "mel": batch["mel"][..., first : first + kept]}


def shortened(batch: Batch, tokenizer: Any, bars: int) -> Batch:
    """The batch with at most so many bars of each document; all tensors [b, t], t the longest row's rounded up to 8."""
    tokens, documents = (batch[name].cpu().numpy() for name in ("tokens", "documents"))
    rows = [np.flatnonzero(_kept(row, owner, tokenizer, bars)) for row, owner in zip(tokens, documents, strict=True)]
    length = min(tokens.shape[1], -(-max(map(len, rows)) // MULTIPLE) * MULTIPLE)
    empty = {"targets": -100, "documents": -1, "piece": -1}
    found: dict[str, Any] = {}
    for name, values in batch.items():
        if not isinstance(values, Tensor) or values.shape[:2] != tokens.shape:
            found[name] = values
            continue
        made = values.new_full((len(rows), length, *values.shape[2:]), -1 if name.startswith("label_") else empty.get(name, 0))
        for number, kept in enumerate(rows):
            made[number, : len(kept)] = values[number, torch.from_numpy(kept).to(values.device)]
        found[name] = made
    return found


def _kept(row: np.ndarray, owner: np.ndarray, tokenizer: Any, bars: int) -> np.ndarray:
    kept = owner >= 0
    for document in np.unique(owner[kept]):
        place = np.flatnonzero(owner == document)
        body = place[row[place] >= tokenizer.first_body]
        starts = tokenizer.bar_starts(row[body]) if len(body) else []
        if len(starts) > bars:
            kept[body[starts[bars]] : place[-1] + 1] = False
    return kept
