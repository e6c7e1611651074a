"""How much a model that learns in phases forgets, and what phases do for each other. Shapes: p phases."""

import math

import numpy as np
from numpy.typing import ArrayLike


def transfer(measured_pp: ArrayLike, start_p: ArrayLike, *, higher_is_better: bool = False) -> dict[str, float]:
    """Returns the figures of a forgetting matrix, each in the unit of the measure.

    Args:
        measured_pp: row i, column j: the measure of the pieces of phase j after phase i; at least one row and column.
        start_p: the same before the first phase.
        higher_is_better: of the measure.

    Returns:
        final: mean of the last row.
        backward_transfer: mean change of the earlier phases' measures from the end of their phase to the end of the last one;
            below 0 where something was forgotten.
        forward_transfer: mean change from the start to the end of the phase before, for all phases but the first; above 0
            where earlier phases helped.
        forgetting: mean distance of the earlier phases' last measure from their best one; 0 where nothing was forgotten.
        The last three are NaN for a single phase.

    Source: Lopez-Paz and Ranzato 2017, equations 2 to 4, with the sign so that higher values are better; forgetting: Chaudhry et
    al. 2018, equation 3.

    Raises:
        ValueError: a matrix that is not square, or a start of another length.
    """
    measured, start = np.asarray(measured_pp, np.float64), np.asarray(start_p, np.float64)
    if measured.ndim != 2 or measured.shape[0] != measured.shape[1] or start.shape != measured.shape[:1] or not len(start):
        raise ValueError(
            f"measured_pp is {measured.shape} and start_p {start.shape}, must be [p, p] and [p] with p of at least 1"
        )
    final = float(measured[-1].mean())
    if len(start) == 1:
        return {"final": final, "backward_transfer": math.nan, "forward_transfer": math.nan, "forgetting": math.nan}
    sign = 1.0 if higher_is_better else -1.0
    good = sign * measured
    backward = good[-1, :-1] - np.diagonal(good)[:-1]
    forward = np.diagonal(good, offset=1) - sign * start[1:]
    lost = good[:, :-1].max(0) - good[-1, :-1]
    means = {"backward_transfer": backward, "forward_transfer": forward, "forgetting": lost}
    return {"final": final, **{name: float(values.mean()) for name, values in means.items()}}
