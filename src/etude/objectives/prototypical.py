"""Prototypical networks: a piece belongs to the class whose mean vector is nearest.

Shapes: as in `etude.losses.episodes`.
"""

import torch
from torch import Tensor, nn

from etude.losses.episodes import cosines, negative_squared_distances, prototypes

DISTANCES = ("euclidean", "cosine")


class Prototypical(nn.Module):
    """Compares queries with the mean vector of each way; with one shot that is the nearest neighbour.

    Args:
        dim: of the encoder's vectors, not used.
        distance: euclidean (squared, as in the paper) or cosine.
        temperature: above 0, what the logits are divided by; None for 1 with euclidean and 0.1 with cosine.

    Raises: ValueError for another value.

    Source: Snell et al. 2017, equations 1 and 2.
    """

    def __init__(self, *, dim: int, distance: str = "euclidean", temperature: float | None = None) -> None:
        super().__init__()
        if distance not in DISTANCES or (temperature is not None and temperature <= 0):
            raise ValueError(
                f"algorithm.distance={distance} must be {' or '.join(DISTANCES)}, and algorithm.temperature={temperature} above 0"
            )
        self.distance = distance
        self.temperature = temperature if temperature is not None else 1.0 if distance == "euclidean" else 0.1

    def logits(self, support_sd: Tensor, way_s: Tensor, query_qd: Tensor, *, ways: int) -> Tensor:
        """Returns the logits of the ways for each query, [q, n]."""
        centre_nd = prototypes(support_sd, way_s, ways=ways)
        compared = negative_squared_distances if self.distance == "euclidean" else cosines
        found: Tensor = compared(query_qd, centre_nd) / self.temperature
        return torch.as_tensor(found)
