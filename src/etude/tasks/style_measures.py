"""What tasks of several styles share: restyled mels measured against real ones, and weights of a run of as many styles.

Shapes: s styles, b pieces of each, m mel bands, f frames.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured
from etude.core.protocols import Paired
from etude.core.task import Task
from etude.metrics.audio.mel_distances import frechet_distance

Way = tuple[int, int]  # source and target style


class ComparedStyles(Task):
    """A task whose held-out mels are compared with real ones. A subclass defines `restyled` and its `styles`."""

    styles: tuple[str, ...]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._seen: dict[Way, tuple[list[Tensor], list[Tensor]]] = {}

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        if len(theirs := saved["etude"].get("styles", ())) != len(self.styles):
            raise ValueError(
                f"weights={path}: its networks have other sizes; give as many styles as {theirs}, here are {list(self.styles)}"
            )
        return super().weights_from(saved, path)

    def restyled(self, batch: Batch) -> dict[Way, tuple[Tensor, Tensor]]:
        """Returns for each way what it makes of its source and the batch's real mels of its target, natural-log [b, m, f]."""
        raise TypeError(f"{type(self).__name__} must define restyled(batch)")

    def measures(self) -> tuple[Measure, ...]:
        return (Measure("frechet", "bel^2"), Measure("l1", "nats"))

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns frechet and l1 of the pieces of this batch. l1 means something where the songs are the same in every style.

        A Fréchet distance of few frames is too high, and means over batches are not the distance of all: validation compares
        all held-out pieces at once.
        """
        frechet, l1 = _compare(self.restyled(batch))
        count = torch.tensor(batch["mel"].shape[1])
        return {"frechet": Measured(torch.tensor(frechet), count), "l1": Measured(torch.tensor(l1), count)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for way, (fake_bmf, real_bmf) in self.restyled(batch).items():
            fakes, reals = self._seen.setdefault(way, ([], []))
            fakes.append(fake_bmf.cpu())
            reals.append(real_bmf.cpu())

    def on_validation_epoch_end(self) -> None:
        """Logs val/frechet (bel^2), and where the held-out songs are the same in every style val/l1 (nats)."""
        found = {way: (torch.cat(fakes), torch.cat(reals)) for way, (fakes, reals) in self._seen.items()}
        self._seen.clear()
        if not found:
            return
        frechet, l1 = _compare(found)
        self.log("val/frechet", frechet, prog_bar=True, sync_dist=True)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, Paired) and data.paired:
            self.log("val/l1", l1, prog_bar=True, sync_dist=True)


def _compare(found: Mapping[Way, tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The mean over ways of the Fréchet distance of frames, bel^2, and of the mean absolute difference, nats."""
    distances, errors = [], []
    for fake_bmf, real_bmf in found.values():
        frames = [mel.cpu().transpose(0, 1).flatten(1).numpy() for mel in (fake_bmf, real_bmf)]
        distances.append(frechet_distance(*frames))
        errors.append(float((fake_bmf - real_bmf).abs().mean()))
    return sum(distances) / len(distances), sum(errors) / len(errors)
