"""Features of mels and waveforms: segment statistics, onsets and pitch classes, and how well two songs agree in them.

Shapes: m mel bands, f frames, n segments or samples; 12 pitch classes from C. Mels are natural-log magnitudes.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from etude.audio.chroma import chroma_filterbank, mel_chroma_filterbank
from etude.audio.mel import MelContract
from etude.metrics.audio.mel_distances import common_part

Floats = NDArray[np.float64]
ONSET_RANGE = math.log(10) * 80 / 20  # nats in 80 dB
SOUNDING = 1e-3  # of the loudest frame's chroma (60 dB below it); quieter frames count as silent


def segment_features(log_mel_mf: ArrayLike, *, segment_frames: int = 128) -> Floats:
    """Mean and standard deviation of each band, in nats, for each whole segment: float64 [n, 2 m].

    Frames after the last whole segment are not used. A song shorter than one segment counts as one segment.

    Raises:
        ValueError: no frames.
    """
    mel = np.asarray(log_mel_mf, np.float64)
    if mel.ndim != 2 or mel.shape[1] == 0:
        raise ValueError(f"mel has shape {mel.shape}; give [bands, 1 or more frames]")
    count = max(mel.shape[1] // segment_frames, 1)
    whole = mel[:, : count * segment_frames].reshape(len(mel), count, -1)
    return np.concatenate([whole.mean(axis=2), whole.std(axis=2)], axis=0).T


# --- onsets ---


def onset_strength(log_mel_mf: ArrayLike) -> Floats:
    """Onset strength of each frame: the half-wave rectified spectral flux, in nats, float64 [f].

    It is the mean over bands of the increase since the previous frame. Values are limited from below to 80 dB under the
    song's loudest, so that faint noise after silence is no onset.

    Source: Böck and Widmer 2013, section 2, without their vibrato filter; the floor as in librosa's `power_to_db`.
    """
    mel = np.asarray(log_mel_mf, np.float64)
    rises = np.diff(np.maximum(mel, mel.max() - ONSET_RANGE), axis=1).clip(min=0).mean(axis=0)
    return np.concatenate([[0.0], rises])


def pick_onsets(strength: ArrayLike, *, frame_rate: float, threshold: float = 0.07) -> Floats:
    """Returns the onset times in seconds, ascending: the peaks of an onset strength.

    A frame is an onset if its strength is the largest within 30 ms on both sides, if it exceeds the mean within 100 ms
    on both sides by `threshold` times the song's largest strength, and if the previous onset is more than 30 ms ago.

    Args:
        strength: [f], see `onset_strength`.
        frame_rate: frames per second.

    Source: Böck, Krebs and Schedl 2012, section 2.4 (online peak picking), windows as in librosa's `onset_detect`.
    """
    found = np.asarray(strength, np.float64)
    if not len(found) or found.max() <= 0:
        return np.empty(0)
    near, wide = (2 * max(round(seconds * frame_rate), 1) + 1 for seconds in (0.03, 0.1))
    peak = maximum_filter1d(found, near, mode="constant")
    mean = uniform_filter1d(found, wide, mode="nearest")
    frames: list[int] = []
    for frame in np.flatnonzero((found == peak) & (found > mean + threshold * found.max())).tolist():
        if not frames or frame - frames[-1] > 0.03 * frame_rate:
            frames.append(frame)
    return np.array(frames, np.float64) / frame_rate


def onset_agreement(a: ArrayLike, b: ArrayLike, *, frame_rate: float, window_seconds: float = 0.05) -> float:
    """F-measure, 0..1, of the onsets of two songs, matched one to one within a window; NaN if neither has onsets.

    2 matches / (onsets of a + onsets of b), with the largest possible number of matches.

    Args:
        a, b: natural-log mels [m, f] of one song, see `common_part` for lengths.
        frame_rate: frames per second of both.
        window_seconds: largest time between matched onsets.

    Source: MIREX onset detection, as in mir_eval's `onset.f_measure`, which returns 0 instead of NaN.
    """
    first, second = (pick_onsets(onset_strength(x), frame_rate=frame_rate) for x in common_part(a, b))
    total = len(first) + len(second)
    return 2 * count_matches(first, second, window=window_seconds) / total if total else math.nan


def count_matches(a: Floats, b: Floats, *, window: float) -> int:
    """Returns the size of the largest one-to-one matching of two ascending lists, with pairs at most `window` apart.

    Taking the earliest possible partner each time is optimal for sorted numbers, so one pass is enough.
    """
    matches = i = j = 0
    while i < len(a) and j < len(b):
        if abs(a[i] - b[j]) <= window + 1e-9:
            matches, i, j = matches + 1, i + 1, j + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return matches


# --- pitch classes ---


def chroma_similarity(a: ArrayLike, b: ArrayLike, *, contract: MelContract) -> float:
    """Mean cosine similarity, 0..1, of the chroma of two mels over the frames in which `b` is not silent; NaN if none.

    Two unrelated tunes still have 0.7 to 0.9, since broad bands and drums raise all pitch classes: compare tunes with
    `chroma_correlation` instead. `mel_chroma_filterbank` says what a mel of few bands cannot resolve.

    Args:
        a: the natural-log mel [m, f] to compare.
        b: the reference; see `common_part` for lengths.
    """
    return _cosine(*_mel_chroma(a, b, contract))


def chroma_correlation(a: ArrayLike, b: ArrayLike, *, contract: MelContract) -> float:
    """Correlation, -1..1, of the chroma of two mels over time: about 0 for two unrelated tunes; NaN if nothing changes.

    Pearson's correlation over pitch classes and frames. Each frame's chroma is scaled to length 1 and each class's mean
    over the song is subtracted, so that neither the level nor a constant timbre counts. Arguments: see
    `chroma_similarity`.
    """
    return _correlation(*_mel_chroma(a, b, contract))


def waveform_chroma_similarity(a: ArrayLike, b: ArrayLike, *, sample_rate: int) -> float:
    """Like `chroma_similarity`, but of two waveforms [n], in windows of a quarter of a second.

    Semitones are resolved from 200 Hz upwards.
    """
    return _cosine(*common_part(waveform_chroma(a, sample_rate=sample_rate), waveform_chroma(b, sample_rate=sample_rate)))


def waveform_chroma_correlation(a: ArrayLike, b: ArrayLike, *, sample_rate: int) -> float:
    """As `chroma_correlation`, of two waveforms [n], in windows of a quarter of a second."""
    return _correlation(*common_part(waveform_chroma(a, sample_rate=sample_rate), waveform_chroma(b, sample_rate=sample_rate)))


def waveform_chroma(samples: ArrayLike, *, sample_rate: int) -> Floats:
    """Magnitude of each pitch class over time: float64 [12, f].

    Windows last about a quarter of a second; each starts a quarter of a window after the previous one.

    Args:
        samples: mono, [n], in [-1, 1], n at least 1.
        sample_rate: samples per second.
    """
    n_fft = 2 ** round(math.log2(sample_rate / 4))
    wave = torch.as_tensor(np.asarray(samples, np.float32))
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(wave, n_fft, n_fft // 4, window=window, center=True, pad_mode="constant", return_complex=True)
    bin_hz = sample_rate / n_fft
    frequencies = torch.arange(n_fft // 2 + 1) * bin_hz
    bank = chroma_filterbank(frequencies, widths_hz=torch.full_like(frequencies, 0.6 * bin_hz))
    return (bank @ spectrum.abs()).double().numpy()


def _mel_chroma(a: ArrayLike, b: ArrayLike, contract: MelContract) -> tuple[Floats, Floats]:
    bank = mel_chroma_filterbank(contract).double().numpy()
    first, second = (bank @ np.exp(mel) for mel in common_part(a, b))
    return first, second


def _sounding(chroma_12f: Floats) -> NDArray[np.bool_]:
    """Which frames are not silent: bool [f]."""
    norms = np.linalg.norm(chroma_12f, axis=0)
    sounding: NDArray[np.bool_] = (norms > 0) & (norms >= SOUNDING * norms.max(initial=0))
    return sounding


def _unit(chroma_12f: Floats) -> Floats:
    """Each frame scaled to length 1; silent frames are 0."""
    return np.where(_sounding(chroma_12f), chroma_12f / np.maximum(np.linalg.norm(chroma_12f, axis=0), 1e-30), 0.0)


def _cosine(a: Floats, b: Floats) -> float:
    heard = _sounding(b)
    return float((_unit(a) * _unit(b)).sum(axis=0)[heard].mean()) if heard.any() else math.nan


def _correlation(a: Floats, b: Floats) -> float:
    first, second = (unit - unit.mean(axis=1, keepdims=True) for unit in (_unit(a), _unit(b)))
    size = math.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size > 1e-9 else math.nan
