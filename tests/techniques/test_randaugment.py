"""RandAugment: each operation does what it says to scores and mels, labels stay, and what does not fit is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.alone import alone
from etude.techniques.data.randaugment import MEL_OPERATIONS, OF_MELS, RandAugment
from etude.tokens.musical_changes import OF_SCORES, changed_score
from tests.robust import first_batch, pair
from tests.tasks.test_classifier import task as small_classifier
from tests.test_composition import build, fit
from tests.toys import same


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_operations_on_scores(tmp_path: Path) -> None:
    task, data = pair("classifier", tmp_path)
    tokenizer: Any = data.tokenizer
    single = alone(task, first_batch(data))
    length = int((single["documents"][0] >= 0).sum())
    ids, place = single["tokens"][0, :length].numpy(), np.arange(length)
    body = ids[ids >= tokenizer.first_body]
    bars = len(tokenizer.bar_starts(body))
    changed = set()
    for seed in range(6):
        for name in OF_SCORES:
            made, moved = changed_score(name, tokenizer, ids, place, 1.0, draws(seed))
            kept = tokenizer.bar_starts(made[made >= tokenizer.first_body])
            if name == "drop_bars":
                assert bars / 2 - 1 <= len(kept) <= bars and (np.diff(moved) > 0).all() and np.array_equal(made, ids[moved])
            elif name == "swap_bars":
                assert sorted(moved.tolist()) == place.tolist() and len(kept) == bars and np.array_equal(made, ids[moved])
            else:
                assert np.array_equal(moved, place) and len(kept) == bars
            if name == "transpose" and not np.array_equal(made, ids):
                shifts = [n for n in range(-6, 7) if np.array_equal(tokenizer.transposition(n)[ids], made)]
                assert len(shifts) == 1
            changed |= {name} if len(made) != len(ids) or not np.array_equal(made, ids) else set()
            still, _ = changed_score(name, tokenizer, ids, place, 0.0, draws(seed))
            assert name == "swap_bars" or np.array_equal(still, ids)
    assert {"transpose", "drop_bars", "swap_bars"} <= changed


def test_a_batch_of_scores_keeps_its_labels_and_its_features_fit(tmp_path: Path) -> None:
    task, data = pair("classifier", tmp_path)
    batch = first_batch(data)
    single = alone(task, batch)
    found = RandAugment(num=3, magnitude=1.0).transform_batch(task, batch)
    assert not torch.equal(found["tokens"], single["tokens"][:, : found["tokens"].shape[1]])
    for name in ("label_genre", "label_half", "piece"):
        assert torch.equal(task.documents(found, name), task.documents(single, name))
    for row in range(len(found["tokens"])):
        length = int((found["documents"][row] >= 0).sum())
        for name, values in data.tokenizer.features(found["tokens"][row, :length].numpy()).items():
            assert found[f"feature_{name}"][row, :length].tolist() == values.tolist()
        assert found["positions"][row, :length].tolist() == list(range(length))


def test_operations_on_mels() -> None:
    mel = torch.randn(16, 20, generator=draws(9))
    for name in OF_MELS:
        made = MEL_OPERATIONS[name](mel, 1.0, draws(1))
        assert made.shape == mel.shape and not torch.equal(made, mel)
        assert torch.allclose(MEL_OPERATIONS[name](mel, 0.0, draws(1)), mel)
        difference = made - mel
        if name == "level":
            assert difference.std() < 1e-6 and difference.abs().max() <= 0.3
        if name == "tilt":
            assert difference.std(1).max() < 1e-6 and difference[0].mean() * difference[-1].mean() < 0
        if name == "noise":
            assert difference.std() <= 0.11
        if name.startswith("mask"):
            hidden = (made == mel.mean()).all(1 if name == "mask_bands" else 0)
            assert 0 < hidden.sum() <= 0.4 * len(hidden) and torch.equal(made == mel.mean(), difference != 0)


@pytest.mark.parametrize("kind", ["classifier", "grader"])
def test_it_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    def run(folder: str, **options: Any) -> dict[str, Any]:
        return fit(tmp_path / folder, lambda: pair(kind, tmp_path), [RandAugment()], **options)

    whole = run("whole")
    run("half", kill_at=3)
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])


def test_bad_options_and_tasks_are_told(tmp_path: Path) -> None:
    for options, told in (
        ({"num": 0}, "num is 0, must be at least 1"),
        ({"magnitude": 2.0}, r"magnitude is 2\.0, must be in \[0, 1\]"),
        ({"operations": []}, "operations is empty"),
    ):
        given: dict[str, Any] = dict(options)
        with pytest.raises(ValueError, match=rf"technique\.randaugment\.{told}"):
            RandAugment(**given)
    gan, _ = build("gan", tmp_path)
    with pytest.raises(ValueError, match="technique randaugment is for classifiers and language models, and ToyGan is neither"):
        RandAugment().setup(None, gan, "fit")  # type: ignore[arg-type]
    scores, (mels, _) = small_classifier(labels={"key": ("C major", "G major")}), pair("grader", tmp_path)
    with pytest.raises(ValueError, match="Grader has no transpose; choose among level"):
        RandAugment(operations=["transpose"]).setup(None, mels, "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="transpose would change the label key of this Classifier"):
        RandAugment(operations=["transpose"]).setup(None, scores, "fit")  # type: ignore[arg-type]
    assert "transpose" not in RandAugment().fitting(scores)
