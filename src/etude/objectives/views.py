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
    small_views: int = 0  # views that show less, beside the two
    small_crop: tuple[float, float] = (1.0, 1.0)  # smallest and largest share of a piece that one of them shows

    def __init__(self, *, dim: int, hidden_dim: int, projection_dim: int, momentum: float | None = None) -> None:
        super().__init__()
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"objective.momentum={momentum} must lie in [0, 1); 0.99 is usual")
        self.momentum = momentum
        self.projector = projector(dim, hidden_dim, projection_dim)
        self.slow_projector = copy.deepcopy(self.projector).requires_grad_(False) if momentum is not None else None

    def losses(self, views: Sequence[Tensor], slow_views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and what `after_step` is to get of this batch: nothing, or `keys`.

        views, slow_views: vectors [n, d] of two views by the encoder, and by its slow copy (empty without one); `views` goes on
            with the `small_views`.
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
        place(self.queue, self.place, left["keys"])


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

    Of the views, the first two are assigned; the others, which show less, only predict those assignments (multi-crop).

    num_prototypes: at least 2. epsilon, iterations: of the assignment, see `losses.contrastive.sinkhorn`.
    small_views, small_crop: number of the small views, and the [smallest, largest] share of a piece that one shows.
    queue_size: projections of earlier views that are assigned together with those of the batch, so that a small batch need not
        use all prototypes equally by itself; 0 for none.

    Source: Caron et al. 2020.
    """

    queue: Tensor
    place: Tensor
    filled: Tensor

    def __init__(
        self, *, dim: int, hidden_dim: int = 256, projection_dim: int = 64, temperature: float = 0.1, num_prototypes: int = 64,
        epsilon: float = 0.05, iterations: int = 3, small_views: int = 2, small_crop: Sequence[float] = (0.2, 0.4),
        queue_size: int = 256,
    ) -> None:  # fmt: skip
        super().__init__(dim=dim, hidden_dim=hidden_dim, projection_dim=projection_dim)
        if small_views < 0 or queue_size < 0 or len(small_crop) != 2 or not 0 < small_crop[0] <= small_crop[1] <= 1:
            raise ValueError(
                f"objective.small_views={small_views} and queue_size={queue_size} must be at least 0, and "
                f"small_crop={list(small_crop)} [lowest, highest] within (0, 1]"
            )
        self.small_views, self.small_crop = small_views, (float(small_crop[0]), float(small_crop[1]))
        self.register_buffer("queue", torch.zeros(queue_size, projection_dim))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.temperature, self.epsilon = _positive("temperature", temperature), _positive("epsilon", epsilon)
        if num_prototypes < 2 or iterations < 1:
            raise ValueError(f"objective.num_prototypes={num_prototypes} must be at least 2, iterations={iterations} at least 1")
        self.iterations = iterations
        self.prototypes = nn.Parameter(F.normalize(torch.randn(num_prototypes, projection_dim), dim=1))

    def losses(self, views: Sequence[Tensor], slow_views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        unit = F.normalize(self.prototypes, dim=1)
        projected = [F.normalize(self.projector(x).float(), dim=1) for x in views]
        scores = [x @ unit.T for x in projected]
        earlier = self.queue[: int(self.filled)].float() @ unit.T
        assigned = [
            sinkhorn(torch.cat((x, earlier)), epsilon=self.epsilon, iterations=self.iterations)[: len(x)] for x in scores[:2]
        ]
        pairs = [(said, target) for said in range(len(scores)) for target in (0, 1) if said != target]
        each = [swapped_prediction(scores[i], assigned[j], temperature=self.temperature) for i, j in pairs]
        return torch.stack(each).mean(), {"keys": torch.cat(projected[:2]).detach()}

    @torch.no_grad()
    def after_step(self, left: dict[str, list[Tensor]]) -> None:
        super().after_step(left)
        if len(self.queue):
            place(self.queue, self.place, left["keys"])
            self.filled.add_(sum(map(len, left["keys"]))).clamp_(max=len(self.queue))


def place(queue: Tensor, start: Tensor, keys: Sequence[Tensor]) -> None:
    """Writes the last of the keys into a queue from place `start` on, which goes round; both are changed."""
    last = torch.cat(list(keys))[-len(queue) :]
    queue[(start + torch.arange(len(last), device=last.device)) % len(queue)] = last.to(queue.dtype)
    start.add_(len(last)).remainder_(len(queue))


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise ValueError(f"objective.{name}={value} must be above 0")
    return value
