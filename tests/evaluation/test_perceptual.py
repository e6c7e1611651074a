"""Listening to restyled audio: the truth is perfect, another song is not, and without truths only what needs none is told."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from symusic import Note, Score, Tempo, Track
from torch import Tensor

from etude.audio.mel import MelContract
from etude.evaluation.perceptual import COLUMNS, SECONDS, Listener, opening
from etude.render.scores import render

CONTRACT = MelContract()


@cache
def tune(seed: int, program: int = 0) -> Tensor:
    """Seven seconds of notes on a chord, mono [n]."""
    draws = np.random.default_rng(seed)
    score = Score(480)
    score.tempos.append(Tempo(0, 120))
    track = Track(program=program)
    for number in range(14):
        track.notes.append(Note(480 * number, 440, int(draws.choice([55, 60, 64, 67, 69, 72])), 90))
    score.tracks.append(track)
    samples = torch.from_numpy(render(score, sample_rate=16_000).mean(0))[: 7 * 16_000]
    return samples[: len(samples) // 256 * 256]


class Data:
    """A datamodule of two tunes of a style."""

    contract = CONTRACT

    def num_pieces(self, split: str, style: str) -> int:
        return 2

    def samples(self, split: str, style: str, index: int) -> Tensor:
        return tune(10 + index, 73)


@pytest.fixture(scope="module")
def listener() -> Any:
    pytest.importorskip("onnxruntime")
    return Listener(CONTRACT)


def test_the_truth_is_perfect_and_another_song_is_not(listener: Listener) -> None:
    sources, truths = [tune(0), tune(1)], [tune(0, 73), tune(1, 73)]
    reference = listener.reference(Data(), "any")
    assert reference.shape[1] == 200 and len(reference) >= 4
    options: dict[str, Any] = {"sources": sources, "truths": truths, "reference_pd": reference}
    oracle, copy, stranger = (listener.compare(x, **options) for x in (truths, sources, truths[::-1]))
    assert list(oracle) == list(copy) == list(COLUMNS)
    assert oracle["note_f1"] == 1 and oracle["wav_l1_nats"] < 1e-5 and oracle["wav_chroma_r"] == pytest.approx(1)
    assert oracle["range_off_db"] == 0 and copy["note_f1_source"] == 1
    assert copy["note_f1"] > 0.6 > stranger["note_f1"]
    assert copy["wav_l1_nats"] > 0.3 and copy["kad"] > oracle["kad"] and copy["fad"] > oracle["fad"]
    louder = listener.compare([2 * song for song in truths], **options)
    assert louder["wav_l1_nats"] < 0.05  # levels are matched
    alone = listener.compare(sources, sources=sources, truths=None, reference_pd=reference)
    assert {name for name, value in alone.items() if math.isnan(value)} >= {"note_f1", "wav_l1_nats", "wav_chroma_r"}


def test_a_mel_becomes_the_sound_of_its_source(listener: Listener) -> None:
    source = tune(0)
    sound = listener.sound(CONTRACT.log_mel(source[None])[0], source)
    torch.testing.assert_close(sound, source, atol=1e-3, rtol=0)


def test_no_more_than_the_opening_is_heard() -> None:
    class Long(Data):
        def samples(self, split: str, style: str, index: int) -> Tensor:
            return torch.zeros(16_000 * 60)

    assert len(opening(Long(), "test", "any", 0)) == round(SECONDS * 16_000 / 256) * 256
