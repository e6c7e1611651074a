"""Protocols of tasks that classify, and of those that can be trained on mixtures; see `etude.core.protocols`."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from etude.core.batch import Batch
from etude.core.protocols import PredictsTokens, TakesInputs


@runtime_checkable
class ClassifiesInputs(TakesInputs, Protocol):
    """A task that classifies music from continuous inputs: a row of logits for each document, segment or decision."""

    labels: Mapping[str, Sequence[str]]  # head -> names of its classes
    fully_labelled: bool  # whether every example has a label for every head

    def class_logits(self, batch: Batch) -> Mapping[str, Tensor]:
        """Returns the logits of each head, [n, c], a row for each mel, or for each document in the order of the rows."""
        ...

    def documents(self, batch: Batch, name: str = "piece") -> Tensor:
        """Returns the batch's entry `name`, such as `label_genre`, once for each row of logits: [n]; -1 is no label."""
        ...


@runtime_checkable
class HasLayers(ClassifiesInputs, Protocol):
    """A classifier of mels whose network is a chain of layers, through which bounds can be propagated."""

    def layers(self, head: str) -> nn.Module:
        """Returns the chain from normalised mels [n, m, f] to the head's logits [n, c]. Raises: ValueError if there is none."""
        ...


@runtime_checkable
class MixesTargets(ClassifiesInputs, Protocol):
    """A classifier that can be trained on mixtures of examples."""

    def mixed_targets(self, batch: Batch, order: Tensor, share: Tensor, frames: tuple[int, int] | None = None) -> Batch:
        """Returns the entries of a batch that tell what its examples are after each was mixed with another.

        Args:
            batch: examples that stand alone (`core.alone`). order: example i is mixed with example order[i], int64 [n].
            share: of each example that is its own, [n]. frames: first and last + 1 frame that come from the other, if mels are
                cut; None if whole examples are added up.
        """
        ...


@runtime_checkable
class MixesNextTokens(PredictsTokens, TakesInputs, Protocol):
    """A language model that can be trained on mixtures of documents."""

    def mixed_next_tokens(self, targets: Tensor, share: Tensor) -> Batch:
        """Returns the entries of a batch that tell which next tokens were mixed in.

        Args:
            targets: the next tokens of what was mixed in, int64 [b, t]; -100 where nothing was, or nothing is counted.
            share: of each token that is its own, [b, t], in [0, 1].
        """
        ...
