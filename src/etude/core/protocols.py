"""Protocols: abilities that a task, data module, network or optimizer may have.

Code that needs an ability checks for it with `isinstance`, not with `hasattr`. Python compares only the names of the members, so
a class that defines these names must also give them the meaning that is described here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from etude.core.batch import Batch

Rule = Callable[[np.ndarray, int], np.ndarray]


# --- data ---


@runtime_checkable
class HasContents(Protocol):
    """A data module that can say what it has read, so that two runs can be compared."""

    def contents(self) -> list[tuple[str, str, str]]:
        """Returns (split, file, SHA-256) for each file that is used, then ("all", what was made of them, SHA-256 of that)."""
        ...


@runtime_checkable
class KnowsSize(Protocol):
    """A data module that knows how many pieces there are to train on."""

    @property
    def num_training_pieces(self) -> int:
        """The number of training pieces."""
        ...


# --- tasks ---


@runtime_checkable
class TakesInputs(Protocol):
    """A task whose network has continuous inputs (mels, embeddings), for attacks, MixUp and saliency maps."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the network's inputs for a batch, by name; the losses are differentiable with respect to them."""
        ...

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """Returns the batch with other inputs; its targets stay the same where the task keeps them apart from the inputs."""
        ...


@runtime_checkable
class HasFeatures(Protocol):
    """A task that computes feature vectors of music, for probes and distances."""

    def features(self, batch: Batch) -> Tensor:
        """Returns features [rows, d]; the task documents what a row describes."""
        ...


@runtime_checkable
class Tokenized(Protocol):
    """A task on tokens of scores."""

    tokenizer: Any


@runtime_checkable
class PredictsTokens(Tokenized, Protocol):
    """A task that predicts the next token and puts `logits` [b, t, v] and `token_nll` [b, t] into its trace.

    On mixtures of pieces (technique mixup) the trace also holds `token_weight` [b, t]: with which each token's own nll counts in
    the loss; without it, all counted tokens weigh the same. What `recompute_trace` returns then contains the loss, `nll`, too.
    """

    traces_tokens: bool  # an attribute of the task; one whose losses are of other things than its batch's tokens has none

    def logits(self, batch: Batch) -> Tensor:
        """Returns the logits [b, t, v] of the next token."""
        ...


@runtime_checkable
class Composes(Protocol):
    """A task that samples scores. It has methods only, so that its class can be checked, too."""

    def sample(self, *, num_samples: int = 1, **options: Any) -> Sequence[Any]:
        """Returns sampled scores; the options are those of `etude.tasks.language_model.LanguageModel.sample`."""
        ...

    def check_request(self, labels: Mapping[str, Any], *, prompt: Any = None, num_bars: int | None = None) -> list[str]:
        """Returns what of the labels and the prompt is met only roughly, one line each. Raises ValueError for the impossible."""
        ...


@runtime_checkable
class Infills(Composes, Protocol):
    """A task that rewrites passages of scores. It has methods only, so that its class can be checked, too."""

    def infill(self, *, prompt: Any, passage: Any, num_samples: int = 1, **options: Any) -> Sequence[Any]:
        """Returns copies of a score with other notes in a passage; the options are those of `LanguageModel.infill`."""
        ...

    def check_infill(self, prompt: Any, passage: Any, labels: Mapping[str, Any] | None = None) -> list[str]:
        """What the task does not see of the score, one line each. Raises ValueError if the passage can't be filled in so."""
        ...


@runtime_checkable
class Blends(Composes, Protocol):
    """A task with latents of bars, from which pieces are written. It has methods only, so that its class can be checked, too."""

    def interpolate(self, first: Any, last: Any, *, steps: int, seed: int = 0, **options: Any) -> Sequence[Any]:
        """Returns `steps` pieces from one score to another; see `etude.tasks.vae.Vae.interpolate`."""
        ...

    def check_interpolation(self, first: Any, last: Any, *, steps: int) -> None:
        """Raises ValueError if there can be no pieces between two scores."""
        ...

    def slide(self, score: Any, changes: Mapping[str, float], *, num_samples: int = 1, **options: Any) -> Sequence[Any]:
        """Returns pieces like a score, with attributes changed; see `etude.tasks.vae.Vae.slide`."""
        ...

    def check_attribute(self, attribute: str) -> None:
        """Raises ValueError for an attribute that the task can't change."""
        ...


@runtime_checkable
class ChoosesDecoding(Composes, Protocol):
    """A task that can draw samples in several ways. It has methods only, so that its class can be checked, too."""

    def check_decoding(
        self, *, num_samples: int, labels: Mapping[str, Any], prompted: bool, streamed: bool = False, **method: Any
    ) -> None:
        """Raises ValueError if samples can't be drawn by a method, whose options `sample` takes, too."""
        ...


@runtime_checkable
class RatesScores(Protocol):
    """A task that can tell how likely scores are. It has methods only, so that its class can be checked, too."""

    def nats_per_token(
        self, scores: Sequence[Any], *, labels: Mapping[str, Any] | None = None, num_bars: int | None = None
    ) -> list[float]:
        """Returns the negative log-likelihood per token of each score, given labels; NaN for one that has no tokens."""
        ...


@runtime_checkable
class Samples(Composes, Tokenized, Protocol):
    """A task that samples scores token by token."""


