"""Protocols of tasks that turn scores into sound; see `etude.core.protocols`."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from etude.core.protocols import HasMelContract


@runtime_checkable
class PlaysNotes(Protocol):
    """A task that predicts the mel of notes. It has methods only, so that its class can be checked, too."""

    def play(self, table_n5: np.ndarray) -> Tensor:
        """Returns natural-log mels [m, f] of a note table, see `etude.music.roll.note_table`; they end where the music does."""
        ...

    def play_roll(self, roll_kptf: Tensor) -> Tensor:
        """Returns natural-log mels [m, f] of a piano roll [2, p, 128, f]."""
        ...

    def reconstruct(self, roll_kptf: Tensor, log_mel_mf: Tensor) -> Tensor:
        """Returns natural-log mels [m, f] of a roll, with the latents that the sound itself suggests."""
        ...


@runtime_checkable
class PlaysScores(PlaysNotes, HasMelContract, Protocol):
    """A task that predicts the mel of notes for the instruments that it knows."""

    instruments: tuple[int, ...]
    device: Any
