"""Filling in frames: parts of the input are hidden, and the generator learns to go on from what stands around them."""

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from etude.core.batch import Batch
from etude.core.protocols import FillsFrames
from etude.core.task import Task
from etude.core.technique import BatchSlot, Technique


class FillFrames(Technique):
    """Hides a random stretch of each training piece from the generator, which must restyle it from its surroundings.

    Adds `batch["visible"]` [s, b, 1, f] to a batch with `"mel"` [s, b, m, f] (s styles, b pieces, m bands, f frames):
    1 where the generator may look, 0 in one stretch of each piece whose length is even in 0 .. max_share * f and whose
    place is even in the piece. `"mel"` stays whole: it is what the way back is measured against and what the
    discriminators see. A task that takes it says so by an attribute `takes_visible = True`; its generator
    sees every band's mean where nothing is to be seen, and `visible` as one more channel, all 1 where the batch has none
    and at the way back.

    When to use: style transfer on small corpora, where a generator learns to copy frame by frame; it makes it read the
    time structure. Suggested: max_share 0.5, for segments of two seconds.

    Source: Kaneko et al. 2021 (MaskCycleGAN-VC), section 3, FIF with a stretch of random length.

    Args:
        max_share: longest stretch as a share of the frames, in (0, 1).
        seed: of the places.

    Raises:
        ValueError: a share out of its range; at setup, a task that does not take `visible`.
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
                f"technique fill_frames hides frames of mels from a generator, {type(pl_module).__name__} has no generator that "
                "takes `visible`; take it out of technique=[...] or choose task=style_transfer"
            )

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        mel_sbmf = batch["mel"]
        styles, pieces, _, frames = mel_sbmf.shape
        # every rank has draws of its own, which no number of ranks shifts
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
