"""Reptile: moves the weights towards what they become on an episode."""

from torch import Tensor

from etude.losses.episodes import half_squared_distance
from etude.objectives.inner_loop import InnerLoop, Loss, Slope, Weights


class Reptile(InnerLoop):
    """Half the squared distance of the weights to the adapted ones, which are held fixed, over rate times steps.

    Its gradient is (weights - adapted) / (rate * steps), the direction of Reptile's update in the scale of a gradient; with one
    step it is the gradient of the episode's loss. So Reptile is a loss, with one backward and one step of any optimizer. It
    adapts to all pieces of an episode, and in evaluation to the support.

    Source: Nichol et al. 2018, algorithm 2. Arguments: see `InnerLoop`; rates can't be learnt, since nothing depends on them.
    """

    on_all_pieces = True
    term = "distance"

    def __init__(
        self, *, dim: int, rate: float | None = None, steps: int = 3, test_steps: int | None = None, clusters: int | None = None,
        cluster_by: str | None = None, cluster_temperature: float | None = None, cluster_spread: float | None = None,
        usual_rate: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__(
            dim=dim, rate=rate, steps=steps, test_steps=test_steps, clusters=clusters, cluster_by=cluster_by,
            cluster_temperature=cluster_temperature, cluster_spread=cluster_spread, usual_rate=usual_rate,
        )  # fmt: skip

    def losses(self, weights: Weights, slope: Slope, query_loss: Loss) -> Tensor:
        """Returns the scaled distance; `query_loss` is not used."""
        adapted = self.adapted(weights, slope, steps=self.steps)
        return half_squared_distance(weights, adapted) / (self.rate * self.steps)
