"""Training and use of a neural vocoder, which turns mel spectrograms into waveforms.

Shapes: s styles, b rows, m mel bands, k linear frequency bins, f frames, n = f * hop samples, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from etude.audio.mel import MelContract
from etude.core.audio_protocols import Synthesises
from etude.core.batch import Batch
from etude.core.called import program
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task, frozen
from etude.losses.adversarial import discriminator_loss, generator_loss
from etude.losses.feature_matching import feature_matching
from etude.losses.stft import multi_resolution_stft
from etude.models.wave.discriminators import MultiResolutionDiscriminator
from etude.models.wave.vocos import Vocos, inverse_stft
from etude.tasks.mel_checkpoint import check_contract

ADVERSARIAL = "generator/adversarial"
UNCHANGED_NATS = 0.05  # a band that changes by less than about this many nats keeps the source's spectrum
GAN_TERMS = (ADVERSARIAL, "generator/feature_matching", "discriminator/all")


class Vocoder(Task):
    """Trains a network that turns mels into waveforms.

    A batch holds `mel` [s, b, m, f], normalised, and `samples` [s, b, n]; held-out batches may lack samples.

    Args:
        model: builds the network; called with contract, such as `etude.models.wave.vocos.Vocos`.
        contract: the mel settings; stored in the checkpoint.
        optimizer, scheduler, player_lr, seed: see `Task`.
        loss_weights: weights of `generator/mel`, `generator/stft`, `generator/adversarial`, `generator/feature_matching` and
            `discriminator/all`. If `generator/adversarial` is 0, there is no discriminator and the last three are not used.
        discriminator_channels: width of the discriminator's layers.

    Source: Siuzdak 2023 (Vocos), sec. 3.3, for the terms, with the multi-resolution STFT loss of Yamamoto et al. 2020 added.
    """

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
        discriminator_channels: int = 16,
        seed: int = 0,
    ) -> None:
        weights = dict(loss_weights or {})
        without_gan = weights.get(ADVERSARIAL, 1.0) == 0
        if without_gan:
            weights = {name: weight for name, weight in weights.items() if name not in GAN_TERMS}
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=weights, player_lr=player_lr, seed=seed)
        self.contract = contract
        self.model = model(contract=contract)
        self.discriminator = None if without_gan else MultiResolutionDiscriminator(channels=discriminator_channels)

    @property
    def players(self) -> dict[str, Sequence[nn.Module]]:
        generator: dict[str, Sequence[nn.Module]] = {"generator": [self.model]}
        return generator if self.discriminator is None else {**generator, "discriminator": [self.discriminator]}

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        return tuple(self.model.blocks) if isinstance(self.model, Vocos) else ()

    @property
    def context_frames(self) -> int:
        """Frames on each side that the samples of a frame depend on."""
        return self.model.context_frames  # type: ignore[return-value]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms; see `loss_weights` for their names.

        Raises:
            ValueError: the batch has no samples.
        """
        if "samples" not in batch:
            raise ValueError("the batch holds no samples, which a vocoder is trained on; set data.waveform=true")
        mel_bmf, real_bn = batch["mel"].flatten(0, 1), batch["samples"].flatten(0, 1)
        fake_bn = self.model(self._input_mels(batch))
        with torch.autocast(self.device.type, enabled=False):  # logarithms of small magnitudes need float32
            terms = {"generator/mel": self.mel_l1(fake_bn, mel_bmf), "generator/stft": multi_resolution_stft(fake_bn, real_bn)}
        return terms if self.discriminator is None else {**terms, **self._gan_terms(self.discriminator, fake_bn, real_bn)}

    def mel_l1(self, fake_bn: Tensor, mel_bmf: Tensor) -> Tensor:
        """Returns the mean absolute error, in nats, of the mels of generated waveforms.

        Frames whose window overlaps an edge are left out if others remain, since the audio beyond the edge is not known.

        Args:
            fake_bn: generated waveforms. mel_bmf: the normalised mels that they should have.
        """
        found, edge = self.contract.log_mel(fake_bn), -(-self.contract.padding // self.contract.hop_length)
        error = (found - self.contract.denormalise(mel_bmf.float())).abs()
        return (error[..., edge:-edge] if edge and error.shape[-1] > 2 * edge else error).mean()

    @staticmethod
    def _gan_terms(discriminator: nn.Module, fake_bn: Tensor, real_bn: Tensor) -> dict[str, Tensor]:
        """Returns the hinge losses of generator and discriminator, and the feature-matching loss."""
        both, features = discriminator(torch.cat([real_bn, fake_bn.detach()]))
        with frozen(discriminator):
            logits, fake_features = discriminator(fake_bn)
        real_logits, fake_logits = _split_real_fake(both)
        real_features, _ = _split_real_fake([layer for scale in features for layer in scale])
        layers = [layer.float() for scale in fake_features for layer in scale]
        return {
            ADVERSARIAL: generator_loss([scale.float() for scale in logits], "hinge"),
            "generator/feature_matching": feature_matching([layers], [real_features]),
            "discriminator/all": discriminator_loss(real_logits, fake_logits, "hinge"),
        }

    def measures(self) -> tuple[Measure, ...]:
        return (Measure("mel_l1", "nats"),)

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns {"mel_l1": the value of `mel_l1` for the batch}."""
        mel_bmf = batch["mel"].flatten(0, 1)
        fake_bn = self.model(self._input_mels(batch))
        with torch.autocast(self.device.type, enabled=False):
            return {"mel_l1": Measured(self.mel_l1(fake_bn, mel_bmf), torch.tensor(len(mel_bmf), device=self.device))}

    @staticmethod
    def _input_mels(batch: Batch) -> Tensor:
        """Returns the network's input, mels [b, m, f]: those set by `with_inputs`, else the batch's own."""
        mel_sbmf: Tensor = batch["mel_input"] if "mel_input" in batch else batch["mel"]
        return mel_sbmf.flatten(0, 1)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"mel": the normalised mels [s, b, m, f] that are the network's input}."""
        return {"mel": batch["mel_input"] if "mel_input" in batch else batch["mel"]}

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """Returns the batch with these mels as the network's input; the targets stay as they are."""
        return {**batch, "mel_input": inputs["mel"]}

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each piece, [s * b, d]: the mean over frames of the network's last hidden states.

        Raises: ValueError if the network gives no hidden states.
        """
        if not isinstance(self.model, Vocos):
            raise ValueError(f"{type(self.model).__name__} has no method `hidden`, which features need; set model=vocos")
        return self.model.hidden(self._input_mels(batch)).mean(1)

    @torch.no_grad()
    def synthesise(self, log_mel_cmf: Tensor, source_ckf: Tensor | None = None) -> Tensor:
        """Returns waveforms [c, f * hop] of natural-log mels [c, m, f], on the mels' device.

            Z + W (S - Z'),   W = exp(-((mel - mel') / UNCHANGED_NATS)^2), interpolated from bands to bins

        Z and Z' are the network's spectra of the mels and of the source's mels, S is the source's spectrum. Where the mels do
        not differ from the source's, the source's spectrum is kept.

        Args:
            log_mel_cmf: at least one frame.
            source_ckf: complex spectrum [c, k, f] of the audio that the mels were made from; None to use only the network.

        Raises:
            ValueError: the mels have another number of bands or no frame, or the source has another size.
        """
        self._check(log_mel_cmf, source_ckf)
        was_training = self.training
        self.eval()
        try:
            mel = log_mel_cmf.to(self.device)
            found = self._spectrum(mel) if source_ckf is None else self._blended_spectrum(mel, source_ckf.to(self.device))
        finally:
            self.train(was_training)
        samples = inverse_stft(found, n_fft=self.contract.n_fft, hop_length=self.contract.hop_length)
        return samples.to(log_mel_cmf.device)

    def _spectrum(self, log_mel_cmf: Tensor) -> Tensor:
        spectrum: Tensor = self.model.spectrum(self.contract.normalise(log_mel_cmf))  # type: ignore[operator]
        return spectrum

    def _blended_spectrum(self, mel_cmf: Tensor, source_ckf: Tensor) -> Tensor:
        contract = self.contract
        before_cmf = contract.bands(source_ckf.abs()).clamp(min=contract.floor).log()
        new, rebuilt = self._spectrum(torch.cat([mel_cmf, before_cmf])).chunk(2)
        kept_cmf = torch.exp(-(((mel_cmf - before_cmf) / UNCHANGED_NATS) ** 2))
        bank = contract.filterbank(mel_cmf.device)
        share_k = bank.sum(0)
        kept_ckf = (bank.T @ kept_cmf) / share_k.clamp(min=1e-9)[:, None]
        # bins outside all bands get the mean weight of the frame
        kept_ckf = torch.where(share_k[:, None] > 0, kept_ckf, kept_cmf.mean(1, keepdim=True))
        return new + kept_ckf * (source_ckf - rebuilt)

    def _check(self, log_mel_cmf: Tensor, source_ckf: Tensor | None) -> None:
        if log_mel_cmf.ndim != 3 or log_mel_cmf.shape[1] != self.contract.n_mels or log_mel_cmf.shape[2] == 0:
            raise ValueError(
                f"log_mel_cmf has the shape {list(log_mel_cmf.shape)}; "
                f"give [channels, {self.contract.n_mels} bands, at least 1 frame]"
            )
        needed = [log_mel_cmf.shape[0], self.contract.num_bins, log_mel_cmf.shape[2]]
        if source_ckf is not None and list(source_ckf.shape) != needed:
            raise ValueError(f"source has the shape {list(source_ckf.shape)}, but the mels need {needed}")

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


def _split_real_fake(both: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the first half (real) and the second half (generated) of each tensor, in float32."""
    pairs = [x.float().chunk(2) for x in both]
    return [real for real, _ in pairs], [fake for _, fake in pairs]


