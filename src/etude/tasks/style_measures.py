"""Base class of style-transfer tasks: validation against real mels, and loading the weights of another run.

Shapes: s styles, b pieces of each, m mel bands, f frames.
"""

from collections.abc import Mapping
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


class StyleTask(Task):
    """A task that translates between styles. A subclass defines `restyled` and sets `styles`."""

    styles: tuple[str, ...]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._validated: dict[Direction, tuple[list[Tensor], list[Tensor]]] = {}

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        if len(theirs := saved["etude"].get("styles", ())) != len(self.styles):
            raise ValueError(
                f"weights={path}: its networks have other sizes; give as many styles as {theirs}, here are {list(self.styles)}"
            )
        return super().weights_from(saved, path)

    def restyled(self, batch: Batch) -> dict[Direction, tuple[Tensor, Tensor]]:
        """Returns for each direction the translated mels and the real mels of its target style, natural-log [b, m, f]."""
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

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for direction, (fake_bmf, real_bmf) in self.restyled(batch).items():
            fakes, reals = self._validated.setdefault(direction, ([], []))
            fakes.append(fake_bmf.cpu())
            reals.append(real_bmf.cpu())

    def on_validation_epoch_end(self) -> None:
        """Logs val/frechet (bel^2) and, if every style has the same held-out songs, val/l1 (nats)."""
        found = {direction: (torch.cat(fakes), torch.cat(reals)) for direction, (fakes, reals) in self._validated.items()}
        self._validated.clear()
        if not found:
            return
        frechet, l1 = _compare(found)
        self.log("val/frechet", frechet, prog_bar=True, sync_dist=True)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, Paired) and data.paired:
            self.log("val/l1", l1, prog_bar=True, sync_dist=True)


def _compare(found: Mapping[Direction, tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Returns the Fréchet distance of frames, in bel^2, and the mean absolute difference, in nats, averaged over directions."""
    distances, errors = [], []
    for fake_bmf, real_bmf in found.values():
        frames = [mel.cpu().transpose(0, 1).flatten(1).numpy() for mel in (fake_bmf, real_bmf)]
        distances.append(frechet_distance(*frames))
        errors.append(float((fake_bmf - real_bmf).abs().mean()))
    return sum(distances) / len(distances), sum(errors) / len(errors)
