"""Learning to learn by gradient descent: the inner loop that MAML, first-order MAML and Reptile share.

An algorithm gets the weights and functions of weights, and knows no task.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from etude.losses.episodes import descended, half_squared_distance

Weights = dict[str, Tensor]
Slope = Callable[[Weights], Mapping[str, Tensor]]  # the gradient on the support, at these weights
Loss = Callable[[Weights], Tensor]


CRITERIA = ("loss", "gradient")
LEAST_SHARE = 1e-4  # of an episode in a cluster that it trains


class InnerLoop(nn.Module):
    """Adapts weights to an episode by a few steps of gradient descent on its support.

    With `clusters` there are several initial weights, so that kinds of episodes that would pull one initialisation apart get one
    each: a mixture (Jerfel et al. 2019, algorithm 2). In training each episode has a share in every cluster, the softmax of minus
    its `cluster_by` over `cluster_temperature`, and its loss is the sum over clusters of share times loss; shares carry no
    gradient. In evaluation it starts from the weights with the largest share.

    Args:
        dim: of the encoder's vectors, not used.
        rate: of the steps, above 0; None for `usual_rate`, which the task sets. steps: at least 1.
        test_steps: steps in evaluation, None for `steps`.
        learn_rates: learn a rate for each tensor of weights (Li et al. 2017, per tensor), from `rate` on.
        clusters: number of initial weights, at least 1; None for one, the weights of the task.
        cluster_by: what is low for weights that suit a support: `loss`, that of the support after the steps, in nats (Jerfel et
            al.), or `gradient`, the squared distance that the steps go over its mean of the clusters (Zhou et al. 2021: the
            nearest initialisation).
        cluster_temperature: above 0; with a low one an episode trains one cluster, and a cluster that is behind may starve.
        cluster_spread: the second and later initial weights are the first ones plus Gaussian noise of so many standard
            deviations of each tensor, above 0.

    Raises: ValueError for a value out of range.
    """

    second_order = False  # whether `losses` differentiates through the gradients
    on_all_pieces = False  # whether training adapts to support and queries together
    term = "query"

    def __init__(
        self, *, dim: int, rate: float | None = None, steps: int = 3, test_steps: int | None = None, learn_rates: bool = False,
        clusters: int | None = None, cluster_by: str | None = None, cluster_temperature: float | None = None,
        cluster_spread: float | None = None, usual_rate: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        rate = usual_rate if rate is None else rate
        if rate <= 0 or steps < 1 or (test_steps is not None and test_steps < 1):
            raise ValueError(
                f"algorithm.rate={rate} must be above 0, and algorithm.steps={steps} and test_steps={test_steps} at least 1"
            )
        if clusters in (None, 1) and (cluster_by, cluster_temperature, cluster_spread) != (None, None, None):
            raise ValueError("algorithm.cluster_... options do nothing with one cluster; set algorithm.clusters, to 2 say")
        self.clusters, self.cluster_by = clusters or 1, "loss" if cluster_by is None else cluster_by
        self.cluster_spread = 0.1 if cluster_spread is None else cluster_spread
        self.cluster_temperature = 0.1 if cluster_temperature is None else cluster_temperature
        above = min(self.cluster_spread, self.cluster_temperature) > 0
        if (clusters is not None and clusters < 1) or self.cluster_by not in CRITERIA or not above:
            raise ValueError(
                f"algorithm.clusters={clusters} must be at least 1, algorithm.cluster_by={self.cluster_by} one of "
                f"{', '.join(CRITERIA)}, algorithm.cluster_temperature={self.cluster_temperature} and "
                f"algorithm.cluster_spread={self.cluster_spread} above 0"
            )
        self.rate, self.steps, self.test_steps, self.learn_rates = rate, steps, test_steps or steps, learn_rates
        self.log_rates: nn.Parameter | None = None
        self.names: tuple[str, ...] = ()

    def attach(self, weights: Mapping[str, Tensor]) -> None:
        """Tells the weights that it will adapt, by name; draws the other initial weights of `clusters`."""
        self.names = tuple(weights)
        if self.learn_rates:
            self.log_rates = nn.Parameter(torch.full((len(self.names),), math.log(self.rate)))
        self.others = nn.ModuleList(
            nn.ParameterList(nn.Parameter(self._beside(w.detach())) for w in weights.values()) for _ in range(self.clusters - 1)
        )

    def _beside(self, weight: Tensor) -> Tensor:
        deviation = weight.std() if weight.numel() > 1 else weight.new_zeros(())
        return weight + self.cluster_spread * deviation * torch.randn(weight.shape).to(weight)

    def carried(self, own: Mapping[str, Tensor], given: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Returns the given weights of a task with the other initial weights moved along: as far from the first as before.

        own: all weights of the task, of which `given` replaces some. prefix: of this algorithm's in them.
        """
        found = dict(own) | dict(given)
        for number in range(len(self.others)):
            for place, name in enumerate(self.names):
                entry = f"{prefix}others.{number}.{place}"
                found[entry] = found[name] + (own[entry] - own[name])
        return found

    def rates(self) -> dict[str, Tensor | float]:
        """Returns the rate of each weight."""
        if self.log_rates is None:
            return dict.fromkeys(self.names, self.rate)
        return dict(zip(self.names, self.log_rates.exp(), strict=True))

    def adapted(self, weights: Weights, slope: Slope, *, steps: int) -> Weights:
        """Returns the weights after `steps` steps, with a graph to the first ones (and through `slope`, if that has one)."""
        known = self.rates()
        rates = {name: known.get(name, self.rate) for name in weights}  # a technique may have added weights
        for _ in range(steps):
            weights = descended(weights, slope(weights), rates)
        return weights

    def starts(self, weights: Weights) -> list[Weights]:
        """Returns the initial weights of each cluster; the first are the given ones.

        Raises: ValueError if there are several, and the given ones are not all that `attach` was told.
        """
        if not len(self.others):
            return [weights]
        if set(weights) != set(self.names):
            odd = sorted(set(weights) ^ set(self.names))[0]
            raise ValueError(
                f"algorithm.clusters={self.clusters} has initial values of all weights of the task, but {odd} was frozen, added "
                "or replaced by a technique or stage; leave that out, or algorithm.clusters"
            )
        return [weights, *(dict(zip(self.names, other, strict=True)) for other in self.others)]  # type: ignore[call-overload]

    def shares(self, weights: Weights, slope: Slope, fit: Loss, *, steps: int) -> Tensor:
        """Returns the share of an episode in each cluster, [clusters]; fit: the loss of its support at given weights."""
        starts = self.starts(weights)
        found = []
        for start in starts if len(starts) > 1 else ():
            begun = {name: w.detach().requires_grad_() for name, w in start.items()}
            ended = {name: w.detach() for name, w in self.adapted(begun, slope, steps=steps).items()}
            with torch.no_grad():
                far = fit(ended) if self.cluster_by == "loss" else half_squared_distance(begun, ended)
            found.append(far.detach())
        if not found:
            return torch.ones(1)
        scores = torch.stack(found).double()
        scores = scores if self.cluster_by == "loss" else scores / scores.mean().clamp(min=torch.finfo(torch.float64).tiny)
        return (-scores / self.cluster_temperature).softmax(0)

    def start(self, weights: Weights, slope: Slope, fit: Loss, *, steps: int) -> Weights:
        """Returns the initial weights in which an episode has the largest share, of equal ones the first."""
        return self.starts(weights)[int(self.shares(weights, slope, fit, steps=steps).argmax())]

    def episode_loss(self, weights: Weights, slope: Slope, query_loss: Loss, fit: Loss) -> Tensor:
        """Returns the loss of an episode: that of `losses`, or its mean over clusters by the shares of the episode."""
        starts = self.starts(weights)
        if len(starts) == 1:
            return self.losses(weights, slope, query_loss)
        shares = self.shares(weights, slope, fit, steps=self.steps).tolist()
        kept = [(share, start) for share, start in zip(shares, starts, strict=True) if share > LEAST_SHARE]
        return torch.stack([share * self.losses(start, slope, query_loss) for share, start in kept]).sum()

    def losses(self, weights: Weights, slope: Slope, query_loss: Loss) -> Tensor:
        """Returns the loss of an episode from its initial weights: that of the queries at the adapted weights."""
        return query_loss(self.adapted(weights, slope, steps=self.steps))
