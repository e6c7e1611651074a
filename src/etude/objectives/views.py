"""Objectives that compare two views of the same pieces: SimCLR, MoCo, BYOL, SwAV.

Each is a network on the vectors of an encoder. `losses` is pure: it gets vectors of the views by the encoder and, with a
`momentum`, by its slow copy; what is remembered is changed by `after_step` alone, once for each optimizer step.

Shapes: n documents, d width of the encoder, p width of the projection, q vectors of the queue.
"""

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.losses.contrastive import info_nce, nt_xent, regression, sinkhorn, swapped_prediction


def projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Returns two linear layers with a normalisation and a rectifier between."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, out))


class ViewObjective(nn.Module):
    """The base of the objectives in this file.

    Args:
        dim: width d of the encoder. hidden_dim, projection_dim: widths of the projector.
        momentum: share that the slow copy keeps at each step, in [0, 1); None for no copy.
    """

    uses_copy: ClassVar[bool] = False

    def __init__(self, *, dim: int, hidden_dim: int, projection_dim: int, momentum: float | None = None) -> None:
        super().__init__()
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"objective.momentum={momentum} must lie in [0, 1); 0.99 is usual")
        self.momentum = momentum
        self.projector = projector(dim, hidden_dim, projection_dim)
        self.slow_projector = copy.deepcopy(self.projector).requires_grad_(False) if momentum is not None else None

    def losses(self, views: Sequence[Tensor], slow_views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and what `after_step` is to get of this batch.

        views, slow_views: vectors [n, d] of two views by the encoder, and by its slow copy (empty without one).
        """
        raise TypeError(f"{type(self).__name__} must define losses(views, slow_views)")

    def after_step(self, left: dict[str, list[Tensor]]) -> None:
        """Runs once after each optimizer step; left: what `losses` returned, of each batch of the step."""
        if self.slow_projector is not None and self.momentum is not None:
            follow(self.slow_projector, self.projector, self.momentum)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Moves each parameter of `slow` by 1 - momentum towards that of `fast`."""
    for own, other in zip(slow.parameters(), fast.parameters(), strict=True):
        own.lerp_(other.to(own.dtype), 1 - momentum)


class SimClr(ViewObjective):
    """Tells each view's other view from all other views of the batch.

    Source: Chen et al. 2020.
    """

    def __init__(
        self, *, dim: int, hidden_dim: int = 256, projection_dim: int = 64, temperature: float = 0.1
    ) -> None:  # fmt: skip
        super().__init__(dim=dim, hidden_dim=hidden_dim, projection_dim=projection_dim)
        self.temperature = _positive("temperature", temperature)

    def losses(self, views: Sequence[Tensor], slow_views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        one, two = map(self.projector, views)
        return nt_xent(one, two, temperature=self.temperature), {}


class Moco(ViewObjective):
    """Tells each view's other view, by a slow copy of the encoder, from a queue of earlier ones.

    queue_size: vectors in the queue, at least 1.

    Source: He et al. 2020.
    """

    uses_copy = True
    queue: Tensor
    place: Tensor

    def __init__(
        self, *, dim: int, hidden_dim: int = 256, projection_dim: int = 64, temperature: float = 0.2, momentum: float = 0.99,
        queue_size: int = 512,
    ) -> None:  # fmt: skip
        super().__init__(dim=dim, hidden_dim=hidden_dim, projection_dim=projection_dim, momentum=momentum)
        self.temperature = _positive("temperature", temperature)
        if queue_size < 1:
            raise ValueError(f"objective.queue_size={queue_size} must be at least 1")
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, projection_dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def losses(self, views: Sequence[Tensor], slow_views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.slow_projector is not None
        with torch.no_grad():
            keys = [F.normalize(self.slow_projector(x).float(), dim=1) for x in slow_views]
        queries = [self.projector(x) for x in views]
        queue = self.queue.clone()
        both = [info_nce(queries[i], keys[1 - i], queue, temperature=self.temperature) for i in (0, 1)]
        return torch.stack(both).mean(), {"keys": torch.cat(keys)}

    @torch.no_grad()
    def after_step(self, left: dict[str, list[Tensor]]) -> None:
        super().after_step(left)
        keys = torch.cat(left["keys"])[-len(self.queue) :]
        self.queue[(self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)] = keys.to(self.queue.dtype)
        self.place.add_(len(keys)).remainder_(len(self.queue))


class Byol(ViewObjective):
    """Predicts what a slow copy of the encoder makes of the other view; there are no negatives.

    Source: Grill et al. 2020.
    """

    uses_copy = True

    def __init__(
        self, *, dim: int, hidden_dim: int = 256, projection_dim: int = 64, momentum: float = 0.99
    ) -> None:  # fmt: skip
        super().__init__(dim=dim, hidden_dim=hidden_dim, projection_dim=projection_dim, momentum=momentum)
        self.predictor = projector(projection_dim, hidden_dim, projection_dim)

    def losses(self, views: Sequence[Tensor], slow_views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.slow_projector is not None
        with torch.no_grad():
            targets = [self.slow_projector(x) for x in slow_views]
        said = [self.predictor(self.projector(x)) for x in views]
        return (regression(said[0], targets[1]) + regression(said[1], targets[0])) / 2, {}


class Swav(ViewObjective):
    """Predicts to which prototypes the other view is assigned, where all prototypes are used equally.

    num_prototypes: at least 2. epsilon, iterations: of the assignment, see `losses.contrastive.sinkhorn`.

    Source: Caron et al. 2020; here without crops of other sizes.
    """

    def __init__(
        self, *, dim: int, hidden_dim: int = 256, projection_dim: int = 64, temperature: float = 0.1, num_prototypes: int = 64,
        epsilon: float = 0.05, iterations: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(dim=dim, hidden_dim=hidden_dim, projection_dim=projection_dim)
        self.temperature, self.epsilon = _positive("temperature", temperature), _positive("epsilon", epsilon)
        if num_prototypes < 2 or iterations < 1:
            raise ValueError(f"objective.num_prototypes={num_prototypes} must be at least 2, iterations={iterations} at least 1")
        self.iterations = iterations
        self.prototypes = nn.Parameter(F.normalize(torch.randn(num_prototypes, projection_dim), dim=1))

    def losses(self, views: Sequence[Tensor], slow_views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        unit = F.normalize(self.prototypes, dim=1)
        scores = [F.normalize(self.projector(x).float(), dim=1) @ unit.T for x in views]
        assigned = [sinkhorn(x, epsilon=self.epsilon, iterations=self.iterations) for x in scores]
        both = [swapped_prediction(scores[i], assigned[1 - i], temperature=self.temperature) for i in (0, 1)]
        return torch.stack(both).mean(), {}


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise ValueError(f"objective.{name}={value} must be above 0")
    return value
