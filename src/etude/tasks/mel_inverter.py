"""Training and use of a network that finds the linear magnitudes of mel spectrograms, from which Griffin-Lim makes audio.

Shapes: s styles, b rows, m mel bands, k linear frequency bins, f frames, n = f * hop samples, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.audio.foreign_sources import foreign_sources
from etude.audio.griffin_lim import GriffinLim
from etude.audio.mel import MelContract
from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task
from etude.losses.magnitudes import log_magnitude_distance, root_convergence
from etude.tasks.mel_checkpoint import check_contract

UNCHANGED_NATS = 0.05  # a band that changes by less than about this many nats keeps the source's magnitudes
LOUDER_NATS = 0.3  # deviation of the level of a training segment


class MelInverter(Task):
    """Trains a network that guesses linear magnitudes from mels and from a source that shares some of their notes.

    Sources are made from the batch itself, see `foreign_sources`, so any recordings serve. Half of the mels get noise, as those
    of a model have errors. A batch holds `samples` [s, b, n].

    Args:
        model: builds the network; called with contract, such as `etude.models.wave.magnitudes.Magnitudes`.
        contract: the mel settings; stored in the checkpoint.
        optimizer, scheduler, player_lr, seed: see `Task`.
        loss_weights: weights of `log_magnitude` and `convergence`, see `losses.magnitudes`.
        noise_nats: deviation of the noise on the mels, at least 0; a third as much from bin to bin.
        num_iters, num_updates, momentum: of `GriffinLim`, for `synthesise`.

    Raises:
        ValueError: noise_nats is below 0.

    Source: our own. That Griffin-Lim is limited by its magnitudes was measured: docs/results/vocoder.md.
    """

    terms: ClassVar[tuple[str, ...]] = ("log_magnitude", "convergence")
    example_axis: ClassVar[int | None] = 1
    min_styles: ClassVar[int | None] = 1

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        contract: MelContract,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        player_lr: Mapping[str, float] | None = None,
        noise_nats: float = 0.3,
        num_iters: int = 16,
        num_updates: int = 16,
        momentum: float = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=loss_weights, player_lr=player_lr, seed=seed)
        if noise_nats < 0:
            raise ValueError(f"task.noise_nats is {noise_nats}, must be at least 0; 0.3 is about the error of a restyled mel")
        self.contract, self.noise_nats = contract, noise_nats
        self.model = model(contract=contract)
        self.griffin_lim = GriffinLim(contract, num_iters=num_iters, num_updates=num_updates, momentum=momentum)

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        return tuple(self.model.blocks)  # type: ignore[arg-type]

    @property
    def context_frames(self) -> int:
        """Frames on each side that the samples of a frame depend on."""
        return self.model.context_frames + self.griffin_lim.context_frames  # type: ignore[operator, return-value]

    # --- training ---

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms; see `loss_weights` for their names.

        Raises:
            ValueError: the batch has no samples.
        """
        real_bkf, mel_bmf, source_bkf = self._drawn(batch, None)
        noisy = mel_bmf + (self._noise(mel_bmf) if self.noise_nats else 0.0)
        return self._terms_of(self.model(noisy, source_bkf), real_bkf)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"mel": the normalised mels [s, b, m, f] that are the network's input, beside the sources}."""
        return {"mel": batch["mel_input"] if "mel_input" in batch else batch["mel"]}

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """Returns the batch with these mels as the network's input; the magnitudes to find stay as they are.

        Where sounds are mixed and made louder, the difference from the batch's own mels is added to the mels of that.
        """
        return {**batch, "mel_input": inputs["mel"]}

    @staticmethod
    def _terms_of(log_fake_bkf: Tensor, real_bkf: Tensor) -> dict[str, Tensor]:
        return {
            "log_magnitude": log_magnitude_distance(log_fake_bkf, real_bkf),
            "convergence": root_convergence(log_fake_bkf, real_bkf),
        }

    def _drawn(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns true magnitudes [b, k, f], their natural-log mels [b, m, f] and the magnitudes of a source [b, k, f]."""
        if "samples" not in batch:
            raise ValueError("the batch holds no samples, which the magnitudes are made from; set data.waveform=true")
        samples = batch["samples"].flatten(0, 1)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            if generator is None:
                samples = samples * (LOUDER_NATS * torch.randn(len(samples), 1, device=samples.device)).exp()
            real_bkf, source_bkf = foreign_sources(self.contract.spectrum(samples.float()), generator)
            mel_bmf = self.contract.bands(real_bkf).clamp(min=self.contract.floor).log()
        if "mel_input" in batch:  # their errors, since the sounds may be mixtures, and louder
            errors_sbmf = self.contract.scale * (batch["mel_input"] - batch["mel"]).float()
            mel_bmf = (mel_bmf + errors_sbmf.flatten(0, 1)).clamp(min=math.log(self.contract.floor))
        return real_bkf, mel_bmf, source_bkf

    def _noise(self, mel_bmf: Tensor) -> Tensor:
        rows, bands, frames = mel_bmf.shape
        coarse = torch.randn(rows, 1, max(2, bands // 2), max(2, frames // 4), device=mel_bmf.device)
        coarse = F.interpolate(coarse, size=(bands, frames), mode="bilinear", align_corners=True)[:, 0]
        noise = self.noise_nats * (coarse + torch.randn_like(mel_bmf) / 3)
        return noise * (torch.rand(rows, 1, 1, device=mel_bmf.device) < 0.5)

    def measures(self) -> tuple[Measure, ...]:
        return (Measure("log_magnitude", "nats"), Measure("convergence", "share"))

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns the loss terms for sources that are the same in each validation, on mels without noise."""
        real_bkf, mel_bmf, source_bkf = self._drawn(batch, torch.Generator().manual_seed(self.seed))
        terms = self._terms_of(self.model(mel_bmf, source_bkf), real_bkf)
        return {name: Measured(term, torch.tensor(len(mel_bmf), device=self.device)) for name, term in terms.items()}

    # --- use ---

    @torch.no_grad()
    def magnitudes(self, log_mel_cmf: Tensor, source_ckf: Tensor | None = None) -> Tensor:
        """Returns linear magnitudes [c, k, f] of natural-log mels [c, m, f].

        Bins of bands in which the mel is that of the source keep the source's magnitudes:

            ln M = W ln |S| + (1 - W) ln M',   W = exp(-((mel - mel') / UNCHANGED_NATS)^2), interpolated from bands to bins

        Args:
            source_ckf: complex spectrum [c, k, f] of the audio behind the mels; None for none.
        """
        was_training = self.training
        self.eval()
        try:
            found: Tensor = self.model(log_mel_cmf, None if source_ckf is None else source_ckf.abs())
        finally:
            self.train(was_training)
        if source_ckf is None:
            return found.exp()
        contract, known = self.contract, source_ckf.abs().clamp(min=self.contract.floor)
        before_cmf = contract.bands(source_ckf.abs()).clamp(min=contract.floor).log()
        kept_cmf = torch.exp(-(((log_mel_cmf - before_cmf) / UNCHANGED_NATS) ** 2))
        bank = contract.filterbank(log_mel_cmf.device)
        share_k = bank.sum(0)[:, None]
        kept_ckf = (bank.T @ kept_cmf) / share_k.clamp(min=1e-9)
        kept_ckf = torch.where(share_k > 0, kept_ckf, 1.0)  # a bin outside all bands keeps its magnitude
        return torch.lerp(found, known.log(), kept_ckf).exp()

    def synthesise(self, log_mel_cmf: Tensor, source_ckf: Tensor | None = None) -> Tensor:
        """Returns waveforms [c, f * hop] of natural-log mels [c, m, f], on the mels' device, as `GriffinLim` makes them from
        `magnitudes` and the source's phases; random ones without a source.

        Raises:
            ValueError: the shapes don't fit the contract.
        """
        mel, source = log_mel_cmf.to(self.device), None if source_ckf is None else source_ckf.to(self.device)
        if mel.ndim != 3 or mel.shape[1] != self.contract.n_mels or mel.shape[2] == 0:
            raise ValueError(
                f"log_mel_cmf has the shape {list(mel.shape)}; give [channels, {self.contract.n_mels} bands, at least 1 frame]"
            )
        needed = [mel.shape[0], self.contract.num_bins, mel.shape[2]]
        if source is not None and list(source.shape) != needed:
            raise ValueError(f"source has the shape {list(source.shape)}, but the mels need {needed}")
        return self.griffin_lim(mel, source=source, magnitudes=self.magnitudes(mel, source)).to(log_mel_cmf.device)

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that come from the data, read from a checkpoint."""
        return {"contract": MelContract(**saved["contract"])}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"]["contract"] = self.contract.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        check_contract(checkpoint["etude"], self.contract)