@runtime_checkable
class Synthesiser(Synthesises, Protocol):
    """A task that makes audio from mels of its contract, such as `Vocoder` and `MelInverter`."""

    contract: MelContract

    @property
    def context_frames(self) -> int:
        """Frames on each side that the samples of a frame depend on."""
        ...


class NeuralVocoder:
    """A trained vocoder with the interface that `etude.transfer` needs.

    Args:
        task: a trained `Vocoder` or `MelInverter`.
    """

    def __init__(self, task: Synthesiser) -> None:
        self.task = task

    @property
    def contract(self) -> MelContract:
        """Settings of the mels that it takes."""
        return self.task.contract

    @property
    def context_frames(self) -> int:
        """Frames on each side that the samples of a frame depend on."""
        return self.task.context_frames

    def __call__(self, log_mel_cmf: Tensor, source: Tensor | None = None) -> Tensor:
        """Returns waveforms [c, f * hop] of natural-log mels [c, m, f].

        Args:
            log_mel_cmf: at least one frame.
            source: complex spectrum [c, k, f] of the audio that the mels were made from; see the task's `synthesise`.
        """
        return self.task.synthesise(log_mel_cmf, source)


def open_vocoder(
    *,
    contract: MelContract,
    find: Callable[[str, str, type], Path],
    load: Callable[[Path], tuple[Any, Any]],
    ckpt: str | None = None,
) -> NeuralVocoder:
    """Loads a vocoder from a checkpoint.

    Args:
        contract: settings of the mels that it will be given.
        find: returns the path for (ckpt, the key that holds it, the protocol that the newest run's task must meet).
        load: returns (task, configuration) for a path.
        ckpt: a checkpoint or run of `task=vocoder` or `task=mel_inverter`, or `last`.

    Raises:
        ValueError: no `ckpt`, the file does not exist, or the checkpoint is of another task or mel contract.
    """
    if ckpt is None:
        raise ValueError(
            f"vocoder.ckpt is missing: give a checkpoint or run of `{program('train')} task=vocoder`, or vocoder.ckpt=last"
        )
    task, _ = load(find(ckpt, "vocoder.ckpt", Synthesises))
    if not isinstance(task, Synthesiser):
        raise ValueError(
            f"vocoder.ckpt={ckpt} holds a {type(task).__name__}; give a checkpoint that `{program('train')} task=vocoder` or "
            "`task=mel_inverter` wrote"
        )
    if task.contract != contract:
        raise ValueError(
            f"vocoder.ckpt={ckpt} was trained on another mel contract: {task.contract.difference(contract)}; "
            "train a vocoder with the contract= and data= options of the model, or take vocoder=griffin_lim"
        )
    return NeuralVocoder(task)
