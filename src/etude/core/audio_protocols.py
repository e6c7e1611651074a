"""Protocols of tasks and data of audio; see `etude.core.protocols`."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from etude.core.protocols import HasMelContract, Translates


@runtime_checkable
class HasAffineBaseline(Translates, Protocol):
    """A translating task that also computes the affine baseline."""

    def affine(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
        """Returns natural-log mels [b, m, f] with the mean and deviation of the target style in each band."""
        ...


@runtime_checkable
class UsesReferenceClips(Translates, Protocol):
    """A translating task that may take the target style from a reference clip."""

    encoder: Any  # the style encoder; None if styles are given only by name


@runtime_checkable
class Paired(Protocol):
    """Data that may hold the same songs in every style."""

    @property
    def paired(self) -> bool:
        """Whether every song exists in every style."""
        ...


@runtime_checkable
class FillsFrames(Protocol):
    """A task that can be trained on mels with hidden frames; the entry `visible` of a batch marks the others."""

    takes_visible: bool


@runtime_checkable
class Synthesises(Protocol):
    """A task that computes audio from mels. It has methods only, so that its class can be checked, too."""

    def synthesise(self, log_mel_cmf: Tensor, source_ckf: Tensor | None = None) -> Tensor:
        """Returns samples [c, n] of natural-log mels [c, m, f]; source_ckf: the spectrum of the audio behind them, if known."""
        ...


@runtime_checkable
class HoldsAudio(HasMelContract, Protocol):
    """Data of audio in several styles that can be listened to piece by piece."""

    @property
    def styles(self) -> tuple[str, ...]:
        """The names of the styles."""
        ...

    def num_pieces(self, split: str, style: str) -> int:
        """Returns the number of pieces of a style in a split."""
        ...

    def piece(self, split: str, style: str, index: int) -> Any:
        """Returns the facts about a piece: name, song, key, start, stop."""
        ...

    def samples(self, split: str, style: str, index: int) -> Tensor:
        """Returns the mono samples [n] of a piece at the contract's rate."""
        ...
