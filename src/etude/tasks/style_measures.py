"""Base class of style-transfer tasks: validation against real mels, and loading the weights of another run.

Shapes: s styles, b pieces of each, m mel bands, f frames.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.core.audio_protocols import Paired
from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured
from etude.core.task import Task
from etude.metrics.audio.mel_distances import frechet_distance

Direction = tuple[int, int]  # indices of source and target style
Kept = dict[Direction, tuple[list[Tensor], list[Tensor]]]  # for each direction the translated mels and the real ones


class StyleTask(Task):
    """A task that translates between styles. A subclass defines `restyled` and sets `styles`."""

    styles: tuple[str, ...]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._validated: Kept = {}

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        if len(theirs := saved["etude"].get("styles", ())) != len(self.styles):
            raise ValueError(
                f"weights={path}: its networks have other sizes; give as many styles as {theirs}, here are {list(self.styles)}"
            )
        return super().weights_from(saved, path)

    def restyled(self, batch: Batch) -> dict[Direction, tuple[Tensor, Tensor]]:
        """Returns for each direction the translated mels and the real mels of its target style, natural-log [b, m, f].

        A batch may lack styles; then its entry `style` says which it has, and there are the directions between these.
        """
        raise TypeError(f"{type(self).__name__} must define restyled(batch)")

    def measures(self) -> tuple[Measure, ...]:
        return (Measure("frechet", "bel^2"), Measure("l1", "nats"))

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns the Fréchet distance and L1 of this batch. L1 is meaningful only if every style has the same songs.

        The Fréchet distance of few frames is biased upwards, and the mean over batches is not the distance of the whole set:
        validation therefore compares all held-out pieces at once.
        """
        frechet, l1 = _compare(self.restyled(batch))
        count = torch.tensor(batch["mel"].shape[1])
        return {"frechet": Measured(torch.tensor(frechet), count), "l1": Measured(torch.tensor(l1), count)}

    def _index(self, style: str) -> int:
        if style not in self.styles:
            raise ValueError(f"style={style} is unknown to this model; it knows {', '.join(self.styles)}")
        return self.styles.index(style)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"mel": normalised mels [s, b, m, f]}: inputs of the generators and real examples for the discriminator."""
        return {"mel": batch["mel"]}

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """Returns the batch with these mels instead of its own, in both of their uses."""
        return {**batch, "mel": inputs["mel"]}

    def measure_set(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns the Fréchet distance of all batches together and, if every style has the same held-out songs, the L1.

        Batches of some styles are measured in the directions between these.
        """
        kept: Kept = {}
        for batch in batches:
            _keep(kept, self.restyled(batch))
        return self._measured(kept)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        _keep(self._validated, self.restyled(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs val/frechet (bel^2) and, if every style has the same held-out songs, val/l1 (nats)."""
        kept, self._validated = self._validated, {}
        for name, value in (self._measured(kept) if kept else {}).items():
            self.log(f"val/{name}", value, prog_bar=True, sync_dist=True)

    def _measured(self, kept: Kept) -> dict[str, float]:
        frechet, l1 = _compare({direction: (torch.cat(fakes), torch.cat(reals)) for direction, (fakes, reals) in kept.items()})
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return {"frechet": frechet, "l1": l1} if isinstance(data, Paired) and data.paired else {"frechet": frechet}


def rows_of_styles(batch: Batch, styles: Sequence[str]) -> dict[int, int]:
    """Returns where each style is in the first dimension of a batch, by its index; styles that the batch lacks are missing."""
    present = batch["style"][:, 0].tolist() if "style" in batch else range(len(styles))
    return {style: row for row, style in enumerate(present)}


def _keep(kept: Kept, found: Mapping[Direction, tuple[Tensor, Tensor]]) -> None:
    for direction, (fake_bmf, real_bmf) in found.items():
        fakes, reals = kept.setdefault(direction, ([], []))
        fakes.append(fake_bmf.cpu())
        reals.append(real_bmf.cpu())


def _compare(found: Mapping[Direction, tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Returns the Fréchet distance of frames, in bel^2, and the mean absolute difference, in nats, averaged over directions."""
    distances, errors = [], []
    for fake_bmf, real_bmf in found.values():
        frames = [mel.cpu().transpose(0, 1).flatten(1).numpy() for mel in (fake_bmf, real_bmf)]
        distances.append(frechet_distance(*frames))
        errors.append(float((fake_bmf - real_bmf).abs().mean()))
    return sum(distances) / len(distances), sum(errors) / len(errors)
