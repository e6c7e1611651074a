"""Embedding distances against their formulas; the checkpoint's format; the network knows a violin from a drum kit."""

import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm
from symusic import Note, Score, Tempo, Track

from etude.metrics.audio import musicnn
from etude.metrics.audio.embedding_distances import bandwidth, frechet_audio_distance, kernel_audio_distance
from etude.metrics.audio.musicnn import TAGS, Musicnn
from etude.metrics.audio.tf_checkpoint import MAGIC, read_variables
from etude.render.scores import render


def rows(seed: int, count: int = 60, *, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 5)) + shift


def test_fad_is_the_formula() -> None:
    a, b = rows(0), 1.3 * rows(1) + 0.5
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    one, other = np.cov(a.T), np.cov(b.T)
    expected = mean + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert frechet_audio_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_kad_is_the_formula_and_its_bandwidth_is_the_references() -> None:
    a, b = rows(0, 20, shift=100.3), rows(1, 30, shift=100.0)
    far = [np.linalg.norm(x - y) for i, x in enumerate(b) for y in b[:i]]
    assert bandwidth(b) == pytest.approx(np.median(far))

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-((x - y) ** 2).sum() / (2 * np.median(far) ** 2)))

    within = [np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    expected = 100 * (sum(within) - 2 * np.mean([k(x, y) for x in a for y in b]))
    assert kernel_audio_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_distances_grow_with_the_shift_and_kad_is_unbiased() -> None:
    found = [
        (frechet_audio_distance(rows(0, shift=s), rows(1)), kernel_audio_distance(rows(0, shift=s), rows(1))) for s in (0, 1, 2)
    ]
    assert [sorted(column) == list(column) for column in zip(*found, strict=True)] == [True, True]
    small = [kernel_audio_distance(rows(2 * s, 10), rows(2 * s + 1, 10)) for s in range(200)]
    assert abs(np.mean(small)) < 0.3 and min(small) < 0
    with pytest.raises(ValueError, match="shapes"):
        kernel_audio_distance(rows(0), rows(1)[:1])
    with pytest.raises(ValueError, match="mostly equal"):
        kernel_audio_distance(rows(0), np.zeros((9, 5)))


# --- the checkpoint ---


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def block(entries: list[tuple[int, bytes, bytes]]) -> bytes:
    """Of (length of the shared prefix, rest of the key, value)."""
    body = b"".join(varint(shared) + varint(len(own)) + varint(len(value)) + own + value for shared, own, value in entries)
    return body + struct.pack("<II", 0, 1)


def entry(shape: list[int], offset: int, size: int, dtype: int = 1) -> bytes:
    dims = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(n) for n in shape))
    message = b"\x08" + varint(dtype) + b"\x12" + varint(len(dims)) + dims
    return message + b"\x20" + varint(offset) + b"\x28" + varint(size) + b"\x35" + b"\0" * 4


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    numbers = np.arange(7, dtype="<f4")
    table = block([(0, b"", b"\x08\x01"), (0, b"a/kernel", entry([2, 3], 0, 24)), (2, b"number", entry([], 0, 8, 9)),
                   (2, b"scalar", entry([], 24, 4))])  # fmt: skip
    index = block([(0, b"a/zz", varint(0) + varint(len(table)))])
    at = len(table) + 5
    footer = (varint(0) + varint(0) + varint(at) + varint(len(index))).ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    (tmp_path / ".index").write_bytes(table + b"\0" * 5 + index + b"\0" * 5 + footer)
    with pytest.raises(ValueError, match="no such file"):
        read_variables(tmp_path)
    (tmp_path / ".data-00000-of-00001").write_bytes(numbers.tobytes())
    found = read_variables(tmp_path)
    assert set(found) == {"a/kernel", "a/scalar"}
    np.testing.assert_array_equal(found["a/kernel"], numbers[:6].reshape(2, 3))
    assert found["a/scalar"] == 6
    (tmp_path / ".index").write_bytes(b"no index at all" * 9)
    with pytest.raises(ValueError, match="is no index"):
        read_variables(tmp_path)


# --- the network ---


def played(program: int, *, drums: bool = False) -> np.ndarray:
    score = Score(480)
    score.tempos.append(Tempo(0, 120))
    track = Track(program=program, is_drum=drums)
    for number in range(8):
        track.notes.append(Note(240 * number, 230, (36, 42, 38, 42)[number % 4] if drums else 67 + 2 * (number % 4), 100))
    score.tracks.append(track)
    return render(score, sample_rate=16_000).mean(0)


def test_the_network_knows_its_instruments() -> None:
    if find_spec("musicnn") is None:
        pytest.skip("musicnn is not installed")
    model = Musicnn()
    piano, drums = (model.tags(played(program, drums=kit), sample_rate=16_000) for program, kit in ((0, False), (0, True)))
    assert len(TAGS) == len(set(TAGS)) == 50
    assert piano["piano"] > 0.3 and piano["piano"] > 3 * drums["piano"]
    assert drums["drums"] + drums["beat"] + drums["techno"] > 3 * (piano["drums"] + piano["beat"] + piano["techno"])
    embeddings = model(played(0), sample_rate=16_000)
    assert embeddings.shape == (1, 200) and np.isfinite(embeddings).all()


def test_missing_weights_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(musicnn, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps musicnn"):
        Musicnn()
