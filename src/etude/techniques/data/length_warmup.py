"""Technique length_warmup: trains on short passages first and increases their length."""

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

ROW_MULTIPLE = 8  # the length of a shortened row is rounded up to a multiple, which is faster
FRAME_MULTIPLE = 4  # the number of mel frames is a multiple of this


class LengthWarmup(Technique):
    """Cuts training examples to a length that grows over the first `end` of the run; after that nothing is cut.

    Scores: of each document in a row only the first bars are kept, at most start_bars * (full_bars / start_bars)^t, where t goes
    from 0 to 1. The rest of the row is moved together, and all rows are shortened to the longest, so that a step takes less time.
    Mels: a share start + (1 - start) t of the frames is kept, a multiple of 4, at the same random position in all rows.

    When to use: long pieces, for which attention is expensive.
    Source: Press, Smith and Lewis 2021 (staged training on short inputs); Li, Zhang and He 2022 (sequence length warm-up).

    Args:
        start_bars: bars at the beginning, at least 1. full_bars: at the end, at least start_bars.
        start: share of a mel's frames at the beginning, in (0, 1]. end: share of the run after which nothing is cut, in (0, 1].
        seed: of the random positions in mels.

    Raises:
        ValueError: an option is out of its range; in setup, the task has neither tokens of scores nor mels.
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
            raise ValueError(f"technique length_warmup cuts scores or mels, {type(pl_module).__name__} has neither; remove it")
        if isinstance(pl_module, HasMelContract) and not isinstance(pl_module, Styled):
            raise ValueError(
                f"technique length_warmup cuts mels alone, and {type(pl_module).__name__} also needs the waveforms, or truths of "
                "frames, that belong to them; remove it"
            )
        if trainer.max_steps < 1:
            raise ValueError("technique length_warmup needs the length of the run; set max_steps")
        self._span = max(1.0, self.end * trainer.max_steps * trainer.accumulate_grad_batches)

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        progress = task.batches_trained / self._span
        if progress >= 1:
            return batch
        if "tokens" in batch:
            bars = int(self.start_bars * (self.full_bars / self.start_bars) ** progress)
            return shortened(batch, task.tokenizer, bars)
        frames = batch["mel"].shape[-1]
        kept = min(
            frames,
            max(FRAME_MULTIPLE, int(frames * (self.start + (1 - self.start) * progress)) // FRAME_MULTIPLE * FRAME_MULTIPLE),
        )
        first = int(torch.randint(0, frames - kept + 1, (), generator=self.generator(task.batches_trained)))
        return {**batch, "mel": batch["mel"][..., first : first + kept]}


def shortened(batch: Batch, tokenizer: Any, bars: int) -> Batch:
    """Returns the batch with at most `bars` bars of each document; t of its tensors [b, t] is rounded up to a multiple of 8."""
    tokens, documents = (batch[name].cpu().numpy() for name in ("tokens", "documents"))
    rows = [np.flatnonzero(_kept(row, owner, tokenizer, bars)) for row, owner in zip(tokens, documents, strict=True)]
    length = min(tokens.shape[1], -(-max(map(len, rows)) // ROW_MULTIPLE) * ROW_MULTIPLE)
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
