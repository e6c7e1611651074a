"""A vocoder trained on one's own audio: mels in, samples out.

Shapes: s styles, b rows, m mel bands, k linear frequency bins, f frames, n = f * hop samples, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etude.audio.mel import MelContract
from etude.core.batch import Batch
from etude.core.called import program
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task, frozen
from etude.losses.adversarial import discriminator_loss, generator_loss
from etude.losses.feature_matching import feature_matching
from etude.losses.stft import multi_resolution_stft
from etude.models.wave.discriminators import SpectraDiscriminator
from etude.models.wave.vocos import Vocos, inverse_stft

ADVERSARIAL = "generator/adversarial"
KEPT = 0.05  # nats: a band that the mels change by less than about this keeps the source's sound
OF_THE_GAME = (ADVERSARIAL, "generator/feature_matching", "discriminator/all")


class Vocoder(Task):
    """Trains a network that turns mels into samples.

    A batch holds `mel` [s, b, m, f] normalised by the contract and `samples` [s, b, n]; held-out batches may lack samples.

    Args:
        model: called with contract, gives the network; see `etude.models.wave.vocos.Vocos`.
        contract: of the mels; travels in the checkpoint.
        optimizer, scheduler, player_lr, seed: see `Task`.
        loss_weights: of `generator/mel`, `generator/stft`, `generator/adversarial`, `generator/feature_matching` and
            `discriminator/all`. Where `generator/adversarial` is 0 there is no discriminator and the last three rest.
        discriminator_channels: width of the discriminator's layers.

    Source: Siuzdak 2023 (Vocos), sec. 3.3, for the terms; the multi-resolution STFT loss of Yamamoto et al. 2020 beside them.
    """

    example_axis: ClassVar[int | None] = 1
    least_styles: ClassVar[int | None] = 1

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
        self_taught = weights.get(ADVERSARIAL, 1.0) == 0
        if self_taught:
            weights = {name: weight for name, weight in weights.items() if name not in OF_THE_GAME}
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=weights, player_lr=player_lr, seed=seed)
        self.contract = contract
        self.model = model(contract=contract)
        self.discriminator = None if self_taught else SpectraDiscriminator(channels=discriminator_channels)

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
        """Returns the terms named in `loss_weights`' description.

        Raises:
            ValueError: a batch without samples.
        """
        if "samples" not in batch:
            raise ValueError("the batch holds no samples, and a vocoder learns from them; set data.waveform=true")
        mel_bmf, real_bn = batch["mel"].flatten(0, 1), batch["samples"].flatten(0, 1)
        fake_bn = self.model(self._heard(batch))
        with torch.autocast(self.device.type, enabled=False):  # logarithms of small magnitudes need all their digits
            terms = {"generator/mel": self.mel_l1(fake_bn, mel_bmf), "generator/stft": multi_resolution_stft(fake_bn, real_bn)}
        return terms if self.discriminator is None else {**terms, **self._game(self.discriminator, fake_bn, real_bn)}

    def mel_l1(self, fake_bn: Tensor, mel_bmf: Tensor) -> Tensor:
        """Returns the mean absolute error, in nats, of the mels of samples against normalised mels.

        Frames whose window overlaps an edge are left out where others remain: what lay beyond is not known.
        """
        found, edge = self.contract.log_mel(fake_bn), -(-self.contract.padding // self.contract.hop_length)
        error = (found - self.contract.denormalise(mel_bmf.float())).abs()
        return (error[..., edge:-edge] if edge and error.shape[-1] > 2 * edge else error).mean()

    @staticmethod
    def _game(discriminator: nn.Module, fake_bn: Tensor, real_bn: Tensor) -> dict[str, Tensor]:
        """Hinge losses of both players and the L1 between the features of real and made samples."""
        both, features = discriminator(torch.cat([real_bn, fake_bn.detach()]))
        with frozen(discriminator):
            judged, seen = discriminator(fake_bn)
        (told_real, told_fake), (its, _) = _halves(both), _halves([layer for scale in features for layer in scale])
        return {
            ADVERSARIAL: generator_loss([scores.float() for scores in judged], "hinge"),
            "generator/feature_matching": feature_matching([[layer.float() for scale in seen for layer in scale]], [its]),
            "discriminator/all": discriminator_loss(told_real, told_fake, "hinge"),
        }

    def measures(self) -> tuple[Measure, ...]:
        return (Measure("mel_l1", "nats"),)

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns {"mel_l1": see the method of that name, over the rows of the batch}."""
        mel_bmf = batch["mel"].flatten(0, 1)
        fake_bn = self.model(self._heard(batch))
        with torch.autocast(self.device.type, enabled=False):
            return {"mel_l1": Measured(self.mel_l1(fake_bn, mel_bmf), torch.tensor(len(mel_bmf), device=self.device))}

    @staticmethod
    def _heard(batch: Batch) -> Tensor:
        """The mels [b, m, f] that the network is given: the batch's own, or those of `with_inputs`."""
        return (batch["mel_input"] if "mel_input" in batch else batch["mel"]).flatten(0, 1)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"mel": the normalised mels [s, b, m, f] that the network is given}."""
        return {"mel": batch["mel_input"] if "mel_input" in batch else batch["mel"]}

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """Returns the batch with these mels as the network's input; what its output is compared with stays."""
        return {**batch, "mel_input": inputs["mel"]}

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each piece, [s * b, d]: the mean over frames of the network's last hidden states.

        Raises: ValueError where the network shows none.
        """
        if not isinstance(self.model, Vocos):
            raise ValueError(f"{type(self.model).__name__} has no hidden states to describe sound by; for features: model=vocos")
        return self.model.hidden(self._heard(batch)).mean(1)

    @torch.no_grad()
    def synthesise(self, log_mel_cmf: Tensor, source_ckf: Tensor | None = None) -> Tensor:
        """Returns samples [c, f * hop] of natural-log mels [c, m, f], on the mels' device.

            Z + W (S - Z'),   W = exp(-((mel - mel') / KEPT)^2), spread from bands to bins

        Z and Z' are the network's spectra of the mels and of the source's mels, S is the source's spectrum: what the mels
        leave as it was keeps its sound, and the mels of the source give the source back.

        Args:
            log_mel_cmf: any f from 1.
            source_ckf: complex spectrum [c, k, f] of what the mels were made from; None: all comes from the network.

        Raises:
            ValueError: mels of another number of bands or without a frame, or a source of another size.
        """
        self._check(log_mel_cmf, source_ckf)
        was_training = self.training
        self.eval()
        try:
            mel = log_mel_cmf.to(self.device)
            found = self._spectrum(mel) if source_ckf is None else self._kept(mel, source_ckf.to(self.device))
        finally:
            self.train(was_training)
        samples = inverse_stft(found, n_fft=self.contract.n_fft, hop_length=self.contract.hop_length)
        return samples.to(log_mel_cmf.device)

    def _spectrum(self, log_mel_cmf: Tensor) -> Tensor:
        return self.model.spectrum(self.contract.normalise(log_mel_cmf))  # type: ignore[operator]

    def _kept(self, mel_cmf: Tensor, source_ckf: Tensor) -> Tensor:
        contract = self.contract
        before_cmf = contract.bands(source_ckf.abs()).clamp(min=contract.floor).log()
        made, unmade = self._spectrum(torch.cat([mel_cmf, before_cmf])).chunk(2)
        kept_cmf = torch.exp(-(((mel_cmf - before_cmf) / KEPT) ** 2))
        bank = contract.filterbank(mel_cmf.device)
        share_k = bank.sum(0)
        kept_ckf = (bank.T @ kept_cmf) / share_k.clamp(min=1e-9)[:, None]
        # bins outside every band go with the whole frame
        kept_ckf = torch.where(share_k[:, None] > 0, kept_ckf, kept_cmf.mean(1, keepdim=True))
        return made + kept_ckf * (source_ckf - unmade)

    def _check(self, log_mel_cmf: Tensor, source_ckf: Tensor | None) -> None:
        if log_mel_cmf.ndim != 3 or log_mel_cmf.shape[1] != self.contract.n_mels or log_mel_cmf.shape[2] == 0:
            raise ValueError(
                f"log_mel_cmf has the shape {list(log_mel_cmf.shape)}; "
                f"give [channels, {self.contract.n_mels} bands, at least 1 frame]"
            )
        needed = [log_mel_cmf.shape[0], self.contract.num_bins, log_mel_cmf.shape[2]]
        if source_ckf is not None and list(source_ckf.shape) != needed:
            raise ValueError(f"source has the shape {list(source_ckf.shape)}, but the mels go with {needed}")

    @classmethod
    def parts_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the data gave this task, as it stands in a checkpoint's `etude`."""
        return {"contract": MelContract(**saved["contract"])}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"]["contract"] = self.contract.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        found = MelContract(**checkpoint["etude"]["contract"])
        if found != self.contract:
            raise ValueError(
                f"the checkpoint was trained on another mel contract: {found.difference(self.contract)}; "
                "give the data= options of its run, which stand in its config.yaml"
            )


