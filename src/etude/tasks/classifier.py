"""Tells the classes of scores or audio, such as genre and metre: an encoder and a head for each column of labels.

Shapes: b rows, t tokens, d width, n documents (of audio: segments), c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.audio.mel import MelContract
from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task
from etude.losses.focal import focal_loss_of_classes
from etude.metrics.sets import classes as scores
from etude.models.shared_encoders import SharedEncoders
from etude.tasks.class_inputs import MelInputs, TokenInputs, class_inputs
from etude.tokens.tokenizer import Tokenizer

APART = "sharing"  # the term of the distance of networks
NO_LABEL = -1
SHARE = "mixed_share"  # entry of a batch: the share of each example that is its own, if others are mixed in


class Classifier(Task):
    """Trains an encoder of tokens or mels with one head for each column of labels (multi-task learning).

    A batch is as `TokenInputs` or `MelInputs` say, with `label_COLUMN`; -1 is no label. A document is classified by the mean of
    its hidden states; a piece that is cut into several, or audio in segments, by the mean of their logits. The loss has a term
    for each head, its mean cross-entropy in nats over the documents that have its label, and 0 where no document of the batch has
    one; with sharing=soft also `sharing`, the distance of the networks.

    Args:
        model: builds the network; called with vocab_size and feature_sizes, or with n_mels. Set model.causal=false, so that
            each token sees its whole piece.
        tokenizer, contract: of the data, which have one of them; stored in the checkpoint.
        labels: column -> names of its classes, from data.targets; stored in the checkpoint.
        heads: those columns in groups that share nothing, such as [[genre, composer], [key, metre]]; None, or a plain list, for
            one group.
        hide_metre: see `TokenInputs`.
        sharing: hard, soft, cross_stitch or attention, see `SharedEncoders`.
        balance_classes: weigh each document by the inverse frequency of its class in the training data that was seen.
        gamma: exponent of the focal loss, at least 0; 0 is the cross-entropy.
        label_smoothing: share of the probability that is spread over all classes, in [0, 1).
        head_dropout: of the inputs of the heads, in [0, 1).
        temperatures: column -> what its logits are divided by, fitted at the end of every validation; None for 1.
        optimizer, scheduler, loss_weights, seed: see `Task`.

    Raises: ValueError for a value out of range, data without labels, heads that are not the labels, or a column with one class
        only.
    """

    fully_labelled: ClassVar[bool] = False
    step_trace_names: ClassVar[tuple[str, ...]] = ("counts",)
    seen: Tensor

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        tokenizer: Tokenizer | None = None,
        contract: MelContract | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        heads: Sequence[str] | Sequence[Sequence[str]] | None = None,
        hide_metre: bool | None = None,
        sharing: str = "hard",
        balance_classes: bool = False,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        head_dropout: float = 0.1,
        temperatures: Mapping[str, float] | None = None,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=loss_weights, seed=seed)
        self.labels = _checked_labels(labels)
        for name, value, high in (("label_smoothing", label_smoothing, 1.0), ("head_dropout", head_dropout, 1.0)):
            if not 0 <= value < high:
                raise ValueError(f"task.{name}={value} must lie in [0, {high:g})")
        if gamma < 0:
            raise ValueError(f"task.gamma={gamma} must be at least 0; 0 is the cross-entropy")
        self.balance_classes, self.gamma = balance_classes, gamma
        self.label_smoothing, self.head_dropout = label_smoothing, head_dropout
        self.temperatures = dict(temperatures or dict.fromkeys(self.labels, 1.0))
        self.reads = class_inputs(tokenizer, contract, hide_metre=hide_metre, heads=list(self.labels))
        if isinstance(self.reads, TokenInputs):
            self.tokenizer = self.reads.tokenizer
        else:
            self.contract = self.reads.contract
            self.min_styles = 1  # type: ignore[misc]
        self.example_axis = 0 if isinstance(self.reads, TokenInputs) else 1  # type: ignore[misc]
        options = self.reads.network_options()
        self.model = SharedEncoders(lambda: model(**options), _groups(heads, list(self.labels)), sharing=sharing)
        self.heads = nn.ModuleDict(
            {f"head_{name}": nn.Linear(self.model.dim, len(classes)) for name, classes in self.labels.items()}
        )
        self.terms = (*self.labels, *([APART] if sharing == "soft" else []))  # type: ignore[misc]
        most = max(map(len, self.labels.values()))
        self.register_buffer("seen", torch.zeros(len(self.labels), most))  # documents of each class so far, by head
        self._held_out: list[dict[str, np.ndarray]] = []

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        return tuple(block for network in self.model.networks for block in network.blocks)  # type: ignore[union-attr]

    @property
    def head_names(self) -> Sequence[str]:
        return tuple(self.labels)

    # --- training ---

    def hidden(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean hidden state of each document for each head, [n, d]."""
        inputs, where = self.reads.arguments(batch)
        once: dict[int, Tensor] = {}  # heads that share a network share its mean
        return {name: once.setdefault(id(x), self.reads.pooled(x, batch)) for name, x in self.model(*inputs, **where).items()}

    def class_logits(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the logits of each head for each document, [n, c], in float32."""
        hidden = self.hidden(batch)
        return {
            name: self.heads[f"head_{name}"](F.dropout(hidden[name], self.head_dropout, self.training)).float()
            for name in self.labels
        }

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean loss of each head, in nats; the class says which terms there are."""
        found, logits = dict[str, Tensor](), self.class_logits(batch)
        counts = torch.zeros_like(self.seen)
        for number, (name, classes) in enumerate(self.labels.items()):
            true = self.reads.each(batch, f"label_{name}")
            known = true != NO_LABEL
            counts[number, : len(classes)] = torch.bincount(true[known], minlength=len(classes))
            weights = None
            if self.balance_classes:
                before = self.seen[number, : len(classes)] + 1  # as if each class had been seen once before
                weights = before.mean() / before
            shares = self.documents(batch, SHARE) if SHARE in batch else None
            found[name] = self._mean_loss(logits[name], true, weights, shares)
            if shares is not None:  # examples are mixed with others
                other = self.documents(batch, f"mixed_label_{name}")
                found[name] = found[name] + self._mean_loss(logits[name], other, weights, 1 - shares)
        if self.model.sharing == "soft":
            found[APART] = self.model.distance()
        self.trace = {"counts": counts} | {f"logits/{name}": value for name, value in logits.items()}
        return found

    def _mean_loss(self, logits: Tensor, true: Tensor, weights: Tensor | None, shares: Tensor | None) -> Tensor:
        known = true != NO_LABEL
        if not known.any():
            return logits.sum() * 0.0
        return focal_loss_of_classes(
            logits[known], true[known], gamma=self.gamma, weights=weights, label_smoothing=self.label_smoothing,
            shares=None if shares is None else shares[known],
        )  # fmt: skip

    def mixed_targets(self, batch: Batch, order: Tensor, share: Tensor, frames: tuple[int, int] | None = None) -> Batch:
        """Returns the labels of the examples that are mixed in, and the share of each example's own; see `MixesTargets`."""
        axis = self.example_axis or 0
        labels = {f"mixed_label_{name}": batch[f"label_{name}"].index_select(axis, order) for name in self.labels}
        first = batch[f"label_{next(iter(self.labels))}"]
        shape = [-1 if place == axis else 1 for place in range(first.ndim)]
        return {**labels, SHARE: share.reshape(shape).expand_as(first)}

    def after_step(self) -> None:
        self.seen += torch.stack(self.step_trace["counts"]).sum(0)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"mel": the normalised mels [s, b, m, f]}, or {"embeddings": the tokens' embeddings [b, t, d]}.

        Raises: ValueError if several networks embed tokens.
        """
        if isinstance(self.reads, MelInputs):
            return {"mel": batch["mel"]}
        if len(self.model.networks) > 1:
            raise ValueError(
                "several networks embed the tokens, each by itself (sharing=soft or cross_stitch, or groups of heads); set "
                "sharing=hard and heads=[...] without groups"
            )
        embed: Any = self.model.networks[0].embed
        return {"embeddings": batch["embeddings"] if "embeddings" in batch else embed(self.reads.shown(batch["tokens"]))}

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """Returns the batch with these mels, or with these embeddings instead of those of its tokens."""
        return {**batch, **inputs}

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each document, [n, d]: the mean of its hidden states, of all heads' networks side by side."""
        found = {id(x): x for x in self.hidden(batch).values()}
        return torch.cat(list(found.values()), dim=-1)

    def documents(self, batch: Batch, name: str = "piece") -> Tensor:
        """Returns the batch's entry `name`, such as `piece` or `label_genre`, once for each document: [n]."""
        return self.reads.each(batch, name)

    # --- validation ---

    def measures(self) -> tuple[Measure, ...]:
        each = [measure for name in self.labels for measure in (
            Measure(f"{name}_nll", "nats"), Measure(f"{name}_accuracy", "share of documents", higher_is_better=True),
        )]  # fmt: skip
        return (Measure("nll", "nats"), *each)

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns cross-entropy and accuracy of each head over the documents with its label, and the mean cross-entropy."""
        logits = self.class_logits(batch)
        found, nlls = dict[str, Measured](), list[tuple[Tensor, Tensor]]()
        self._measured = {"piece": self.reads.each(batch, "piece").cpu().numpy()}
        for name, value in logits.items():
            true = self.reads.each(batch, f"label_{name}")
            known = true != NO_LABEL
            count = known.sum()
            nll = F.cross_entropy(value[known], true[known], reduction="none")
            right = (value[known].argmax(-1) == true[known]).float()
            nlls.append((nll.sum(), count))
            for kind, values in (("nll", nll), ("accuracy", right)):
                found[f"{name}_{kind}"] = Measured(values.sum() / count.clamp(min=1), count)
            self._measured |= {f"logits/{name}": value.float().cpu().numpy(), f"label/{name}": true.cpu().numpy()}
        count = torch.stack([c for _, c in nlls]).sum()
        return {"nll": Measured(torch.stack([s for s, _ in nlls]).sum() / count.clamp(min=1), count), **found}

    def on_validation_epoch_start(self) -> None:
        self._held_out = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self._held_out.append(self._measured)

    def on_validation_epoch_end(self) -> None:
        """Fits the temperatures on the validation pieces, and logs the balanced accuracy of each head over whole pieces."""
        if not self._held_out:
            return
        seen = {name: np.concatenate([each[name] for each in self._held_out]) for name in self._held_out[0]}
        self._held_out = []
        for name in self.labels:
            logits, true = whole_pieces(seen["piece"], seen[f"logits/{name}"], seen[f"label/{name}"])
            if len(true):
                self.temperatures[name] = scores.fit_temperature(logits, true)
                balanced = scores.balanced_accuracy(logits.argmax(-1), true)
                self.log(f"val/{name}_balanced_accuracy", balanced, sync_dist=True)

    # --- the checkpoint ---

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        """Returns weights for a new run: those of another classifier of the same heads, or of the encoder of another run."""
        own = dict(self.state_dict())
        if dict(saved["state_dict"]).keys() == own.keys() and saved["etude"].get("labels") == {
            n: list(c) for n, c in self.labels.items()
        }:
            return super().weights_from(saved, path)
        for number in range(len(self.model.networks)):
            prefix = f"model.networks.{number}."
            own |= self.reads.encoder_weights(saved, own=own, prefix=prefix, path=path)
        return own

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that come from the data, read from a checkpoint."""
        of_mels = "contract" in saved
        read = MelContract(**saved["contract"]) if of_mels else Tokenizer.from_state(saved["tokenizer"])
        return {"contract" if of_mels else "tokenizer": read, "labels": saved["labels"], "temperatures": saved["temperatures"]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"] |= self.reads.state() | {
            "labels": {name: list(classes) for name, classes in self.labels.items()},
            "temperatures": dict(self.temperatures),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["etude"]
        self.reads.check(saved)
        found = {name: list(classes) for name, classes in self.labels.items()}
        if saved["labels"] != found:
            raise ValueError(
                f"the checkpoint was trained on the labels {saved['labels']}, here are {found}; give those of its run"
            )
        self.temperatures = dict(saved["temperatures"])


def _checked_labels(labels: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    if not labels:
        raise ValueError(
            "task=classifier learns columns of labels, and heads names none; set heads=[genre], say, of audio heads=[style], "
            "or data=dances"
        )
    for name, classes in labels.items():
        if len(classes) < 2:
            raise ValueError(
                f"heads: all training pieces have the same {name}, {classes[0]}; leave it out, or give data of several"
            )
    return {name: tuple(classes) for name, classes in labels.items()}


def _groups(heads: Sequence[Any] | None, labels: Sequence[str]) -> list[list[str]]:
    """Returns the names of the heads in groups. Raises: ValueError if they are not the labels, each once."""
    given = list(heads or labels)
    groups = [list(group) for group in given] if not isinstance(given[0], str) else [given]
    if sorted(name for group in groups for name in group) != sorted(labels):
        raise ValueError(f"heads={groups}: the data give labels of {', '.join(labels)}; name each of them in one group")
    return groups


def whole_pieces(piece_n: np.ndarray, logits_nc: np.ndarray, true_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean logits and the class of each piece that has one; a long piece comes in several documents."""
    known = true_n != NO_LABEL
    pieces, owner = np.unique(piece_n[known], return_inverse=True)
    sums = np.zeros((len(pieces), logits_nc.shape[1]))
    np.add.at(sums, owner, logits_nc[known])
    true = np.zeros(len(pieces), np.int64)
    true[owner] = true_n[known]
    return sums / np.bincount(owner, minlength=len(pieces))[:, None].clip(1), true
