"""Technique generated_mels: a vocoder learns from mels that a style-transfer model generated, to make the real audio of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.audio_protocols import Synthesises
from etude.core.batch import Batch
from etude.core.protocols import Restyles, Styled, TakesInputs
from etude.core.same_file import SameFile
from etude.core.task import Task
from etude.core.technique import BatchSlot, Technique

TRANSFER = "technique.generated_mels.transfer"


class GeneratedMels(Technique):
    """Replaces a share of a vocoder's input mels by generated ones; the audio that it must make stays the real one.

    A mel of a recording is translated into another style and back by a trained transfer model. The result has the errors of
    generated mels, and the recording is its true audio, frame by frame: "ground-truth-aligned" training.

    When to use: a vocoder that is to be used after that transfer model. Suggested: share 0.5, so that it also stays good on the
    mels of recordings.

    Args:
        transfer: a checkpoint or run of `task=style_transfer`, `last`, or `bundled` for the model that comes with Etude.
        share: of the segments that get generated mels, in (0, 1].
        find: returns the path for (transfer, name of the option, what the task must offer). load: returns (model,
            configuration) for a path. `etude.run` provides both.
        seed: of the draws of segments and styles.

    Raises:
        ValueError: share is out of its range; in setup, the task is no vocoder, the transfer model has another mel contract or
            does not know a style of the data, or a resumed run names another one.

    Source: Shen et al. 2018 (Tacotron 2), section 3.3, for training on aligned generated mels. Here the way back from a
    translation aligns them (the cycle of CycleGAN, Zhu et al. 2017), since few songs are recorded in two styles.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.AUGMENT

    def __init__(
        self,
        *,
        transfer: str = "bundled",
        share: float = 0.5,
        find: Callable[..., Path] | None = None,
        load: Callable[[Path], tuple[Any, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not 0 < share <= 1:
            raise ValueError(f"technique.generated_mels.share is {share}, must be in (0, 1]; 0.5 is a good start")
        self.transfer_name, self.share = transfer, share
        self._find, self._load = find, load
        self._transfer: list[Any] = []  # in a list, so that it does not become a submodule
        self._file = SameFile("technique generated_mels: the run got its mels from", "the transfer model")
        self._styles: tuple[str, ...] = ()

    @property
    def transfer(self) -> Any:
        """The transfer model, in evaluation mode and without gradients."""
        return self._transfer[0]

    def _path(self) -> Path:
        return Path(self.transfer_name) if self._find is None else self._find(self.transfer_name, TRANSFER, Restyles)

    def paths(self) -> dict[str, Path]:
        return {} if self._find is None else {"transfer": self._path()}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        kind = type(pl_module).__name__
        if not (isinstance(pl_module, Synthesises) and isinstance(pl_module, TakesInputs)):
            raise ValueError(
                f"technique generated_mels is for vocoders, and {kind} makes no audio from mels; remove it from technique=[...], "
                "or choose task=vocoder or task=mel_inverter"
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, Styled):
            raise ValueError(
                f"technique generated_mels translates recordings of known styles, and the data of this {kind} have none; choose "
                "data=arranged or data=audio_folder"
            )
        if self._load is None:
            raise ValueError(f"technique generated_mels needs a transfer model for this {kind}; give {TRANSFER}=CHECKPOINT")
        path = self._path()
        self._file.found(path)
        found = self._load(path)[0]
        if not isinstance(found, Restyles):
            raise ValueError(f"{TRANSFER}={path} holds a {type(found).__name__}; give a checkpoint of task=style_transfer")
        model: Any = found
        if model.contract != data.contract:
            raise ValueError(
                f"{TRANSFER}={path} was trained on another mel contract: {model.contract.difference(data.contract)}; give one "
                "of the same contract= and data="
            )
        if unknown := [style for style in data.styles if style not in model.styles]:
            raise ValueError(
                f"{TRANSFER}={path} does not know the style {unknown[0]} of the data, only {', '.join(model.styles)}; give a "
                "model of these styles, or data.styles that it knows"
            )
        self._styles = tuple(data.styles)
        self._transfer = [model.requires_grad_(False).eval()]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.transfer.to(pl_module.device)

    @torch.no_grad()
    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        assert isinstance(task, TakesInputs)
        draws = self.generator(task.batches_trained * 65_536 + task.global_rank)
        (own_sbmf,) = task.inputs(batch).values()
        found_sbmf = own_sbmf.clone()
        names = self.transfer.styles
        for number, style in enumerate(self._styles):
            others = [name for name in names if name != style]
            chosen = (torch.rand(own_sbmf.shape[1], generator=draws) < self.share).nonzero().flatten()
            way = others[int(torch.randint(len(others), (), generator=draws))]
            if len(chosen):
                rows = chosen.to(own_sbmf.device)
                found_sbmf[number, rows] = self._there_and_back(own_sbmf[number, rows], style, way)
        return task.with_inputs(batch, {"mel": found_sbmf})

    def _there_and_back(self, mel_bmf: Tensor, style: str, way: str) -> Tensor:
        """Returns normalised mels [b, m, f] translated from `style` to `way` and back."""
        contract = self.transfer.contract
        log_mel_bmf = contract.denormalise(mel_bmf.float())
        away_bmf = self.transfer.translate(log_mel_bmf, source=style, target=way)
        back_bmf: Tensor = self.transfer.translate(away_bmf, source=way, target=style)
        normalised: Tensor = contract.normalise(back_bmf).to(mel_bmf)
        return normalised

    def state_dict(self) -> dict[str, Any]:
        return {"transfer": self._file.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._file.restore(state_dict["transfer"])
