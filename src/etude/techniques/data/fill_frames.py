"""Technique fill_frames: hides frames of the input, so that a generator learns to fill them in from their context."""

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from etude.core.audio_protocols import FillsFrames
from etude.core.batch import Batch
from etude.core.task import Task
from etude.core.technique import BatchSlot, Technique


class FillFrames(Technique):
    """Hides a random interval of each training example from the generator, which must translate it from its context.

    Adds `batch["visible"]` [s, b, 1, f] to a batch with `"mel"` [s, b, m, f] (s styles, b examples, m bands, f frames). It is 0
    in one interval of each example and 1 elsewhere. The length of the interval is uniform in 0 .. max_share * f, and so is its
    position. `"mel"` itself is unchanged: the cycle loss and the discriminators use it. A task that supports this has the
    attribute `takes_visible = True`. In hidden frames its generator gets the mean of each band, and it gets `visible` as one more
    channel, which is all 1 if the batch has none, and in the second pass of the cycle.

    When to use: style transfer on small corpora, where a generator tends to copy frame by frame; this makes it use the context.
    Suggested: max_share 0.5, for segments of two seconds.

    Source: Kaneko et al. 2021 (MaskCycleGAN-VC), section 3, FIF with an interval of random length.

    Args:
        max_share: longest interval as a share of the frames, in (0, 1).
        seed: of the random intervals.

    Raises:
        ValueError: a share is out of its range; in setup, the task does not support `visible`.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.MASK

    def __init__(self, *, max_share: float = 0.5, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if not 0 < max_share < 1:
            raise ValueError(f"fill_frames.max_share is {max_share}, must be in (0, 1); 0.5 is a good start")
        self.max_share = max_share
        self.batches = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not (isinstance(pl_module, FillsFrames) and pl_module.takes_visible):
            raise ValueError(
                f"technique fill_frames hides frames of mels from a generator, but {type(pl_module).__name__} has none that "
                "supports `visible`; remove it from technique=[...] or choose task=style_transfer"
            )

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        mel_sbmf = batch["mel"]
        styles, pieces, _, frames = mel_sbmf.shape
        # each rank draws its own numbers, whatever the number of ranks
        draws = self.generator(self.batches * 65_536 + task.global_rank)
        length, place = torch.rand(2, styles, pieces, 1, 1, generator=draws)
        length = (length * (int(self.max_share * frames) + 1)).floor()
        start = (place * (frames - length + 1)).floor()
        frame = torch.arange(frames)
        hidden = (frame >= start) & (frame < start + length)
        self.batches += 1
        return {**batch, "visible": (~hidden).to(mel_sbmf)}

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]
