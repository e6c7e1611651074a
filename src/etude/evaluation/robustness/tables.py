"""What every robustness evaluation writes: robustness.csv, a picture of its curves and report.html."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etude.attacks.budget import check_snr
from etude.report.robustness_plots import accuracy_curves
from etude.report.run_page import begin_report, end_report

Row = dict[str, Any]


def check_ratios(snr_db: Sequence[float]) -> list[float]:
    """Returns the signal-to-noise ratios from the highest, the smallest change, to the lowest.

    Raises: ValueError for none, or one below 0 dB.
    """
    if not snr_db:
        raise ValueError("robustness.snr_db is empty; give ratios in dB, such as [60,50,40,30,20]")
    for value in snr_db:
        check_snr(value, "robustness.snr_db")
    return sorted(map(float, snr_db), reverse=True)


def check_counts(*, least: int = 1, **counts: int) -> None:
    """Raises ValueError for an option of `robustness` that is below the least number it may be."""
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"robustness.{name}={count} must be at least {least}")


def write(
    folder: Path, title: str, about: str, rows: list[Row], *, shown: Sequence[str],
    more: Sequence[tuple[str, str, list[Row]]] = (), over: str = "snr_db",
) -> None:  # fmt: skip
    """Writes robustness.csv, robustness.png (the columns `shown` over `over`, a colour for each head) and report.html.

    more: further sections: (heading, text, rows of a table).
    """
    report = begin_report(f"Robustness: {title}", folder)
    report.text(about)
    picture = accuracy_curves(rows, columns=shown, title=title, over=over)
    (folder / "robustness.png").write_bytes(picture)
    report.image(picture, alt=f"{title}: accuracy over the size of the change, for each head")
    report.table(list(rows[0]), [[_shown(value) for value in row.values()] for row in rows])
    for heading, text, lines in more:
        report.heading(heading).text(text)
        if lines:
            report.table(list(lines[0]), [[_shown(value) for value in line.values()] for line in lines])
            _csv(folder / f"{heading.split()[0].lower().rstrip(':')}.csv", lines)
    _csv(folder / "robustness.csv", rows)
    end_report(report, folder)


def _csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3f}" if abs(value) < 2 else f"{value:g}"
    return str(value)