def _halves(both: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Takes each batch of real and made rows apart, in float32."""
    pairs = [x.float().chunk(2) for x in both]
    return [real for real, _ in pairs], [fake for _, fake in pairs]


class NeuralVocoder:
    """A trained vocoder as transfer uses one.

    Args:
        task: a trained `Vocoder`.
    """

    def __init__(self, task: Vocoder) -> None:
        self.task = task

    @property
    def contract(self) -> MelContract:
        """Of the mels that it takes."""
        return self.task.contract

    @property
    def context_frames(self) -> int:
        """Frames on each side that the samples of a frame depend on."""
        return self.task.context_frames

    def __call__(self, log_mel_cmf: Tensor, source: Tensor | None = None) -> Tensor:
        """Returns samples [c, f * hop] of natural-log mels [c, m, f].

        Args:
            log_mel_cmf: any f from 1.
            source: complex spectrum [c, k, f] of what the mels were made from; see `Vocoder.synthesise`.
        """
        return self.task.synthesise(log_mel_cmf, source)


def open_vocoder(*, contract: MelContract, ckpt: str, load: Callable[[Path], tuple[Any, Any]]) -> NeuralVocoder:
    """Returns the vocoder of a checkpoint.

    Args:
        contract: of the mels that it will be given.
        ckpt: path of a checkpoint of `task=vocoder`.
        load: rebuilds (task, configuration) from such a path.

    Raises:
        ValueError: no such file, a checkpoint of another task, or one of another mel contract (the message names the fields).
    """
    path = Path(ckpt).expanduser()
    if not path.is_file():
        raise ValueError(
            f"vocoder.ckpt={ckpt}: there is no such file; give a checkpoint that `{program('train')} task=vocoder` wrote"
        )
    task, _ = load(path)
    if not isinstance(task, Vocoder):
        raise ValueError(
            f"vocoder.ckpt={ckpt} holds a {type(task).__name__}; give a checkpoint that `{program('train')} task=vocoder` wrote"
        )
    if task.contract != contract:
        raise ValueError(
            f"vocoder.ckpt={ckpt} was trained on another mel contract: {task.contract.difference(contract)}; "
            "train a vocoder on the data= options of the model, or take vocoder=griffin_lim"
        )
    return NeuralVocoder(task)
