"""Learns vectors of scores without labels, by objectives that compare views or predict hidden tokens.

Shapes: b rows, t tokens, n documents, d width of the encoder, v vocabulary.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task
from etude.losses.contrastive import effective_rank
from etude.models.symbolic.transformer import Transformer
from etude.objectives.masked import Masked
from etude.objectives.views import Moco, ViewObjective, follow
from etude.tasks.encoder_weights import encoder_weights
from etude.tasks.pooling import each_document, mean_of_documents
from etude.tasks.score_views import Shifts, crop
from etude.tasks.token_nll import token_features
from etude.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)
VIEWS: dict[str, Any] = {"semitones": 6, "tempi": 2, "crop": 0.5, "hide": 0.0}  # settings of views, and what null stands for
COLLAPSED = 2.0  # effective rank of the features of validation pieces below which a run is told


class Representation(Task):
    """Trains an encoder of tokens by an objective; `features` then gives a vector for each document.

    A batch holds `tokens`, `documents`, `positions`, `piece` and `feature_*`, all [b, t]. The term `objective` is in nats for
    simclr, moco, swav and masked, and a squared distance for byol.

    Args:
        model: builds the encoder; called with vocab_size and feature_sizes. Set model.causal=false.
        objective: builds a `ViewObjective` or `Masked`; called with dim.
        tokenizer: of the data; stored in the checkpoint.
        semitones, tempi: largest transposition and change of tempo (in tokens of tempo) of a view, 0 for none; None for 6 and 2.
        crop: smallest share of a document that a view shows, in (0, 1]; 1 for all; None for 0.5.
        hide: share of the tokens of a view that a mask stands for, in [0, 1); None for 0. Masked tokens take none of these four.
        optimizer, scheduler, loss_weights, seed: see `Task`.

    Raises: ValueError for a value out of range, or a network that is no Transformer.
    """

    terms: ClassVar[tuple[str, ...]] = ("objective",)
    example_axis: ClassVar[int | None] = 0

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        objective: Callable[..., nn.Module],
        tokenizer: Tokenizer,
        semitones: int | None = None,
        tempi: int | None = None,
        crop: float | None = None,
        hide: float | None = None,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=loss_weights, seed=seed)
        given = {name: value for name, value in zip(VIEWS, (semitones, tempi, crop, hide), strict=True) if value is not None}
        semitones, tempi, crop, hide = (given.get(name, usual) for name, usual in VIEWS.items())
        if semitones < 0 or tempi < 0 or not 0 < crop <= 1 or not 0 <= hide < 1:
            raise ValueError(
                f"task.semitones={semitones} and task.tempi={tempi} must be at least 0, task.crop={crop} in (0, 1], "
                f"task.hide={hide} in [0, 1)"
            )
        self.tokenizer, self.crop, self.hide = tokenizer, crop, hide
        encoder = model(vocab_size=len(tokenizer), feature_sizes=dict(tokenizer.feature_sizes))
        if not isinstance(encoder, Transformer):
            raise ValueError(f"task=representation trains a Transformer, not {type(encoder).__name__}; set model=tiny")
        self.encoder = encoder
        self.objective = objective(dim=encoder.dim)
        if given and isinstance(self.objective, Masked):
            name, value = next(iter(given.items()))
            raise ValueError(f"task.{name}={value} is of views, which objective=masked has none of; leave it out")
        self.mask = nn.Parameter(torch.randn(encoder.dim) * 0.02)  # the embedding of a hidden token
        self.shifts = None if isinstance(self.objective, Masked) else Shifts(tokenizer, semitones=semitones, tempi=tempi)
        slow = isinstance(self.objective, ViewObjective) and self.objective.uses_copy
        self.slow_encoder = copy.deepcopy(encoder).requires_grad_(False) if slow else None
        self.step_trace_names = ("keys",) if isinstance(self.objective, Moco) else ()  # type: ignore[misc]
        self._seen: list[Tensor] = []

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        return tuple(self.encoder.blocks)

    # --- training ---

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"objective": its loss}."""
        if isinstance(self.objective, Masked):
            return {"objective": self._masked(batch)[0]}
        views = [self._view(batch) for _ in range(2)]
        fast = [self._pooled(self.encoder, view, hidden) for view, hidden in views]
        slow: list[Tensor] = []
        if self.slow_encoder is not None:
            with torch.no_grad():
                slow = [self._pooled(self.slow_encoder, view, hidden) for view, hidden in views]
        assert isinstance(self.objective, ViewObjective)
        loss, self.trace = self.objective.losses(fast, slow)
        return {"objective": loss}

    def after_step(self) -> None:
        if isinstance(self.objective, ViewObjective):
            self.objective.after_step(self.step_trace)
            if self.slow_encoder is not None and self.objective.momentum is not None:
                follow(self.slow_encoder, self.encoder, self.objective.momentum)

    def _view(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Returns a random view, and which of its tokens are hidden."""
        assert self.shifts is not None
        view = crop({**batch, "tokens": self.shifts.applied(batch["tokens"], batch)}, least=self.crop)
        return view, torch.rand(view["tokens"].shape, device=view["tokens"].device) < self.hide

    def _hidden(self, encoder: nn.Module, batch: Batch, hidden_bt: Tensor | None) -> Tensor:
        assert isinstance(encoder, Transformer)
        embeddings = encoder.embed(batch["tokens"]) if "embeddings" not in batch else batch["embeddings"]
        if hidden_bt is not None:
            embeddings = torch.where(hidden_bt[..., None], self.mask.to(embeddings.dtype), embeddings)
        return encoder.hidden(
            batch["tokens"], documents_bt=batch["documents"], positions_bt=batch["positions"], features=token_features(batch),
            embeddings_btd=embeddings,
        )  # fmt: skip

    def _pooled(self, encoder: nn.Module, view: Batch, hidden_bt: Tensor | None = None) -> Tensor:
        """Returns the mean hidden state of each document over what the view shows of it, [n, d]."""
        return mean_of_documents(self._hidden(encoder, view, hidden_bt), view, view["documents"] >= 0)

    def _masked(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the mean cross-entropy of the tokens that are asked for, in nats, their number, and how many are right."""
        assert isinstance(self.objective, Masked)
        real = batch["documents"] >= 0
        found = self.objective.corrupt(batch["tokens"], real)
        states = self._hidden(self.encoder, {**batch, "tokens": found.tokens}, found.hidden)[found.asked]
        logits, true = self.encoder.unembedding(states).float(), batch["tokens"][found.asked]
        count = torch.tensor(len(true), device=self.device)
        loss = F.cross_entropy(logits, true, reduction="sum") / count.clamp(min=1)
        return loss, count, (logits.argmax(-1) == true).sum()

    # --- for techniques and evaluation ---

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each document, [n, d]: the mean of its hidden states, before any projector."""
        return self._pooled(self.encoder, batch)

    def documents(self, batch: Batch, name: str = "piece") -> Tensor:
        """Returns the batch's entry `name`, such as `piece` or `label_genre`, once for each document: [n]."""
        return each_document(batch, name)

    # --- validation ---

    def measures(self) -> tuple[Measure, ...]:
        own = (
            (Measure("hidden_accuracy", "share of tokens", higher_is_better=True),) if isinstance(self.objective, Masked) else ()
        )
        return (Measure("objective", "nats"), *own)

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns the objective on views, or hidden tokens, that are drawn alike in every validation; and keeps the features."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            if isinstance(self.objective, Masked):
                loss, count, right = self._masked(batch)
                found = {"objective": Measured(loss, count), "hidden_accuracy": Measured(right / count.clamp(min=1), count)}
            else:
                count = torch.tensor(len(self.documents(batch)), device=self.device)
                found = {"objective": Measured(self.losses(batch)["objective"], count)}
        self._features = self.features(batch).float().cpu()
        return found

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self._seen.append(self._features)

    def on_validation_epoch_end(self) -> None:
        """Logs how many dimensions the features use; few mean that the encoder has collapsed, which is told."""
        if not self._seen or sum(map(len, self._seen)) < 2:
            return
        features = torch.cat(self._seen)
        self._seen = []
        rank = float(effective_rank(features))
        self.log("val/rank", rank, sync_dist=True)
        self.log("val/spread", float(F.normalize(features, dim=1).std(0).mean()), sync_dist=True)
        if rank < COLLAPSED:
            log.warning(
                "the features of the validation pieces use %.1f of %d dimensions: the encoder has collapsed; try a lower rate, "
                "objective=simclr, or a larger batch", rank, self.encoder.dim,
            )  # fmt: skip

    # --- the checkpoint ---

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        """Returns weights for a new run: those of another representation, or of the encoder of another run."""
        weights = dict(saved["state_dict"])
        if weights.keys() == self.state_dict().keys():
            return super().weights_from(saved, path)
        own = dict(self.state_dict())
        for prefix in ("encoder.", *(["slow_encoder."] if self.slow_encoder is not None else [])):
            own |= encoder_weights(saved, own=own, prefix=prefix, tokenizer=self.tokenizer, path=path)
        return own

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that come from the data, read from a checkpoint: the tokenizer."""
        return {"tokenizer": Tokenizer.from_state(saved["tokenizer"])}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"] |= {
            "tokenizer": self.tokenizer.state_dict(), "tokenizer_fingerprint": self.tokenizer.fingerprint,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint["etude"]["tokenizer_fingerprint"] != self.tokenizer.fingerprint:
            raise ValueError("the checkpoint was trained with another tokenizer; give the options of its run")
