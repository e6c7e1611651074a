"""Artefacts of generated audio: squeals in mels, clicks at the hop rate in waveforms; and how much of the dynamics is kept.

Shapes: m mel bands, f frames, n samples. Mels are natural-log magnitudes.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
NATS_PER_DECIBEL = math.log(10) / 20
QUIET_SHARE = 0.1  # of the hops, the quietest, in which clicks are looked for
SHORT_SECONDS, STEP_SECONDS = 3.0, 0.1
SILENT_DB, GATE_DB = -70.0, -20.0  # absolute; below the mean level of what is above it


def squeal_share(log_mel_mf: ArrayLike, highest_m: ArrayLike, *, margin_db: float = 6.0) -> float:
    """Share of frames, 0..1, with any band louder than in all training frames of the style, by more than `margin_db`.

    Args:
        log_mel_mf: [m, f], f at least 1. highest_m: maximum of each band over the training frames, in nats [m].
        margin_db: decibels above that maximum that are allowed.

    Raises:
        ValueError: shapes do not match, or no frames.
    """
    mel, highest = np.asarray(log_mel_mf, np.float64), np.asarray(highest_m, np.float64)
    if mel.ndim != 2 or not mel.shape[1] or highest.shape != (len(mel),):
        raise ValueError(f"mel has the shape {mel.shape} and highest {highest.shape}; give [bands, 1 or more frames] and [bands]")
    return float((mel > highest[:, None] + margin_db * NATS_PER_DECIBEL).any(axis=0).mean())


def click_level(samples_n: ArrayLike, *, sample_rate: int, click_rate: float = 62.5) -> float:
    """How much the energy in the quiet and steady parts of a waveform repeats at a rate, in decibels; 0 for none.

    The 10 % quietest periods of 1 / click_rate are taken. Their samples' energies, folded onto one period of 16 parts, are
    compared: 10 log10 (largest part / mean of the parts). Sound that does not know the rate fills all parts alike; a click in
    each period gives up to 12 dB. Each period counts the same, whatever its level.

    Args:
        samples_n: mono samples. sample_rate: samples per second. click_rate: that of a mel's frames, 16,000 / 256 Hz.

    Returns:
        The level, NaN for fewer than 40 periods with any sound in them.
    """
    samples = np.asarray(samples_n, np.float64)
    period = sample_rate / click_rate
    parts = 16
    count = int(len(samples) / period)
    edges = np.round(np.arange(count * parts + 1) * period / parts).astype(np.int64)
    if count < 1 or edges[-1] > len(samples):
        return math.nan
    energy = np.add.reduceat(samples[: edges[-1]] ** 2, edges[:-1]) / np.maximum(np.diff(edges), 1)
    folded = energy.reshape(count, parts)
    levels = folded.mean(axis=1)
    heard = np.flatnonzero(levels > 10 ** (SILENT_DB / 10) * max(levels.max(), 1e-12))
    if len(heard) < 40:
        return math.nan
    quiet = heard[np.argsort(levels[heard])[: max(40, round(QUIET_SHARE * len(heard)))]]
    shares = (folded[quiet] / levels[quiet, None]).mean(axis=0)
    return float(10 * np.log10(shares.max()))


def loudness_range(samples_n: ArrayLike, *, sample_rate: int) -> float:
    """Loudness range in decibels: the distance of the 10th and the 95th percentile of the level of 3 s; NaN if shorter or silent.

    Levels more than 20 dB below the mean of those above -70 dB do not count.

    Source: EBU Tech 3342, without its K weighting, so that it needs no filter; mono.
    """
    samples = np.asarray(samples_n, np.float64)
    width, step = round(SHORT_SECONDS * sample_rate), round(STEP_SECONDS * sample_rate)
    if len(samples) < width:
        return math.nan
    total = np.concatenate([[0.0], np.cumsum(samples**2)])
    starts = np.arange(0, len(samples) - width + 1, step)
    power = (total[starts + width] - total[starts]) / width
    power = power[power > 10 ** (SILENT_DB / 10)]
    if not len(power):
        return math.nan
    level = 10 * np.log10(power[power > power.mean() * 10 ** (GATE_DB / 10)])
    low, high = np.percentile(level, [10, 95])
    return float(high - low)
