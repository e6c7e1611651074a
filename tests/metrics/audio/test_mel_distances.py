"""Distances of mels against hand values and other people's code."""

import math

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torchmetrics.image.fid import _compute_fid

from etude.metrics.audio.mel_distances import common_part, frechet_distance, log_mel_l1, mel_cepstral_distortion, mmd

RANDOM = np.random.default_rng(0)


def mel(frames: int = 50, bands: int = 20) -> np.ndarray:
    return RANDOM.normal(-4, 2, (bands, frames))


def test_common_part_cuts_the_longer_and_takes_tensors() -> None:
    a, b = mel(100), torch.from_numpy(mel(104))
    first, second = common_part(a, b)
    assert first.shape == second.shape == (20, 100) and (second == b.numpy()[:, :100]).all()
    assert common_part(mel(1000), mel(1020))[0].shape[1] == 1000


@pytest.mark.parametrize("frames", [(100, 105), (1000, 1021), (0, 3), (0, 0)])
def test_common_part_refuses_what_is_not_one_song(frames: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="more than 2 % and 4 frames"):
        common_part(mel(frames[0]), mel(frames[1]))


def test_common_part_refuses_other_bands() -> None:
    with pytest.raises(ValueError, match="with the same mel settings"):
        common_part(mel(bands=20), mel(bands=21))


def test_l1_by_hand() -> None:
    a = np.zeros((2, 3))
    assert log_mel_l1(a, a) == 0
    assert log_mel_l1(a, np.array([[1.0, -1, 0], [0, 0, 4]])) == 1.0


@settings(max_examples=20)
@given(level=st.floats(-5, 5))
def test_distortion_is_blind_to_level_l1_is_not(level: float) -> None:
    a = mel()
    assert mel_cepstral_distortion(a, a + level) == pytest.approx(0, abs=1e-9)
    assert log_mel_l1(a, a + level) == pytest.approx(abs(level))


def test_distortion_with_torchaudios_cosines() -> None:
    a, b = mel(30, 40), mel(30, 40)
    cosines = torchaudio.functional.create_dct(14, 40, "ortho").double().numpy()  # [bands, coefficients], float32 cosines
    difference = ((a - b).T @ cosines)[:, 1:]
    expected = 10 / math.log(10) * np.sqrt(2 * (difference**2).sum(axis=1)).mean()
    assert mel_cepstral_distortion(a, b) == pytest.approx(expected, rel=1e-5)


def test_distortion_of_one_cosine_by_hand() -> None:
    # one orthonormal cosine of height h over the bands has c_d = h: the distortion is 10 / ln 10 * sqrt 2 * h
    cosine = math.sqrt(2 / 20) * np.cos(math.pi * 3 * (np.arange(20) + 0.5) / 20)
    a = mel()
    assert mel_cepstral_distortion(a, a + 0.5 * cosine[:, None]) == pytest.approx(10 / math.log(10) * math.sqrt(2) * 0.5)
    beyond = math.sqrt(2 / 20) * np.cos(math.pi * 14 * (np.arange(20) + 0.5) / 20)
    assert mel_cepstral_distortion(a, a + beyond[:, None]) == pytest.approx(0, abs=1e-9)


def test_frechet_is_that_of_torchmetrics_and_of_the_formula() -> None:
    a, b = mel(400), 1.5 * mel(300) + RANDOM.normal(size=(20, 20)) @ mel(300) * 0.1
    first, second = a / math.log(10), b / math.log(10)
    statistics = [(x.mean(axis=1), np.cov(x)) for x in (first, second)]
    tensors = [torch.from_numpy(x) for pair in statistics for x in pair]
    assert frechet_distance(a, b) == pytest.approx(_compute_fid(*tensors).item(), rel=1e-9)
    root = sqrtm(statistics[0][1] @ statistics[1][1]).real
    apart = ((statistics[0][0] - statistics[1][0]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(apart + np.trace(statistics[0][1] + statistics[1][1] - 2 * root), rel=1e-6)


def test_frechet_laws() -> None:
    a, b = mel(100), mel(120) + 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    # ln 10 nats are a bel: every one of 20 bands one bel louder
    assert frechet_distance(a, a + math.log(10)) == pytest.approx(20)
    # twice the spread in one dimension: (2 s - s)^2
    line = mel(100, bands=1)
    spread = np.std(line, ddof=1) / math.log(10)
    assert frechet_distance(line, line.mean() + 2 * (line - line.mean())) == pytest.approx(spread**2)


def test_frechet_of_fewer_frames_than_bands_and_of_constants() -> None:
    few, still = mel(5), np.tile(mel(1), (1, 10))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(still, still + math.log(10)) == pytest.approx(20)
    with pytest.raises(ValueError, match="2 or more frames"):
        frechet_distance(mel(1), mel(5))


def test_mmd_is_the_formula() -> None:
    a, b = RANDOM.normal(size=(7, 3)), RANDOM.normal(size=(5, 3)) + 1
    points = np.concatenate([a, b])
    gaps = [np.linalg.norm(points[i] - points[j]) for i in range(12) for j in range(i)]
    s = np.median(gaps)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return math.exp(-((x - y) ** 2).sum() / (2 * s**2))

    aa = np.mean([k(a[i], a[j]) for i in range(7) for j in range(7) if i != j])
    bb = np.mean([k(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    ab = np.mean([k(x, y) for x in a for y in b])
    assert mmd(a, b) == pytest.approx(aa + bb - 2 * ab)
    assert mmd(a + 1000, b + 1000) == pytest.approx(mmd(a, b))


def test_mmd_is_unbiased_for_equal_laws_and_grows_with_distance() -> None:
    draws = [mmd(RANDOM.normal(size=(20, 4)), RANDOM.normal(size=(20, 4))) for _ in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / math.sqrt(200) and min(draws) < 0
    far = [mmd(RANDOM.normal(size=(50, 4)), RANDOM.normal(size=(50, 4)) + shift) for shift in (0, 0.5, 1, 2)]
    assert far == sorted(far)


def test_mmd_of_constants_and_of_too_few() -> None:
    assert mmd(np.zeros((4, 2)), np.zeros((4, 2))) == 0
    with pytest.raises(ValueError, match="2 or more segments"):
        mmd(np.zeros((1, 2)), np.zeros((4, 2)))
