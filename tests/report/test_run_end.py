"""The line that says why a run ended and what more training would cost."""

from pathlib import Path
from typing import Any

import pytest

from etude.report.run_end import told_end


def told(folder: Path, values: list[float], **options: Any) -> str:
    lines = "".join(f"{100 * (n + 1)},{value}\n" for n, value in enumerate(values))
    (folder / "metrics.csv").write_text(f"step,val/frechet\n{lines}")
    known = {"monitor": "val/frechet", "mode": "min", "step": 100 * len(values), "most": 100 * len(values)}
    return told_end(
        folder / "metrics.csv", **{**known, "seconds_per_step": 0.3, "command": "python train.py ckpt=run", **options}
    )


def test_a_run_that_ended_early_says_so(tmp_path: Path) -> None:
    line = told(tmp_path, [3.0, 2.0, 2.5, 2.4], most=1000, patience=2)
    assert line == (
        "ended at step 400 of 1000: val/frechet was best at step 200 (2); `python train.py ckpt=run "
        "technique.early_stopping.patience=6` goes on, up to 600 steps more in about 3 min"
    )
    assert told(tmp_path, [3.0, 2.0, 2.5], most=1000, patience=2).startswith("ended at step 300 of 1000")  # few suffice here
    assert "in about" not in told(tmp_path, [3.0, 2.0, 2.5, 2.4], most=1000, patience=2, seconds_per_step=float("nan"))


def test_a_run_that_still_improves_says_what_more_costs(tmp_path: Path) -> None:
    line = told(tmp_path, [3.0, 2.6, 2.5, 2.4])
    assert line.startswith("ended at max_steps=400, and val/frechet was best at step 400 (2.4): more training may help; `python")
    assert line.endswith("max_steps=800` goes on, up to 400 steps more in about 2 min")
    assert told(tmp_path, [3.0, 2.6, 2.5, 2.4], mode="max").startswith(
        "val/frechet was best at step 100 (3) and has not improved"
    )


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([3.0, 2.0, 1.0], {}),  # too few validations
        ([5.0, 4.0, 3.0, 2.0, 1.0, 1.1, 1.2], {}),  # neither late nor long ago
        ([4.0, 3.0, 2.0, 1.9], {"most": 1000}),  # ended by something else, such as max_time
        ([4.0, 3.0, 2.0, 1.9], {"monitor": "val/nll"}),
    ],
)
def test_nothing_is_said_without_reason(tmp_path: Path, values: list[float], options: dict[str, Any]) -> None:
    assert told(tmp_path, values, **options) == ""


@pytest.mark.parametrize(("speed", "time"), [(0.1, "40 s"), (10.0, "67 min"), (100.0, "11.1 h")])
def test_times_have_a_unit_that_fits(tmp_path: Path, speed: float, time: str) -> None:
    assert told(tmp_path, [4.0, 3.0, 2.0, 1.9], seconds_per_step=speed).endswith(f"in about {time}")
