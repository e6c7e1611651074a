"""CutMix: whole bars or frames of another example, labels by what each has in the result, nothing where nothing is cut."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.alone import alone
from etude.techniques.data.cutmix import Cutmix, bar_borders
from tests.robust import first_batch, pair
from tests.test_composition import build, fit
from tests.toys import same


def test_nothing_is_cut_at_zero(tmp_path: Path) -> None:
    off = fit(tmp_path / "off", lambda: pair("grader", tmp_path), [])
    none = fit(tmp_path / "none", lambda: pair("grader", tmp_path), [Cutmix(most=0.0)])
    assert same(off["trained"], none["trained"])
    task, data = pair("classifier", tmp_path)
    task.eval()
    batch = first_batch(data)
    plain, cut = task.losses(batch), task.losses(Cutmix(most=0.0).transform_batch(task, batch))
    for name in plain:
        torch.testing.assert_close(cut[name], plain[name], atol=1e-5, rtol=1e-5)


def test_frames_come_with_their_truths(tmp_path: Path) -> None:
    task, data = pair("grader", tmp_path)
    batch = first_batch(data)
    found = Cutmix(most=1.0, seed=1).transform_batch(task, batch)
    moved = (found["mel"] != batch["mel"]).any(2)[0]  # [b, f]
    assert moved.any() and not moved.all()
    frames = moved.any(0).nonzero()[:, 0]
    assert len(frames) == int(frames.max() - frames.min()) + 1  # one interval
    for row in range(batch["mel"].shape[1]):
        at = int(frames[0])
        other = next(
            j for j in range(batch["mel"].shape[1]) if torch.equal(found["mel"][0, row, :, at], batch["mel"][0, j, :, at])
        )
        assert torch.equal(found["defects"][0, row][:, frames], batch["defects"][0, other][:, frames])
        share = 1 - len(frames) / moved.shape[1]
        expected = share * batch["quality"][0, row] + (1 - share) * batch["quality"][0, other]
        torch.testing.assert_close(found["quality"][0, row], expected)


def test_whole_bars_of_scores_are_exchanged(tmp_path: Path) -> None:
    task, data = pair("classifier", tmp_path)
    batch: Any = first_batch(data)
    single, tokenizer = alone(task, batch), data.tokenizer

    def bars(of: Any, row: int) -> list[tuple[int, ...]]:
        length = int((of["documents"][row] >= 0).sum())
        ids = of["tokens"][row, :length].numpy()
        return [tuple(ids[a:b].tolist()) for a, b in itertools.pairwise(bar_borders(ids, tokenizer))]

    mixed = 0
    for seed in range(8):
        technique = Cutmix(most=1.0, seed=seed)
        found = technique.transform_batch(task, batch)
        draws = technique.generator(0)
        torch.rand((), generator=draws)
        order = torch.randperm(len(single["tokens"]), generator=draws)
        for row in range(len(single["tokens"])):
            own, other, made = bars(single, row), bars(single, int(order[row])), bars(found, row)
            assert len(made) == len(own) and all(bar in own or bar in other for bar in made)
            foreign = sum(len(bar) for place, bar in enumerate(made) if bar != own[place])
            total = int((found["documents"][row] >= 0).sum())
            assert foreign / total <= 1 - float(task.documents(found, "mixed_share")[row]) + 1e-6
            mixed += made != own
    assert mixed > 2
    assert torch.equal(task.documents(found, "mixed_label_genre"), task.documents(single, "label_genre")[order])
    assert torch.equal(task.documents(found, "label_genre"), task.documents(single, "label_genre"))
    assert all(value.isfinite() for value in task.losses(found).values())


def test_borders_of_bars() -> None:
    class Bars:
        first_body = 3

        def bar_starts(self, ids: np.ndarray) -> np.ndarray:
            return np.flatnonzero(ids == 3)

    assert bar_borders(np.array([1, 3, 4, 5, 3, 6, 2]), Bars()) == [1, 4, 6]  # 0 and 2: special tokens around the body


@pytest.mark.parametrize("kind", ["classifier", "grader"])
def test_it_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    def run(folder: str, **options: Any) -> dict[str, Any]:
        return fit(tmp_path / folder, lambda: pair(kind, tmp_path), [Cutmix()], **options)

    whole = run("whole")
    run("half", kill_at=3)
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])


def test_bad_options_and_tasks_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"technique\.cutmix\.most is 2, must be in \[0, 1\]"):
        Cutmix(most=2)
    gan, _ = build("gan", tmp_path)
    with pytest.raises(ValueError, match=r"technique cutmix is for classifiers and language models, and ToyGan is neither"):
        Cutmix().setup(None, gan, "fit")  # type: ignore[arg-type]
