"""Training and use of a grader: which defects audio has, where, how good it is, and where notes and sections begin.

Shapes: s styles, b rows, m mel bands, f frames, n samples, d defects, z defects with a place in the spectrum, k coarse bands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.audio.degradations import BAND_DEFECTS, check_defects
from etude.audio.grades import APART_SECONDS
from etude.audio.mel import MelContract
from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task
from etude.losses.focal import focal_loss
from etude.metrics.audio.calibration import fit_temperatures, sigmoid
from etude.metrics.audio.detection import average_precision, best_threshold
from etude.models.mel.grader import Grades
from etude.models.mel.plain_grader import PlainGraderNetwork
from etude.tasks.mel_checkpoint import check_contract

NUM_BANDS = 8  # coarse bands, as in the batches
LOWEST, HIGHEST = 1.0, 10.0  # quality
ONSET_WIDTH, SECTION_WIDTH = 3, 9  # frames around an onset and a border that count as it in training, odd
TERMS = ("frames", "clip", "bands", "quality", "onsets", "sections")


class Grader(Task):
    """Trains a network that grades audio.

    A batch holds `mel`, `defects`, `bands`, `quality`, `onsets` and `sections`, as `data.audio.graded.GradedSegments` says; the
    axis of styles and that of rows come first.

    Args:
        model: builds the network; called with n_mels, num_defects, num_band_defects, num_bands, such as
            `etude.models.mel.grader.GraderNetwork`.
        contract: the mel settings; stored in the checkpoint.
        defects: names of the defects, in the order of the batches.
        segment_frames: frames of a training segment; files are graded in windows of this length.
        optimizer, scheduler, player_lr, seed: see `Task`.
        loss_weights: weights of `frames`, `clip`, `bands`, `onsets`, `sections` (focal losses of the defects in frames, in whole
            segments and in coarse bands, and of both kinds of borders) and `quality` (Huber loss, threshold 0.1, of the quality
            scaled to [0, 1]). There is no `bands` without a defect that has a place in the spectrum.
        gamma: exponent of the focal losses, at least 0.
        temperatures: of the defects, from a checkpoint; None for 1. border_thresholds: likewise, for `onsets` and `sections`, the
            probabilities from which a peak counts; None for 0.4.

    The end of every validation fits what is needed to use the grades, and the checkpoint stores it: the temperatures by which the
    logits of defects are divided, so that probabilities are calibrated (Guo et al. 2017), and the thresholds with the highest F1.

    Raises:
        ValueError: gamma below 0, or a defect that does not exist.
    """

    example_axis: ClassVar[int | None] = 1
    fully_labelled: ClassVar[bool] = True
    min_styles: ClassVar[int | None] = 1

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        contract: MelContract,
        defects: Sequence[str],
        segment_frames: int,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        player_lr: Mapping[str, float] | None = None,
        gamma: float = 2.0,
        temperatures: Sequence[float] | None = None,
        border_thresholds: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.defects = check_defects(defects)
        self.band_defects = tuple(name for name in self.defects if name in BAND_DEFECTS)
        kept = {name: weight for name, weight in (loss_weights or {}).items() if name != "bands" or self.band_defects}
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=kept, player_lr=player_lr, seed=seed)
        if gamma < 0:
            raise ValueError(f"task.gamma is {gamma}, must be at least 0; 2 is a good start")
        self.contract, self.gamma, self.segment_frames = contract, gamma, segment_frames
        self.model = model(
            n_mels=contract.n_mels,
            num_defects=len(self.defects),
            num_band_defects=len(self.band_defects),
            num_bands=NUM_BANDS,
        )
        self.temperatures = list(temperatures or [1.0] * len(self.defects))
        self.border_thresholds = dict(border_thresholds or dict.fromkeys(APART_SECONDS, 0.4))
        self._measured: dict[str, Tensor] = {}  # of the last measured batch: logits and truths
        self._held_out: list[dict[str, Tensor]] = []

    # --- training ---

    @property
    def players(self) -> dict[str, Sequence[nn.Module]]:
        return {"model": [self.model]}

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        return tuple(getattr(self.model, "blocks"))  # noqa: B009

    def grades(self, batch: Batch) -> Grades:
        """Returns the network's logits for a batch, its styles and rows in one axis."""
        found: Grades = self.model(batch["mel"].flatten(0, 1))
        return found

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms; see `loss_weights` for their names."""
        grades = self.grades(batch)
        truth = {name: batch[name].flatten(0, 1).float() for name in ("defects", "bands", "quality", "onsets", "sections")}
        with torch.autocast(self.device.type, enabled=False):
            scaled = (truth["quality"] - LOWEST) / (HIGHEST - LOWEST)
            terms = {
                "frames": self._focal(grades.frames, truth["defects"]),
                "clip": self._focal(grades.clip, truth["defects"].amax(-1)),
                "quality": F.huber_loss(grades.quality.sigmoid(), scaled, delta=0.1),
                "onsets": self._focal(grades.onsets, _widened(truth["onsets"], ONSET_WIDTH)),
                "sections": self._focal(grades.sections, _widened(truth["sections"], SECTION_WIDTH)),
            }
            return terms | ({"bands": self._focal(grades.bands, truth["bands"])} if self.band_defects else {})

    def _focal(self, logits: Tensor, targets: Tensor) -> Tensor:
        return focal_loss(logits, targets, gamma=self.gamma).mean()

    # --- validation ---

    def measures(self) -> tuple[Measure, ...]:
        return (Measure("clip_nll", "nats"), Measure("quality_error", "grades"), Measure("border_nll", "nats"))

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns the log loss of the defects of segments (without temperatures) and of both borders, in nats, and the mean
        absolute error of the quality."""
        grades = self.grades(batch)
        truth = batch["defects"].flatten(0, 1).amax(-1).float()
        marks = {name: batch[name].flatten(0, 1).float() for name in APART_SECONDS}
        widened = torch.stack([_widened(marks["onsets"], ONSET_WIDTH), _widened(marks["sections"], SECTION_WIDTH)])
        logits = {"clip": grades.clip, "onsets": grades.onsets, "sections": grades.sections}
        self._measured = {"true_clip": truth, **{f"true_{name}": value for name, value in marks.items()}, **logits}
        error = (as_quality(grades.quality) - batch["quality"].flatten(0, 1)).abs()
        nll = F.binary_cross_entropy_with_logits(grades.clip, truth)
        border_nll = F.binary_cross_entropy_with_logits(torch.stack([grades.onsets, grades.sections]), widened)
        found = {"clip_nll": nll, "quality_error": error.mean(), "border_nll": border_nll}
        return {name: Measured(value, torch.tensor(len(truth), device=self.device)) for name, value in found.items()}

    def on_validation_epoch_start(self) -> None:
        self._held_out = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self._held_out.append(self._measured)

    def on_validation_epoch_end(self) -> None:
        """Fits temperatures and thresholds on the validation segments, and logs their mean average precision as `val/map`."""
        if not self._held_out:
            return
        seen = {name: self._gathered([each[name] for each in self._held_out]) for name in self._held_out[0]}
        self._held_out = []
        self.temperatures = fit_temperatures(seen["clip"], seen["true_clip"])
        rate = self.contract.sample_rate / self.contract.hop_length
        self.border_thresholds = {
            name: best_threshold(sigmoid(seen[name]), seen[f"true_{name}"], kind=name, frame_rate=rate) for name in APART_SECONDS
        }
        found = [average_precision(z, y) for z, y in zip(seen["clip"].T, seen["true_clip"].T, strict=True)]
        if known := [value for value in found if not math.isnan(value)]:
            self.log("val/map", sum(known) / len(known))

    def _gathered(self, parts: list[Tensor]) -> np.ndarray:
        """Returns the rows of all ranks, [n, ...]."""
        own = torch.cat(parts).detach().float()
        gathered: Any = self.all_gather(own)
        rows: np.ndarray = gathered.reshape(-1, *own.shape[1:]).cpu().numpy()
        return rows

    # --- for techniques and attacks ---

    @property
    def labels(self) -> dict[str, tuple[str, str]]:
        """The defects as decisions: name -> its two classes."""
        return dict.fromkeys(self.defects, ("absent", "present"))

    def class_logits(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the logits of both classes of each defect for each segment, [s * b, 2]: 0 and the logit of the defect."""
        clip = self.grades(batch).clip
        return {name: torch.stack([torch.zeros_like(z), z], dim=1) for name, z in zip(self.defects, clip.T, strict=True)}

    def documents(self, batch: Batch, name: str = "piece") -> Tensor:
        """Returns, for each segment [s * b], whether it has the defect of `label_DEFECT`; `piece` numbers the segments."""
        if name == "piece":
            return torch.arange(batch["mel"].shape[0] * batch["mel"].shape[1], device=batch["mel"].device)
        defect = self.defects.index(name.removeprefix("label_"))
        present: Tensor = batch["defects"].flatten(0, 1)[:, defect].amax(-1) > 0.5
        return present.long()

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"mel": the normalised mels [s, b, m, f]}."""
        return {"mel": batch["mel"]}

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """Returns the batch with these mels; what is known about them stays as it is."""
        return {**batch, "mel": inputs["mel"]}

    def mixed_targets(self, batch: Batch, order: Tensor, share: Tensor, frames: tuple[int, int] | None = None) -> Batch:
        """Returns the truths of mixed segments; see `MixesTargets`. What is known of frames is cut like the frames."""
        found: Batch = {}
        for name in ("defects", "bands", "quality", "onsets", "sections"):
            own = batch[name].float()
            other = own.index_select(1, order)
            if frames is None or name == "quality":
                part = share.reshape(1, -1, *[1] * (own.ndim - 2))
                found[name] = part * own + (1 - part) * other
            else:
                found[name] = own.clone()
                found[name][..., frames[0] : frames[1]] = other[..., frames[0] : frames[1]]
        return found

    def layers(self, head: str) -> nn.Module:
        """Returns the chain of layers from mels [n, m, f] to the logits of a defect, [n, 2]; see `class_logits`.

        Raises: ValueError if the network is no chain.
        """
        if not isinstance(self.model, PlainGraderNetwork):
            raise ValueError(f"{type(self.model).__name__} is no chain of layers with bounds; train with model=grader_plain")
        return self.model.decision(self.defects.index(head))

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each segment, [s * b, h]: the mean over frames of the network's last hidden states."""
        hidden: Tensor = getattr(self.model, "hidden")(batch["mel"].flatten(0, 1))  # noqa: B009
        return hidden.mean(-1)

    # --- use ---

    def calibrated(self, logits: Tensor) -> Tensor:
        """Returns probabilities of defects, [..., d], of logits [..., d]."""
        return torch.from_numpy(sigmoid((logits / torch.tensor(self.temperatures)).numpy())).float()

    @torch.inference_mode()
    def grade(self, samples_bn: Tensor) -> dict[str, Tensor]:
        """Grades segments of equal length; `audio.grades.grade_audio` grades audio of any length and level.

        Args:
            samples_bn: at the contract's rate, `segment_frames` hops for the best grades, each row at the same level.

        Returns:
            On the CPU: `clip` [b, d], calibrated probabilities of the defects; `frames` [b, d, f], `bands` [b, z, k, f], `onsets`
            and `sections` [b, f], probabilities; `quality` [b], 1 to 10.
        """
        was_training = self.training
        self.eval()
        try:
            mel = self.contract.normalise(self.contract.log_mel(samples_bn.to(self.device)))
            found: Grades = self.model(mel)
        finally:
            self.train(was_training)
        logits = {name: value.float().cpu() for name, value in found._asdict().items()}
        frames = self.calibrated(logits["frames"].transpose(1, 2)).transpose(1, 2)
        plain = {name: logits[name].sigmoid() for name in ("bands", "onsets", "sections")}
        return {"clip": self.calibrated(logits["clip"]), "frames": frames, **plain, "quality": as_quality(logits["quality"])}

    # --- the checkpoint ---

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that come from the data, read from a checkpoint."""
        plain = {name: saved[name] for name in ("defects", "segment_frames", "temperatures", "border_thresholds")}
        return {"contract": MelContract(**saved["contract"]), **plain}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"] |= {
            "contract": self.contract.to_dict(),
            "defects": list(self.defects),
            "segment_frames": self.segment_frames,
            "temperatures": list(self.temperatures),
            "border_thresholds": dict(self.border_thresholds),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["etude"]
        check_contract(saved, self.contract)
        if tuple(saved["defects"]) != self.defects:
            raise ValueError(
                f"the checkpoint was trained on data.defects={saved['defects']}, here are {list(self.defects)}; "
                "give those of its run"
            )
        self.temperatures, self.border_thresholds = list(saved["temperatures"]), dict(saved["border_thresholds"])


def as_quality(logit: Tensor) -> Tensor:
    """Returns qualities from 1 to 10 of the network's logits."""
    return LOWEST + (HIGHEST - LOWEST) * logit.sigmoid()


def _widened(marks_bf: Tensor, width: int) -> Tensor:
    """Marks also the frames around each marked one; width: odd number of frames in all."""
    return F.max_pool1d(marks_bf[:, None], width, stride=1, padding=width // 2)[:, 0]
