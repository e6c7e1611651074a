"""Says in one line why a run ended, and what more training would cost."""

import math
from pathlib import Path

from etude.report.run_page import STILL, read_curves, standing_still

LATE = 0.9  # share of a run after which the best validation means that more training would probably help


def told_end(
    metrics: Path,
    *,
    monitor: str,
    mode: str,
    step: int,
    most: int,
    seconds_per_step: float,
    command: str,
    patience: int | None = None,
) -> str:
    """Returns one line: why a run ended at `step`, whether more training would help, how to get it and how long it takes.

    '' where nothing can be said: a run that ended neither early nor still improving nor long after its best
    validation, or had fewer than 4 validations and did not end early.

    Args:
        metrics: the run's metrics.csv. monitor: the metric that picks the best checkpoint. mode: min or max.
        step: the last optimizer step. most: the run's max_steps.
        seconds_per_step: of this run, validation included; NaN if unknown.
        command: what continues the run, such as `python train.py ckpt=FOLDER`.
        patience: of the technique early_stopping; None for a run without it, or that something else may have ended.
    """
    points = read_curves(metrics).get(monitor, []) if metrics.is_file() else []
    if not points:
        return ""
    at, best = (min if mode == "min" else max)(points, key=lambda point: point[1])
    found = f"{monitor} was best at step {at:.0f} ({best:.4g})"
    if step < most and patience is not None:
        option = f"technique.early_stopping.patience={2 * patience + 2}"
        return f"ended at step {step} of {most}: {found}; `{command} {option}` goes on{_cost(most - step, seconds_per_step)}"
    if len(points) < STILL:
        return ""
    if step == most and at >= LATE * step:
        return (
            f"ended at max_steps={most}, and {found}: more training may help; `{command} max_steps={2 * most}` goes on"
            f"{_cost(most, seconds_per_step)}"
        )
    return standing_still(metrics, monitor=monitor, mode=mode)


def _cost(steps: int, seconds_per_step: float) -> str:
    """Returns ', N steps more in about T', or only the steps where the speed is unknown."""
    if not math.isfinite(seconds_per_step):
        return f", up to {steps} steps more"
    seconds = steps * seconds_per_step
    time = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f", up to {steps} steps more in about {time}"
