"""Affinity: by hand on quadratics, what a missing label does, what it writes, and what it refuses."""

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etude.core.task import Task
from etude.techniques.loss.affinity import Affinity
from tests.tasks.test_classifier import Fixed, batch, task
from tests.toys import PairsData, trainer


def matrix_options(kind: str, folder: Path, build: Callable[[], Any]) -> dict[str, Any]:
    return {"every": 2}


class Bowls(Task):
    """Three heads, each a bowl with its own centre, over one shared vector; one has an output of its own; one may be silent."""

    centres = torch.tensor([[3.0, 0.0], [2.0, 1.0], [-4.0, 0.0]])
    head_names: Sequence[str] = ("left", "near", "far")

    def __init__(self, silent: str | None = None) -> None:
        super().__init__(optimizer=partial(torch.optim.SGD, lr=1e-3))
        self.shared, self.own, self.silent = nn.Parameter(torch.tensor([1.0, 1.0])), nn.Parameter(torch.tensor(2.0)), silent

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {n: ((self.shared - c) ** 2).sum() for n, c in zip(self.head_names, self.centres, strict=True)}
        found["left"] = found["left"] + self.own**2
        if self.silent is not None:
            found[self.silent] = found[self.silent] * 0
        return found


def measured(made: Affinity, of: Task, folder: Path, steps: int = 1) -> Tensor:
    trainer(folder, max_steps=steps, callbacks=[made], limit_val_batches=0).fit(of, PairsData(0))
    return made.table()


def test_a_look_ahead_is_the_share_by_which_the_loss_falls(tmp_path: Path) -> None:
    class Still(Bowls):
        def __init__(self) -> None:
            super().__init__()
            self._optimizer = partial(torch.optim.SGD, lr=0.0)

    found = measured(Affinity(step=0.1), Still(), tmp_path)
    at, own = torch.tensor([1.0, 1.0]), torch.tensor([4.0, 0.0, 0.0])
    for i, source in enumerate(Bowls.centres):
        gradient = 2 * (at - source)
        moved = at - 0.1 * at.norm() * gradient / gradient.norm()
        before, after = (((each - Bowls.centres) ** 2).sum(1) + own for each in (at, moved))
        torch.testing.assert_close(found[i].float(), 1 - after / before)
    assert found[0, 1] > 0 > found[0, 2]  # the near one is helped, the far one is harmed


def test_the_cosine_is_that_of_the_gradients_of_the_shared_weights(tmp_path: Path) -> None:
    found = measured(Affinity(measure="cosine"), Bowls(), tmp_path)
    away = torch.tensor([1.0, 1.0]) - Bowls.centres
    expected = nn.functional.cosine_similarity(away[:, None], away[None], dim=-1)
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=0)  # measured after the first, small step


def test_a_head_without_a_label_is_left_out(tmp_path: Path) -> None:
    found = measured(Affinity(), Bowls(silent="near"), tmp_path)
    assert found[[0, 2]][:, [0, 2]].isfinite().all()
    assert found[1].isnan().all() and found[:, 1].isnan().all()


def test_no_groups_are_told_where_a_pair_was_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Affinity()
    measured(made, Bowls(silent="near"), tmp_path)
    assert made.groups() == [] and "no groups, since two heads" in capsys.readouterr().err


def test_the_means_are_over_the_measurements(tmp_path: Path) -> None:
    made = Affinity(every=3)
    measured(made, Bowls(), tmp_path, steps=7)
    assert (made.counts == 3).all()  # batches 1, 4 and 7


def test_the_run_gets_a_table_a_picture_and_the_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Affinity(every=1)
    measured(made, Bowls(), tmp_path, steps=3)
    with (tmp_path / "affinity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == list(Bowls.head_names)
    assert [row["group"] for row in rows] == ["1", "1", "2"]
    assert float(rows[0]["to near"]) == pytest.approx(float(made.table()[0, 1]), abs=1e-6)
    assert (tmp_path / "affinity.png").stat().st_size > 1000
    assert "heads=[[left,near],[far]]" in capsys.readouterr().err


@pytest.mark.parametrize("sharing", ["soft", "hard"])
def test_heads_that_share_nothing_are_refused(tmp_path: Path, sharing: str) -> None:
    groups = None if sharing == "soft" else [["genre"], ["metre"]]
    of = task(sharing=sharing, heads=groups)
    with pytest.raises(ValueError, match="needs weights that two heads of Classifier share"):
        trainer(tmp_path, max_steps=2, callbacks=[Affinity()], limit_val_batches=0).fit(of, Fixed([batch()]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "dot"}, "affinity.measure is 'dot', must be one of lookahead, cosine"),
        ({"every": 0}, "affinity.every is 0, must be at least 1"),
        ({"step": 0.0}, r"affinity.step is 0.0, must be in \(0, 1\)"),
        ({"num_groups": 0}, "affinity.num_groups is 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Affinity(**options)
