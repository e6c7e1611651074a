"""What tasks, data and optimizers may offer one another: asked for with `isinstance`, never by looking for a name.

A protocol here is checked at run time by the names of its members, so each is a promise of what they mean, too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from etude.core.batch import Batch

Rule = Callable[[np.ndarray, int], np.ndarray]


# --- tasks ---


@runtime_checkable
class TakesInputs(Protocol):
    """A task whose network reads continuous inputs, which an attack, a mixture or a saliency map may change."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the network reads of a batch, differentiable."""
        ...

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """The batch with other inputs; what the output is compared with stays where the task can tell the two apart."""
        ...


@runtime_checkable
class HasFeatures(Protocol):
    """A task that describes music by vectors, for probes and distances."""

    def features(self, batch: Batch) -> Tensor:
        """[rows, d]; the task says what a row stands for."""
        ...


@runtime_checkable
class Tokenized(Protocol):
    """A task on tokens of scores."""

    tokenizer: Any


@runtime_checkable
class PredictsTokens(Tokenized, Protocol):
    """A task that predicts the next token, and traces `logits` and `token_nll`."""

    def logits(self, batch: Batch) -> Tensor:
        """[b, t, v]"""
        ...


@runtime_checkable
class Samples(PredictsTokens, Protocol):
    """A task that composes scores."""

    def sample(self, *, num_samples: int = 1, **options: Any) -> Sequence[Any]:
        """Scores; the options are those of `etude.tasks.language_model.LanguageModel.sample`."""
        ...


@runtime_checkable
class OnMels(Protocol):
    """A task on mels of one contract."""

    contract: Any


@runtime_checkable
class Styled(OnMels, Protocol):
    """A task on mels of several styles."""

    styles: tuple[str, ...]


@runtime_checkable
class Translates(Styled, Protocol):
    """A task that restyles mels."""

    def translate(self, log_mel_bmf: Tensor, *, source: str, target: str, reference: Tensor | None = None) -> Tensor:
        """Natural-log mels [b, m, f] in another style."""
        ...


@runtime_checkable
class FollowsClips(Translates, Protocol):
    """A task that may be told a style by a clip of it."""

    encoder: Any  # None where it knows styles by name alone


@runtime_checkable
class OnDevice(Protocol):
    """What computes on a device of its own choice."""

    device: torch.device


@runtime_checkable
class FillsFrames(Protocol):
    """A task that completes mels of which frames are hidden, told by `visible` in its batches."""

    takes_visible: bool


@runtime_checkable
class ChecksAhead(Protocol):
    """What writes samples at the end of a run, and can tell before training whether it will be able to."""

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        """Raises ValueError where its options, as far as they are given, can't be met on this machine."""
        ...


# --- data ---


@runtime_checkable
class Selective(Protocol):
    """Data from which a technique may choose what training draws."""

    def admit(self, name: str, rule: Rule) -> None:
        """Lets `name` choose pieces by a rule, from the next `train_dataloader` on."""
        ...


@runtime_checkable
class PieceTable(Selective, Protocol):
    """Data that tells about every training piece, and lets a technique choose among them."""

    lookahead: int  # batches that may have been drawn and not trained yet, at most

    def pieces(self) -> dict[str, np.ndarray]:
        """Columns of what is known of each training piece, row by row."""
        ...


@runtime_checkable
class Varies(Protocol):
    """Data whose augmentation a technique may change."""

    def vary(self, **ranges: Any) -> None:
        """Takes other ranges from the next `train_dataloader` on."""
        ...


@runtime_checkable
class Paired(Protocol):
    """Data that knows whether the same songs are there in every style."""

    @property
    def paired(self) -> bool:
        """Whether they are."""
        ...


@runtime_checkable
class TokenViews(Protocol):
    """Data that shows its tokenised pieces."""

    def view(self, split: str) -> Any:
        """The pieces of a split."""
        ...


# --- networks ---


@runtime_checkable
class ShowsAttention(Protocol):
    """An attention layer that can compute what attends to what."""

    def maps(self, x_btd: Tensor, rotary: tuple[Tensor, Tensor], **options: Any) -> list[Tensor]:
        """Of each run of tokens [h, l, l]."""
        ...


# --- optimizers ---


@runtime_checkable
class Wraps(Protocol):
    """An optimizer around another one, such as Lookahead."""

    optimizer: Any


@runtime_checkable
class Attached(Protocol):
    """An optimizer that must know the task it serves."""

    def attach(self, task: Any) -> None:
        """Called once, before the first step."""
        ...


@runtime_checkable
class Observing(Protocol):
    """An optimizer that wants more of a batch than gradients."""

    def observe(self, task: Any, batch: Batch) -> None:
        """Called for every batch, between the losses and the backward pass."""
        ...
