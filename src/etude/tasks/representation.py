"""Learns vectors of scores or of audio without labels, by objectives that compare views or predict what is hidden.

Shapes: b rows, t tokens, n documents (of audio: segments), d width of the encoder, p patches, q patches that are shown.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.audio.mel import MelContract
from etude.core.batch import Batch
from etude.core.factories import kind_of
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task
from etude.losses.contrastive import effective_rank
from etude.models.mel.patches import PatchEncoder
from etude.models.symbolic.transformer import Transformer
from etude.objectives.mae import Mae
from etude.objectives.masked import Masked
from etude.objectives.views import Moco, Swav, ViewObjective, follow
from etude.tasks.representation_inputs import MelInputs, ScoreInputs
from etude.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)
COLLAPSED_RANK = 2.0  # effective rank of the features of validation pieces below which a run is told
COLLAPSED_SPREAD = 1e-3  # their mean deviation after normalisation, likewise


class Representation(Task):
    """Trains an encoder of tokens or mels by an objective; `features` then gives a vector for each document or segment.

    A batch is as `ScoreInputs` or `MelInputs` say. The term `objective` is in nats for simclr, moco, swav and masked, a squared
    distance for byol, and a squared error of normalised patches for mae.

    Args:
        model: builds the encoder; called with vocab_size and feature_sizes (set model.causal=false), or with n_mels.
        objective: builds a `ViewObjective`, `Masked` or `Mae`; called with dim, the last one also with the sizes of patches.
        tokenizer, contract: of the data, which have one of them; stored in the checkpoint.
        semitones: largest transposition of a view, up and down, 0 for none; None for 6 (scores) or 3 (mels).
        tempi: largest change of the tempo of a view of scores, in tokens of tempo; None for 2.
        note_values: whether a view of scores may have halved or doubled note values; None for True.
        voices: probability with which a view of scores leaves each of several voices out; None for 0.2.
        hide: share of the tokens of a view of scores that a mask stands for, in [0, 0.95]; None for 0.
        crop: [smallest, largest] share of a piece's bars, or of a segment's frames, that a view shows, within [0.05, 1]; None for
            [0.15, 0.4] of scores and [0.5, 1] of mels.
        stretch, noise, mix: of views of mels, see `MelViews`; None for 0.2, 0.1 and 0.2.
        optimizer, scheduler, loss_weights, seed: see `Task`.

    Objectives that predict what is hidden have no views and take none of these nine.

    Raises: ValueError for a value out of range, and for a network or an objective that is not for these data.
    """

    terms = ("objective",)
    mask: nn.Parameter | None

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        objective: Callable[..., nn.Module],
        tokenizer: Tokenizer | None = None,
        contract: MelContract | None = None,
        semitones: int | None = None,
        tempi: int | None = None,
        note_values: bool | None = None,
        voices: float | None = None,
        hide: float | None = None,
        crop: Sequence[float] | None = None,
        stretch: float | None = None,
        noise: float | None = None,
        mix: float | None = None,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=loss_weights, seed=seed)
        settings = {
            "semitones": semitones, "tempi": tempi, "note_values": note_values, "voices": voices, "hide": hide, "crop": crop,
            "stretch": stretch, "noise": noise, "mix": mix,
        }  # fmt: skip
        given = {name: value for name, value in settings.items() if value is not None}
        hides = kind_of(objective) in (Masked, Mae)
        if given and hides:
            name, value = next(iter(given.items()))
            raise ValueError(f"task.{name}={value} is of views, which objective=masked and mae have none of; leave it out")
        self.reads: ScoreInputs | MelInputs
        if tokenizer is not None:
            self.tokenizer, self.reads = tokenizer, ScoreInputs(tokenizer, given, with_views=not hides)
        elif contract is not None:
            self.contract, self.reads, self.min_styles = contract, MelInputs(contract, given, with_views=not hides), 1  # type: ignore[misc]
        else:
            raise ValueError("a representation reads tokens of scores or mels of audio; choose data of one of them")
        self.example_axis = self.reads.example_axis  # type: ignore[misc]
        self.encoder = self.reads.network(model)
        self.objective = self.reads.objective(objective, self.encoder)
        self.dim: int = self.encoder.dim  # type: ignore[assignment]
        hidden = nn.Parameter(torch.randn(self.dim) * 0.02) if tokenizer is not None else None
        self.register_parameter("mask", hidden)  # the embedding of a hidden token
        slow = isinstance(self.objective, ViewObjective) and self.objective.uses_copy
        self.slow_encoder = copy.deepcopy(self.encoder).requires_grad_(False) if slow else None
        if isinstance(self.objective, (Moco, Swav)):
            self.step_trace_names = ("keys",)  # type: ignore[misc]
        self._seen: list[Tensor] = []

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        blocks: Any = self.encoder.blocks
        return tuple(blocks)

    # --- training ---

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"objective": its loss}."""
        return {"objective": self._objective(batch)[0]}

    def _objective(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the loss, over how many examples it is a mean, and the other measures of the objective."""
        if isinstance(self.objective, Masked):
            return self._masked(batch)
        count = torch.tensor(len(self.documents(batch)) if "piece" in batch else batch["mel"].shape[:2].numel())
        if isinstance(self.objective, Mae):
            return self._autoencoded(batch), count.to(self.device), {}
        assert isinstance(self.objective, ViewObjective)
        shares = [self.reads.crop] * 2 + [self.objective.small_crop] * self.objective.small_views
        views = [self.reads.view(batch, *share) for share in shares]
        fast = [self.reads.pooled(self.encoder, view, self.mask) for view in views]
        slow: list[Tensor] = []
        if self.slow_encoder is not None:
            with torch.no_grad():
                slow = [self.reads.pooled(self.slow_encoder, view, self.mask) for view in views[:2]]
        loss, self.trace = self.objective.losses(fast, slow)
        return loss, count.to(self.device), {}

    def after_step(self) -> None:
        if isinstance(self.objective, ViewObjective):
            self.objective.after_step(self.step_trace)
            if self.slow_encoder is not None and self.objective.momentum is not None:
                follow(self.slow_encoder, self.encoder, self.objective.momentum)

    def _masked(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the mean cross-entropy of the tokens that are asked for, in nats, their number, and the share that is right."""
        assert isinstance(self.objective, Masked) and isinstance(self.reads, ScoreInputs)
        assert isinstance(self.encoder, Transformer)
        found = self.objective.corrupt(batch["tokens"], batch["documents"] >= 0)
        corrupted = {**batch, "tokens": found.tokens, "hidden": found.hidden}
        states = self.reads.states(self.encoder, corrupted, self.mask)[found.asked]
        logits, true = self.encoder.unembedding(states).float(), batch["tokens"][found.asked]
        count = torch.tensor(len(true), device=self.device)
        loss = F.cross_entropy(logits, true, reduction="sum") / count.clamp(min=1)
        return loss, count, {"hidden_accuracy": (logits.argmax(-1) == true).sum() / count.clamp(min=1)}

    def _autoencoded(self, batch: Batch) -> Tensor:
        """Returns the mean squared error of the hidden patches."""
        assert isinstance(self.objective, Mae) and isinstance(self.encoder, PatchEncoder) and isinstance(self.reads, MelInputs)
        patches = self.reads.patches(self.encoder, batch)
        shown = self.objective.shown(len(patches), patches.shape[1], patches.device)
        states = self.encoder.of_patches(patches, shown)
        return self.objective.loss(self.objective.predicted(states, shown, patches.shape[1]), patches, shown)

    # --- for techniques and evaluation ---

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each document or segment, [n, 2 d]: mean and maximum of its hidden states, before any projector."""
        return self.reads.pooled(self.encoder, batch, self.mask)

    def documents(self, batch: Batch, name: str = "piece") -> Tensor:
        """Returns the batch's entry `name`, such as `piece` or `label_genre`, once for each document or segment: [n]."""
        return self.reads.each(batch, name)

    # --- validation ---

    def measures(self) -> tuple[Measure, ...]:
        own = (
            (Measure("hidden_accuracy", "share of tokens", higher_is_better=True),) if isinstance(self.objective, Masked) else ()
        )
        return (Measure("objective", "squared error" if isinstance(self.objective, Mae) else "nats"), *own)

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns the objective on views, or hidden parts, that are drawn alike in every validation; and keeps the features."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            loss, count, more = self._objective(batch)
        self._features = self.features(batch).float().cpu()
        return {name: Measured(value, count) for name, value in {"objective": loss, **more}.items()}

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self._seen.append(self._features)

    def on_validation_epoch_end(self) -> None:
        """Logs how many dimensions the features use, and their deviation; of both, little means a collapse, which is told."""
        if not self._seen or sum(map(len, self._seen)) < 2:
            return
        features = torch.cat(self._seen)
        self._seen = []
        rank, spread = float(effective_rank(features)), float(F.normalize(features, dim=1).std(0).norm())
        self.log("val/rank", rank, sync_dist=True)
        self.log("val/spread", spread, sync_dist=True)
        if rank < COLLAPSED_RANK or spread < COLLAPSED_SPREAD:
            log.warning(
                "the features of the validation pieces use %.1f of %d dimensions and deviate by %.2g of their length: the "
                "encoder has collapsed; try a lower rate, objective=simclr, or a larger batch", rank, features.shape[1], spread,
            )  # fmt: skip

    # --- the checkpoint ---

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        """Returns weights for a new run: those of another representation, or of the encoder of another run."""
        weights = dict(saved["state_dict"])
        if weights.keys() == self.state_dict().keys():
            return super().weights_from(saved, path)
        own = dict(self.state_dict())
        for prefix in ("encoder.", *(["slow_encoder."] if self.slow_encoder is not None else [])):
            own |= self.reads.weights(saved, own=own, prefix=prefix, path=path)
        return own

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that come from the data, read from a checkpoint: the tokenizer, or the contract."""
        if "contract" in saved:
            return {"contract": MelContract(**saved["contract"])}
        return {"tokenizer": Tokenizer.from_state(saved["tokenizer"])}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"] |= self.reads.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.reads.check(checkpoint["etude"])
