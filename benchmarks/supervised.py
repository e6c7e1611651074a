"""The supervised bound of style transfer: the same networks, trained on tunes that are rendered in both styles.

`style_transfer.py --case supervised` uses it. The training tunes are those of the unpaired recipe, each rendered in every style
of the pair: the audio that unpaired training has, and its other half. Held-out tunes are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf, open_dict
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from etude.core.batch import Batch
from etude.data.audio.batches import Clips, DrawSampler, FixedSegments
from etude.data.audio.corpora import Arranged
from etude.data.audio.module import StyleDataModule
from etude.data.randomness import uniform
from etude.losses.cycle import cycle_loss
from etude.tasks.style_transfer import StyleTransfer

TERM = "generator/paired"


@dataclass(frozen=True)
class PairedTunes(Arranged):
    """`Arranged`, but each training tune of one of the `both` styles is rendered in both of them."""

    both: Sequence[str] = ("folk", "rock")

    def _place(self, number: int) -> tuple[str, Sequence[str]]:
        split, played = super()._place(number)
        return split, self.both if split == "train" and set(played) & set(self.both) else played


class PairedSegments(FixedSegments):
    """Segments at random positions that are the same in every style; indexed with a list of draw numbers."""

    def __init__(self, clips: Sequence[Clips], *, seed: int, segment: int) -> None:
        super().__init__(clips, segment=segment, waveform=False)
        frames = [[piece.frames for piece in clip.pieces] for clip in clips]
        if any([p.song for p in clip.pieces] != [p.song for p in clips[0].pieces] for clip in clips):
            raise ValueError("the training tunes of the styles differ")
        self.seed, self._ends = seed, np.cumsum(np.min(frames, axis=0) - segment + 1)

    def __getitems__(self, draws: Sequence[int]) -> dict[str, Tensor]:  # type: ignore[override]
        numbers = np.asarray(draws, np.uint64)
        chance = uniform(self.seed, np.zeros(len(numbers), np.uint64), numbers, 1)[:, 0]
        places = (chance * self._ends[-1]).astype(np.int64)
        pieces = np.searchsorted(self._ends, places, side="right")
        starts = places - np.where(pieces > 0, self._ends[pieces - 1], 0)
        rows = [((p, s),) * len(self.clips) for p, s in zip(pieces.tolist(), starts.tolist(), strict=True)]
        return super().__getitems__(rows)


class PairedStyles(StyleDataModule):
    """`StyleDataModule` whose training batches hold the same positions of the same tunes in every style."""

    def train_dataloader(self) -> StatefulDataLoader:
        clips = [self._of("train", style) for style in self.styles]
        sampler = DrawSampler(batch_size=self.batch_size, num_batches=self.epoch_batches)
        return self._loader(PairedSegments(clips, seed=self.seed, segment=self.segment_frames), sampler)


class Supervised(StyleTransfer):
    """The generators of `StyleTransfer`, trained with the L1 of the log mels to the true rendering, in nats; nothing else."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.loss_weights = {TERM: 1.0}  # not in a constructor, whose arguments must stay those of the task

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        mel_sbmf = self.contract.denormalise(batch["mel"])
        styles, pieces = mel_sbmf.shape[:2]
        index_n = torch.arange(styles, device=self.device).repeat_interleave(pieces)
        x_nmf = self.bands.standardise(mel_sbmf.flatten(0, 1), index_n)
        target_n = index_n.roll(-pieces)
        truth_nmf = x_nmf.roll(-pieces, 0)
        made_nmf = self._generate(x_nmf, index_n, target_n, None)
        return {TERM: cycle_loss(made_nmf, truth_nmf, scale_nm1=self.bands.deviation(target_n))}


def paired_data(data: Any, pair: Sequence[str]) -> Any:
    """Returns the configuration of the data of a pair of styles, with the training tunes of both rendered in both."""
    changes = {"_target_": "supervised.PairedStyles", "corpus": {"_target_": "supervised.PairedTunes", "both": list(pair)}}
    with open_dict(data):
        return OmegaConf.merge(data, changes)
