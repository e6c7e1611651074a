"""Technique progressive_growing: trains on coarse mels first and makes them finer, in time and in bands."""

import math
from typing import ClassVar

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.core.batch import Batch
from etude.core.protocols import TakesInputs, Translates
from etude.core.task import Task
from etude.core.technique import BatchSlot, Technique
from etude.optim.pacing import check_share


class ProgressiveGrowing(Technique):
    """Blurs the mels of a style transfer by blocks, from large blocks to single values, over the first `end` of the run.

    A block of n x n values (bands x frames) is replaced by its mean. n begins with `coarsest` and is halved until it is 1; each
    n has an equal part of the warm-up. In the first half of a part the finer mel fades in:

        mel = (1 - a) blocks(2 n) + a blocks(n),   a from 0 to 1

    so that training begins each n with the mels that it had, and nothing jumps. Real mels and inputs are blurred alike.

    The network keeps its size: unlike in the source no layers are added, since the generator's layers are convolutions over
    time that take all bands at once. `technique=grow_layers` adds layers, and goes with this one.

    When to use: when a GAN on mels does not get started. With the defaults, whose generators start from an affine map of each
    band, it does harm (docs/results/style_transfer.md).

    Args:
        coarsest: side of the first blocks, a power of 2, at least 2.
        end: share of the run after which mels are whole, in (0, 1].

    Raises:
        ValueError: an option is out of its range; in setup, the task does not translate mels, or the run has no length.

    Source: Karras et al. 2018, section 2 and figure 2 (fading in); here for the data alone.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.MASK

    def __init__(self, *, coarsest: int = 8, end: float = 0.3) -> None:
        super().__init__()
        check_share("progressive_growing.end", end)
        if coarsest < 2 or 2 ** int(math.log2(coarsest)) != coarsest:
            raise ValueError(f"technique.progressive_growing.coarsest is {coarsest}, must be a power of 2, at least 2; try 8")
        self.coarsest, self.end = coarsest, end
        self._span = 1.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        kind = type(pl_module).__name__
        if not (isinstance(pl_module, Translates) and isinstance(pl_module, TakesInputs)):
            raise ValueError(
                f"technique progressive_growing blurs the mels of a style transfer, and {kind} translates none; remove it from "
                "technique=[...]"
            )
        if trainer.max_steps < 1:
            raise ValueError(f"technique progressive_growing needs the length of this {kind}'s run; set max_steps")
        self._span = max(1.0, self.end * trainer.max_steps * trainer.accumulate_grad_batches)

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        progress = task.batches_trained / self._span
        if progress >= 1:
            return batch
        assert isinstance(task, TakesInputs)
        return task.with_inputs(batch, {name: self.blurred(mel, progress) for name, mel in task.inputs(batch).items()})

    def blurred(self, mel: Tensor, progress: float) -> Tensor:
        """Returns mels [..., m, f] at this share of the warm-up, in [0, 1); at 1 they are whole."""
        parts = int(math.log2(self.coarsest)) + 1  # the last one is that of whole mels
        place = progress * parts
        side = self.coarsest // 2 ** int(place)
        fine = blocks(mel, side)
        fade = min(1.0, 2 * (place % 1))
        return fine if side == self.coarsest or fade == 1 else torch.lerp(blocks(mel, 2 * side), fine, fade)


def blocks(mel: Tensor, side: int) -> Tensor:
    """Returns mels [..., m, f] in which each block of side x side values is its mean; blocks at the upper ends may be smaller."""
    if side == 1:
        return mel
    flat = mel.reshape(-1, 1, *mel.shape[-2:])
    coarse = F.avg_pool2d(flat, side, ceil_mode=True)
    fine = coarse.repeat_interleave(side, -1).repeat_interleave(side, -2)
    return fine[..., : mel.shape[-2], : mel.shape[-1]].reshape(mel.shape)
