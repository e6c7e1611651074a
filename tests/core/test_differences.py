"""What two runs have left, compared."""

from pathlib import Path
from typing import Any

import torch

from etude.core.differences import compare_checkpoints, compare_metrics
from etude.sweeps.callback import TrialCallback


def checkpoint(weight: float = 1.0, moment: float = 0.5, step: int = 3, score: Any = 2.0) -> dict[str, Any]:
    return {
        "state_dict": {"a": torch.ones(4), "b": torch.full((3,), weight)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.full((3,), moment)}}}],
        "loops": {"fit_loop": {"step": step}},
        "callbacks": {"Best": {"best_model_path": str(weight), "score": score}},
    }


def test_the_first_part_that_differs_is_named() -> None:
    assert compare_checkpoints(checkpoint(), checkpoint()) is None
    nan = checkpoint(score=torch.tensor([float("nan"), 1.0]))
    assert compare_checkpoints(nan, checkpoint(score=torch.tensor([float("nan"), 1.0]))) is None
    assert compare_checkpoints(nan, checkpoint(score=torch.tensor([0.0, 1.0]))) is not None
    assert compare_checkpoints(checkpoint(), checkpoint(1.0 + 2**-20, 0.6)) == "state_dict.b: relative difference 9.5e-07"
    assert str(compare_checkpoints(checkpoint(), checkpoint(moment=0.6))).startswith("optimizer_states.0.state.0.exp_avg: ")
    assert compare_checkpoints(checkpoint(), checkpoint(step=4)) == "loops.fit_loop.step: 3 and 4"
    assert compare_checkpoints(checkpoint(), {**checkpoint(), "callbacks": {}}) == "only one of the runs has callbacks.Best.score"


def test_a_trial_of_a_sweep_equals_the_same_run_without_its_sweep() -> None:
    trial = checkpoint()
    trial["callbacks"]["TrialCallback"] = {"seconds": 9.1, "values": {"val/nll": 1.0}, "seen": ["val/nll"]}
    assert compare_checkpoints(trial, checkpoint()) is None and compare_checkpoints(checkpoint(), trial) is None
    assert TrialCallback.__name__ in trial["callbacks"]


def test_only_the_named_parts_are_compared() -> None:
    assert compare_checkpoints(checkpoint(), checkpoint(step=4), parts=("state_dict", "optimizer_states")) is None
    assert compare_checkpoints(checkpoint(), checkpoint(moment=0.6), parts=("state_dict", "optimizer_states")) is not None


def test_within_a_tolerance_weights_count() -> None:
    assert compare_checkpoints(checkpoint(), checkpoint(1.001, 9.0, 7), tolerance=0.01) is None
    assert compare_checkpoints(checkpoint(), checkpoint(1.1), tolerance=0.01) == "state_dict.b: relative difference 0.1"


def test_metrics_are_compared_row_by_row(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("step,loss,val\n9,1.5,\n19,1.25,\n19,,0.5\n29,1.0,\n")
    two.write_text("step,val,loss\n9,,1.5\n19,,1.25\n19,0.5,\n29,,1.001\n")  # in another order of columns
    assert compare_metrics(one, two) == "step 29: loss is 1.0 and 1.001"
    assert compare_metrics(one, two, up_to=28) is None and compare_metrics(one, two, tolerance=0.01) is None
    two.write_text("step,loss,val\n9,1.5,\n19,1.25,\n")
    assert compare_metrics(one, two) == "4 and 2 rows"
    two.write_text("step,loss,val\n9,1.5,\n29,1.25,\n")
    assert compare_metrics(one, two) == "step 19: the other run has step 29 there"


def test_times_are_not_compared(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("step,loss,live/seconds,live/share\n9,1.5,3.1,0.02\n")
    two.write_text("step,loss,live/seconds,live/share\n9,1.5,5.9,0.04\n")
    assert compare_metrics(one, two) is None