@runtime_checkable
class HasMelContract(Protocol):
    """A task on mel spectrograms that are all computed with one mel contract."""

    contract: Any


@runtime_checkable
class Styled(HasMelContract, Protocol):
    """A task on mels of several styles."""

    styles: tuple[str, ...]


@runtime_checkable
class Restyles(Protocol):
    """A task that translates mels to another style. It has methods only, so that its class can be checked, too."""

    def translate(self, log_mel_bmf: Tensor, *, source: str, target: str, reference: Tensor | None = None) -> Tensor:
        """Returns natural-log mels [b, m, f] in the style `target`; reference: a clip of that style, for some models."""
        ...


@runtime_checkable
class Translates(Restyles, Styled, Protocol):
    """A task that translates mels from one named style to another."""


@runtime_checkable
class HasDevice(Protocol):
    """An object that has a device on which it computes."""

    device: torch.device


@runtime_checkable
class ChecksOptions(Protocol):
    """A function that writes samples at the end of a run and can check its options before training starts."""

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        """Raises: ValueError if the given options can't be used on this machine."""
        ...


@runtime_checkable
class ChecksRequests(Protocol):
    """What writes samples at the end of a run, and can tell before training whether the model may be asked for them."""

    @staticmethod
    def check_requests(options: Mapping[str, Any], task: Any) -> None:
        """Raises ValueError where what its options ask for, as far as they are given, can't be asked of the task's model."""
        ...


@runtime_checkable
class FewSamples(Protocol):
    """What writes samples at the end of a run, and says how many are enough while the model trains."""

    few: Mapping[str, Any]  # option -> its largest value then


# --- data ---


@runtime_checkable
class TellsChanges(Protocol):
    """Data that is changed on its way into tokens, and tells how."""

    def changed_pieces(self) -> list[tuple[str, dict[str, int]]]:
        """Training pieces, and what changes in each: words -> how many notes it concerns."""
        ...

    def told_changes(self, found: list[tuple[str, dict[str, int]]]) -> str:
        """The same in one line; empty where nothing changes."""
        ...


@runtime_checkable
class TellsLabels(Protocol):
    """Data whose training pieces have labels in front, which a model can be asked for later."""

    def trained_labels(self) -> Mapping[str, Sequence[str]]:
        """Each label with the values that occur in training."""
        ...


@runtime_checkable
class KnowsClasses(Protocol):
    """Data whose pieces have labels that a task learns."""

    def classes(self, split: str) -> Mapping[str, np.ndarray]:
        """Returns the class of each piece of a split for each column, int64 [n]; -1 if it has none."""
        ...


@runtime_checkable
class AdmitsPieces(Protocol):
    """Data of which a technique may choose the pieces to train on."""

    def admit(self, name: str, rule: Rule) -> None:
        """Registers a rule that gives pieces their probability to be admitted, from the next `train_dataloader` on.

        name: of the technique. rule: called with (rows of the table of pieces, number of the batch).
        """
        ...


@runtime_checkable
class PieceTable(AdmitsPieces, Protocol):
    """Data with a table of all training pieces, from which a technique may choose."""

    lookahead: int  # most batches that loader workers may have drawn ahead

    def pieces(self) -> dict[str, np.ndarray]:
        """Returns the columns of the table of training pieces, by name; one row for each piece."""
        ...


@runtime_checkable
class Varies(Protocol):
    """Data with augmentation ranges that a technique may change."""

    def vary(self, **ranges: Any) -> None:
        """Changes the ranges, from the next `train_dataloader` on."""
        ...


@runtime_checkable
class TokenViews(Protocol):
    """Data that gives access to its tokenized pieces."""

    def view(self, split: str) -> Any:
        """Returns the pieces of a split ("train", "val" or "test")."""
        ...


@runtime_checkable
class PacksTokens(TokenViews, Protocol):
    """Data whose tokenized pieces are packed into rows."""

    max_len: int  # tokens of a training row


@runtime_checkable
class HoldsScores(TokenViews, Protocol):
    """Data of scores that can be looked at piece by piece."""

    def manifest(self, split: str | None = None) -> Any:
        """Returns the table of the pieces of a split: name, file, sha256, genre, ..."""
        ...

    def score(self, split: str, index: int) -> Any:
        """Returns the score of a row of the split's manifest."""
        ...


# --- networks ---


@runtime_checkable
class HasAttentionMaps(Protocol):
    """An attention layer that can return its attention weights."""

    def maps(self, x_btd: Tensor, rotary: tuple[Tensor, Tensor], **options: Any) -> list[Tensor]:
        """Returns the attention weights [h, l, l] of each document of length l; h heads."""
        ...


# --- optimizers ---


@runtime_checkable
class WrapsOptimizer(Protocol):
    """An optimizer around another one, such as Lookahead."""

    optimizer: Any


@runtime_checkable
class NeedsTask(Protocol):
    """An optimizer that needs access to the task that it trains."""

    def attach(self, task: Any) -> None:
        """Is called once, before the first step."""
        ...


@runtime_checkable
class ObservesBatches(Protocol):
    """An optimizer that needs more of each batch than the gradients."""

    def observe(self, task: Any, batch: Batch) -> None:
        """Is called for every batch, between the forward and the backward pass."""
        ...
