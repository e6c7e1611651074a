"""Learns to play scores: predicts mel spectrograms from aligned piano rolls, with a latent vector for what notes don't say.

Shapes: s styles, b rows, n rows (s * b), k = 2 kinds (onset, sustain), p instruments, t = 128 pitches, m mel bands, f frames,
z latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from etude.audio.mel import MelContract
from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task
from etude.losses.variational import frame_error, kl_from_normal, kl_with_free_bits, smoothed_stop
from etude.models.mel.score_vae import ScoreVae
from etude.music.roll import END, piano_roll, played_by

TAIL_SECONDS = 4.0  # longest sound after the last note
FRAMES_AT_ONCE = 2048  # of a long piece; the context on both sides is added


class Synthesis(Task):
    """Trains a `ScoreVae` on pairs of score and sound.

    A batch holds `mel` [s, b, m, f], normalised, `roll` [s, b, 2, p, 128, f] and `stop` [s, b, f], 1 after the end of the music.

    The loss terms:

    - mel: mean absolute error (or Huber loss) of the log mel in nats, over the frames before the end of the music, with latents
      drawn from the posterior.
    - kl: divergence of a clip's posterior from the standard normal, in nats.
    - stop: binary cross-entropy of each frame being after the end, in nats.

    Validation measures what one hears: the prediction from the notes alone, with the latents at the prior's mean.

    Args:
        model: builds the network from n_mels and num_instruments.
        contract: the mel settings. instruments: those of the roll, in its order. statistics: of bands of each style in
            nats, [s, 2 or more, m], of which the first are means and deviations.
        optimizer, scheduler, loss_weights, seed: see `Task`.
        huber: Huber threshold of the mel loss in nats; 0 for the absolute error.
        free_bits: nats of divergence of each latent dimension that cost nothing, at least 0.
        mel_smoothing: share of the training mean in the mel's targets, in [0, 1). stop_smoothing: label smoothing of the
            stop term, in [0, 1).

    Raises:
        ValueError: an option is out of its range, or there is no instrument.

    Source: Kingma and Welling 2014; the frame-wise stop term is that of Shen et al. 2018 (Tacotron 2), section 2.2.
    """

    terms: ClassVar[tuple[str, ...]] = ("mel", "kl", "stop")
    example_axis: ClassVar[int | None] = 1
    min_styles: ClassVar[int | None] = 1
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        contract: MelContract,
        instruments: Sequence[int],
        statistics: Tensor,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        huber: float = 0.0,
        free_bits: float = 0.0,
        mel_smoothing: float = 0.0,
        stop_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=loss_weights, seed=seed)
        for name, value in (("huber", huber), ("free_bits", free_bits)):
            if value < 0:
                raise ValueError(f"task.{name} is {value}, must be at least 0 nats; 0 turns it off")
        for name, value in (("mel_smoothing", mel_smoothing), ("stop_smoothing", stop_smoothing)):
            if not 0 <= value < 1:
                raise ValueError(f"task.{name} is {value}, must be in [0, 1); 0 turns it off")
        if not instruments:
            raise ValueError("the training scores have no instruments; give scores with notes")
        self.contract, self.instruments = contract, tuple(instruments)
        self.huber, self.free_bits = huber, free_bits
        self.mel_smoothing, self.stop_smoothing = mel_smoothing, stop_smoothing
        self.model = model(n_mels=contract.n_mels, num_instruments=len(self.instruments))
        if not isinstance(self.model, ScoreVae):
            raise ValueError(f"task=synthesis trains model=score_vae, not {type(self.model).__name__}; set model=score_vae")
        mean_sm, deviation_sm = statistics[:, :2].unbind(1)
        mean_m = mean_sm.mean(0)
        variance_m = (deviation_sm.square() + mean_sm.square()).mean(0) - mean_m.square()
        self.register_buffer("mean", mean_m[:, None].clone())  # [m, 1], over all styles
        self.register_buffer("deviation", variance_m.clamp(min=1e-6).sqrt()[:, None].clone())

    @property
    def _network(self) -> ScoreVae:
        assert isinstance(self.model, ScoreVae)
        return self.model

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        return tuple(self._network.blocks)

    @property
    def frame_seconds(self) -> float:
        """Seconds of a frame."""
        return self.contract.hop_length / self.contract.sample_rate

    # --- training ---

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms mel, kl and stop; `trace` holds the predicted log mel, the logits of the end and the latents."""
        log_nmf, stop_nf = self._targets(batch)
        score_ndf = self._network.read(self._rolls(batch))
        mean_nz, log_variance_nz = self._posterior(log_nmf, score_ndf, stop_nf)
        noise = torch.randn_like(mean_nz) if self.training else 0.0
        latent_nz = mean_nz + noise * (log_variance_nz / 2).exp()
        found_nmf, logits_nf = self._decoded(score_ndf, latent_nz)
        self.trace = {"log_mel": found_nmf, "stop_logits": logits_nf, "latent": latent_nz}
        with torch.autocast(self.device.type, enabled=False):
            wanted_nmf = torch.lerp(log_nmf, self.mean.expand_as(log_nmf), self.mel_smoothing)
            return {
                "mel": frame_error(found_nmf, wanted_nmf, 1 - stop_nf, huber=self.huber),
                "kl": kl_with_free_bits(mean_nz, log_variance_nz, self.free_bits),
                "stop": smoothed_stop(logits_nf, stop_nf, self.stop_smoothing),
            }

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the log mels [n, m, f] in nats and the stop labels [n, f]. Raises: ValueError for a batch without notes."""
        if "roll" not in batch:
            raise ValueError("the batch holds no notes, which synthesis is trained on; set data.score=true")
        return self.contract.denormalise(batch["mel"].flatten(0, 1).float()), batch["stop"].flatten(0, 1).float()

    def _posterior(self, log_nmf: Tensor, score_ndf: Tensor, stop_nf: Tensor) -> tuple[Tensor, Tensor]:
        return self._network.encode((log_nmf - self.mean) / self.deviation, score_ndf, 1 - stop_nf)

    def _decoded(self, score_ndf: Tensor, latent_nz: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log mels in nats and the logits of the end, float32."""
        standard_nmf, logits_nf = self._network.decode(score_ndf, latent_nz.to(score_ndf))
        return standard_nmf.float() * self.deviation + self.mean, logits_nf.float()

    # --- measuring ---

    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("mel_l1", "nats"), Measure("reconstruction", "nats"), Measure("kl", "nats per clip"),
            Measure("stop_error", "share of frames"),
        )  # fmt: skip

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns the L1 of the prediction and of the reconstruction, the divergence, and the share of wrong stop labels."""
        log_nmf, stop_nf = self._targets(batch)
        score_ndf = self._network.read(self._rolls(batch))
        mean_nz, log_variance_nz = self._posterior(log_nmf, score_ndf, stop_nf)
        predicted_nmf, logits_nf = self._decoded(score_ndf, torch.zeros_like(mean_nz))
        rebuilt_nmf, _ = self._decoded(score_ndf, mean_nz)
        counted = 1 - stop_nf
        frames, rows = counted.sum(), torch.tensor(len(mean_nz), device=self.device)
        wrong = ((logits_nf > 0) != (stop_nf > 0.5)).float()
        return {
            "mel_l1": Measured(frame_error(predicted_nmf, log_nmf, counted), frames),
            "reconstruction": Measured(frame_error(rebuilt_nmf, log_nmf, counted), frames),
            "kl": Measured(kl_from_normal(mean_nz, log_variance_nz).sum(-1).mean(), rows),
            "stop_error": Measured(wrong.mean(), torch.tensor(wrong.numel(), device=self.device)),
        }

    @staticmethod
    def _rolls(batch: Batch) -> Tensor:
        """Returns the network's input, rolls [n, 2, p, t, f]: those set by `with_inputs`, else the batch's own."""
        roll: Tensor = batch["roll"]
        return roll.flatten(0, 1)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"roll": the piano rolls [s, b, 2, p, t, f] that are the network's input}."""
        return {"roll": batch["roll"]}

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """Returns the batch with these rolls as the network's input; the targets stay as they are."""
        return {**batch, "roll": inputs["roll"]}

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each clip, [s * b, d]: the mean over frames of the network's last hidden states."""
        score_ndf = self._network.read(self._rolls(batch))
        latent = score_ndf.new_zeros(len(score_ndf), self._network.latent_dim)
        return self._network.hidden(score_ndf, latent).mean(1)

    # --- playing ---

    def play(self, table_n5: np.ndarray) -> Tensor:
        """Returns the natural-log mels [m, f] of notes, on the CPU; the latents are at the prior's mean.

        Instruments that the training data lacked are played as `etude.music.roll.played_by` says. The sound ends at the first
        frame behind the last note that the network takes for the end, and at most `TAIL_SECONDS` later.

        Raises:
            ValueError: there is no note that the network can play.
        """
        notes, _ = played_by(table_n5, self.instruments)
        if not len(notes):
            raise ValueError("the score has no notes for the instruments that the model knows; give another score or model")
        last = int(np.ceil(notes[:, END].max() / self.frame_seconds - 1e-6))
        total = last + round(TAIL_SECONDS / self.frame_seconds)

        def part(start: int, stop: int) -> Tensor:
            found = piano_roll(notes, self.instruments, start=start, num_frames=stop - start, frame_seconds=self.frame_seconds)
            return torch.from_numpy(found)

        log_mf, logits_f = self._played(part, total)
        ends = (logits_f[last:] > 0).nonzero().flatten()
        return log_mf[:, : last + int(ends[0]) if len(ends) else total]

    def play_roll(self, roll_kptf: Tensor) -> Tensor:
        """Returns the natural-log mels [m, f] of a whole roll, on the CPU."""
        return self._played(lambda start, stop: roll_kptf[..., start:stop], roll_kptf.shape[-1])[0]

    @torch.no_grad()
    def reconstruct(self, roll_kptf: Tensor, log_mel_mf: Tensor) -> Tensor:
        """Returns natural-log mels [m, f] of a roll, on the CPU, with the mean latents that the encoder finds in the sound."""
        log_nmf = log_mel_mf[None].to(self.device, torch.float32)
        was_training = self.training
        self.eval()
        try:
            score_ndf = self._network.read(roll_kptf[None].to(self.device))
            latent_nz, _ = self._posterior(log_nmf, score_ndf, torch.zeros_like(log_nmf[:, 0]))
            return self._decoded(score_ndf, latent_nz)[0][0].cpu()
        finally:
            self.train(was_training)

    @torch.no_grad()
    def _played(self, part: Callable[[int, int], Tensor], total: int) -> tuple[Tensor, Tensor]:
        """Returns log mels [m, f] and logits of the end [f], computed block by block with the whole context of each frame.

        part: returns the roll from one frame to another. total: f, frames in all.
        """
        context, mels, ends = self._network.context_frames, [], []
        was_training = self.training
        self.eval()
        try:
            for start in range(0, total, FRAMES_AT_ONCE):
                stop = min(total, start + FRAMES_AT_ONCE)
                first, last = max(0, start - context), min(total, stop + context)
                score_ndf = self._network.read(part(first, last)[None].to(self.device))
                log_nmf, logits_nf = self._decoded(score_ndf, score_ndf.new_zeros(1, self._network.latent_dim))
                mels.append(log_nmf[0, :, start - first : stop - first].cpu())
                ends.append(logits_nf[0, start - first : stop - first].cpu())
        finally:
            self.train(was_training)
        return torch.cat(mels, 1), torch.cat(ends)

    # --- the checkpoint ---

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        if (theirs := tuple(saved["etude"].get("instruments", ()))) != self.instruments:
            raise ValueError(
                f"weights={path}: it plays the instruments {list(theirs)}, and the training data have {list(self.instruments)}; "
                "give data with the same instruments, or start anew"
            )
        return super().weights_from(saved, path)

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that come from the data, read from a checkpoint."""
        contract = MelContract(**saved["contract"])
        statistics = torch.stack([torch.zeros(contract.n_mels), torch.ones(contract.n_mels)])[None]  # buffers replace them
        return {"contract": contract, "instruments": tuple(saved["instruments"]), "statistics": statistics}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"] |= {"contract": self.contract.to_dict(), "instruments": list(self.instruments)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        found, instruments = MelContract(**checkpoint["etude"]["contract"]), tuple(checkpoint["etude"]["instruments"])
        if found != self.contract or instruments != self.instruments:
            why = found.difference(self.contract) or f"instruments {list(instruments)}, here {list(self.instruments)}"
            raise ValueError(f"the checkpoint was trained on other data: {why}; give the contract= and data= options of its run")
