"""A picture of a forgetting matrix, as PNG bytes."""

import io
from collections.abc import Sequence

import numpy as np

from etude.report.plots import DPI


def forgetting_matrix(
    values_pg: Sequence[Sequence[float]], *, rows: Sequence[str], columns: Sequence[str], unit: str, title: str = ""
) -> bytes:
    """Draws a matrix whose cells hold a measure: of the pieces of each column, after each row. Darker is higher.

    values_pg: a value for each row and column. rows, columns: their names. unit: of the values.
    """
    from matplotlib.figure import Figure

    values = np.asarray(values_pg, np.float64)
    figure = Figure(figsize=(1.8 + 0.9 * len(columns), 1.3 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    axis.imshow(values, cmap="Blues", aspect="auto", vmin=low, vmax=high + 1e-9)
    for (row, column), value in np.ndenumerate(values):
        dark = value > low + 0.6 * (high - low)
        axis.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_xlabel("measured on", fontsize=8)
    axis.set_ylabel("after", fontsize=8)
    axis.set_title(f"{title}{', ' if title else ''}{unit}", fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()
