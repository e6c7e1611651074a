"""RestyledClips mels as a set: the truth is perfect, the source keeps but is not the style, noise is neither."""

import numpy as np
import pytest

from etude.audio.mel import MelContract
from etude.metrics.audio.restyled import RestyledClips, compare_restyled

CONTRACT = MelContract(sample_rate=16000, n_fft=1024, hop_length=256, n_mels=40, f_min=30.0, f_max=8000.0)
DRAW = np.random.default_rng(0)


def clips(count: int, *, seed: int, tilt: float) -> np.ndarray:
    """Notes that begin every so often on some bands, under a slope of the style."""
    draw = np.random.default_rng(seed)
    mels = np.full((count, 40, 64), -8.0)
    for mel in mels:
        for start in range(0, 64, 8):
            bands = draw.choice(40, 6, replace=False)
            mel[bands, start:] = np.maximum(mel[bands, start:], 0.0 - 0.3 * np.arange(64 - start))
    return mels + tilt * np.linspace(-1, 1, 40)[:, None] + 0.1 * draw.normal(size=mels.shape)


SOURCES = clips(16, seed=1, tilt=0.0)
TRUTHS = SOURCES + 3 * np.linspace(-1, 1, 40)[:, None]
OTHERS = clips(16, seed=2, tilt=3.0)


def test_the_truth_is_perfect() -> None:
    found, turing = compare_restyled([RestyledClips(SOURCES, TRUTHS + 1e-6, TRUTHS, True)], contract=CONTRACT)
    assert found["rhythm"] == pytest.approx(1) and found["harmony"] == pytest.approx(1) and found["style"] == pytest.approx(1)
    assert turing.low <= 0.5 and found["diversity"] == pytest.approx(found["diversity_real"])


def test_doing_nothing_keeps_the_music_but_is_told() -> None:
    found, turing = compare_restyled([RestyledClips(SOURCES, SOURCES, OTHERS, False)], contract=CONTRACT)
    assert found["rhythm"] == pytest.approx(1) and found["harmony"] == pytest.approx(1)
    other, _ = compare_restyled([RestyledClips(SOURCES, clips(16, seed=3, tilt=3.0), OTHERS, False)], contract=CONTRACT)
    assert found["style"] < other["style"] - 0.1 and turing.score > 0.9


def test_other_music_of_the_style_is_not_told_but_keeps_nothing() -> None:
    found, turing = compare_restyled([RestyledClips(SOURCES, clips(16, seed=3, tilt=3.0), OTHERS, False)], contract=CONTRACT)
    assert turing.low <= 0.5 <= turing.high and found["style"] > 0.8
    assert found["harmony"] < 0.4


def test_one_output_for_all_has_no_diversity() -> None:
    found, _ = compare_restyled([RestyledClips(SOURCES, OTHERS[:1].repeat(16, axis=0), OTHERS, False)], contract=CONTRACT)
    assert found["diversity"] == 0 < found["diversity_real"]


def test_squeals_are_counted_above_the_training_maximum() -> None:
    squealing, highest = TRUTHS.copy(), TRUTHS.max(axis=(0, 2))
    frames = squealing.shape[-1]
    squealing[:, 5, : frames // 4] = highest[5] + 1.0
    found, _ = compare_restyled([RestyledClips(SOURCES, squealing, TRUTHS, True)], contract=CONTRACT)
    assert found["squeals"] == pytest.approx((frames // 4) / frames)
    assert found["quality"] == pytest.approx(np.mean([found[name] for name in ("rhythm", "harmony", "style")]))
    found, _ = compare_restyled([RestyledClips(SOURCES, squealing, TRUTHS, True, highest + 1.0)], contract=CONTRACT)
    assert found["squeals"] == 0


def test_too_few_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than two clips"):
        compare_restyled([RestyledClips(SOURCES[:1], TRUTHS[:1], TRUTHS[:1], True)], contract=CONTRACT)
