"""Grades of files: windows are joined without seams, silence is left out, and what can't be graded is told."""

from functools import partial

import numpy as np
import pytest
import torch

from etude.audio.degradations import normalise_level
from etude.audio.grades import FileGrades, grade_audio, intervals
from etude.audio.mel import MelContract
from etude.models.mel.grader import GraderNetwork
from etude.tasks.grader import Grader

CONTRACT = MelContract(sample_rate=8000, n_fft=256, hop_length=64, n_mels=16, f_max=4000.0)
FRAMES = 32
SIZE = FRAMES * 64


def grader() -> Grader:
    torch.manual_seed(3)
    network = partial(GraderNetwork, channels=4, dim=16, num_layers=2)
    made = Grader(model=network, contract=CONTRACT, defects=["click", "hum"], segment_frames=FRAMES, optimizer=torch.optim.AdamW)
    torch.nn.init.normal_(made.model.frames.weight, std=2.0)  # grades that differ
    torch.nn.init.normal_(made.model.borders.weight, std=2.0)
    return made.eval()


def noise(length: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def test_one_window_is_what_the_task_says() -> None:
    task, samples = grader(), noise(SIZE)
    found = grade_audio(task, samples, 8000, name="x")
    given = task.grade(torch.from_numpy(normalise_level(samples))[None])
    assert np.array_equal(found.frames_df, given["frames"][0].numpy()) and found.quality == pytest.approx(float(given["quality"]))
    assert np.array_equal(found.probability_d, given["clip"][0].numpy()) and found.seconds == SIZE / 8000


@pytest.mark.parametrize("length", [SIZE + 1, 2 * SIZE, 5 * SIZE + 777])
def test_every_frame_comes_from_the_window_in_whose_middle_it_lies(length: int) -> None:
    task, samples = grader(), noise(length)
    found = grade_audio(task, samples, 8000, name="x")
    assert found.frames_df.shape == (2, CONTRACT.num_frames(length))
    start = round(float(found.window_start_w[len(found.window_start_w) // 2]) * 8000)
    one = task.grade(torch.from_numpy(normalise_level(samples[start : start + SIZE]))[None])
    first, middle = start // 64, slice(FRAMES // 2 - 4, FRAMES // 2 + 4)
    assert np.allclose(found.frames_df[:, first + middle.start : first + middle.stop], one["frames"][0, :, middle], atol=1e-5)
    assert (np.diff(found.window_start_w) * 8000 <= SIZE / 2 + 1e-2).all()


def test_level_does_not_matter_and_silence_has_no_grade() -> None:
    task = grader()
    loud, soft = (grade_audio(task, size * noise(4 * SIZE), 8000, name="x") for size in (np.float32(1), np.float32(0.05)))
    assert np.allclose(loud.frames_df, soft.frames_df, atol=1e-4) and loud.quality == pytest.approx(soft.quality, abs=1e-3)
    half = np.concatenate([noise(4 * SIZE), np.zeros(4 * SIZE, np.float32)])
    found = grade_audio(task, half, 8000, name="x")
    assert found.window_start_w.max() < 4 * SIZE / 8000 and not found.frames_df[:, 5 * FRAMES :].any()


@pytest.mark.parametrize(
    ("samples", "rate", "told"),
    [
        (noise(SIZE - 1), 8000, r"song\.wav: lasts 0\.26 s; grading needs 0\.26 s"),
        (np.zeros(4 * SIZE, np.float32), 8000, r"song\.wav: is silent"),
        (noise(4 * SIZE), 4000, r"song\.wav: has 4000 samples a second, and the grader was trained at 8000"),
    ],
)
def test_what_can_not_be_graded_is_told(samples: np.ndarray, rate: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        grade_audio(grader(), samples, rate, name="song.wav")


def test_a_higher_rate_is_resampled() -> None:
    task, time = grader(), np.arange(4 * 16_000) / 16_000
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    one, two = grade_audio(task, tone, 16_000, name="x"), grade_audio(task, tone[::2].copy(), 8000, name="x")
    assert one.quality == pytest.approx(two.quality, abs=0.05) and one.seconds == two.seconds


def grades(frames: list[float], probability: float) -> FileGrades:
    empty = np.empty(0, np.float32)
    return FileGrades(
        ("hum",), 8.0, 1.0, np.array([probability], np.float32), np.array([frames], np.float32),
        np.zeros(1, np.float32), np.array([3.12], np.float32), empty, empty,
    )  # fmt: skip


def test_places_are_the_frames_near_the_highest_probability() -> None:
    found = grades([0, 0.9, 0.8, 0.1, 0, 0.5, 0, 0], 0.9)
    assert found.found() == {"hum": [(1.0, 3.0), (5.0, 6.0)]} and found.told() == "quality 3.1: hum 0:01-0:03, 0:05-0:06"
    assert grades([0.4] * 8, 0.49).found() == {} and grades([0.4] * 8, 0.49).told() == "quality 3.1"
    assert grades([0.4] * 8, 0.49).found(0.4) == {"hum": [(0.0, 8.0)]}


def test_intervals_are_runs() -> None:
    assert intervals(np.array([True, True, False, True]), 0.5) == [(0.0, 1.0), (1.5, 2.0)]
    assert intervals(np.zeros(3, bool), 0.5) == []
