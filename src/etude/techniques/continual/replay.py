"""Technique replay: pieces of earlier phases are kept in a memory and trained on beside those of the present phase."""

from collections.abc import Mapping

from torch import Tensor

from etude.core.batch import Batch
from etude.core.rehearsal import Rehearsal
from etude.core.task import Task


class Replay(Rehearsal):
    """Adds to every loss term the same term on pieces of earlier phases, as `replay_TERM` or `player/replay_TERM`.

    The memory holds `size` pieces: as many of each phase that has ended, chosen uniformly, as single pieces or windows of long
    ones that are cut at bars. Each step trains on `batch_size` of them. A step takes longer by the share of their tokens.

    When to use: phases on different data of which some may be kept; of the techniques against forgetting it is the one to try
    first. Suggested: a memory of a tenth of the pieces, strength 1.
    Source: Rolnick et al. 2019; Chaudhry et al. 2019 (tiny episodic memories), with a reservoir for each phase.

    Args:
        size: pieces in the memory, at least 1.
        batch_size: pieces of the memory in each step, at least 1.
        strength: factor of their loss, above 0.
        every: steps after which a section ends like a phase; None to go by the phases alone.
        seed: of what is kept and drawn.

    Raises:
        ValueError: an option out of its range, a single phase, or a memory larger than the data.
    """

    def __init__(
        self, *, size: int = 32, batch_size: int = 4, strength: float = 1.0, every: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(size=size, batch_size=batch_size, every=every, seed=seed)
        if not strength > 0:
            raise ValueError(
                f"technique.replay.strength is {strength}, must be above 0; without it leave replay out of technique=[...]"
            )
        self.strength = strength

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.rehearsed(task, self.generator(task.batches_trained))

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        return {name: self.strength * weight for name, weight in self.weights_of_rehearsed(task, losses).items()}
