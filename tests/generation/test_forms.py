"""What the report says of forms and plans, read off notes whose bars are known."""

from pathlib import Path

import pytest

from etude.generation.forms import form_rows, plan_kept, plan_values, tell_plans
from etude.music.form import mark_plan
from etude.report.reports import Report
from tests.music.pieces import tune


def planned(bars: str, plan: tuple[int, ...]):
    score = tune(bars)
    mark_plan(score, plan, [1920 * number for number in range(len(plan))])
    return score


def test_the_form_that_came_is_told_beside_the_one_asked_for() -> None:
    drawn = [tune("ABABCDAB"), tune("ABABABAB"), tune("CDCDABCD")]
    for asked in ({"form": "AABA", "num_bars": 8}, {"form": "bbab", "form_bars": 2}):
        ((label, wanted, got, share),) = form_rows(asked, drawn)
        assert (label, got, share) == ("form", "AABA", "67% of 3")
        assert wanted == f"{asked['form'].upper()}, 2 bars each"
    assert form_rows({"key": "C major"}, drawn) == []


def test_a_plan_that_is_kept_and_one_that_is_not(tmp_path: Path) -> None:
    kept, broken = planned("ABAC", (1, 2, 1, 3)), planned("ABCC", (1, 2, 1, 3))
    found = plan_kept(broken)
    assert found is not None and found.rand_index == pytest.approx(4 / 6)
    assert plan_values({}, broken) == {"plan": "ABAC", "bars as they came": "ABCC"}
    assert plan_values({"form": "AB", "num_bars": 4}, kept)["got form"] == "AB"
    (line,) = tell_plans([kept, broken], [None, None], ["000", "001"], Report(""))
    assert "same letter 1 of 2 are alike, of those with different letters 1 of 10" in line
    assert tell_plans([tune("AB")], [None], ["000"], Report("")) == []
    behind = plan_kept(kept, prompt=tune("AB"))
    assert behind is not None and behind.same + behind.different == 5
