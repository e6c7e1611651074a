"""Random changes of the sound of clean audio that are no defects: an equaliser, a room, a chorus, a driven amplifier.

A grader that has heard one synthesizer takes the vibrato, the noise and the spectrum of another one for defects. These changes
make many sounds of one (domain randomisation, Tobin et al. 2017).

Shapes: n samples of one channel.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.signal import fftconvolve

from etude.audio.degradations import Samples, normalise_level

CHANCE = 0.5  # of each change


def equaliser(samples_n: Samples, generator: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Gains that vary smoothly over the octaves, with a standard deviation of 6 dB; no phase is changed."""
    knots = np.geomspace(60, sample_rate / 2, 7)
    gain_k = generator.normal(0, 6, len(knots))
    spectrum = np.fft.rfft(samples_n)
    place = np.fft.rfftfreq(len(samples_n), 1 / sample_rate)
    gain = np.interp(np.log(np.maximum(place, knots[0])), np.log(knots), gain_k)
    changed_n: np.ndarray = np.fft.irfft(spectrum * 10 ** (gain / 20), len(samples_n))
    return changed_n


def room(samples_n: Samples, generator: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Adds reverberation: noise that decays by 60 dB in 0.2 to 1.5 s, at -24 to -6 dB."""
    seconds, level = generator.uniform(0.2, 1.5), generator.uniform(-24, -6)
    time_n = np.arange(round(seconds * sample_rate)) / sample_rate
    answer_n = generator.standard_normal(len(time_n)) * 10 ** (-3 * time_n / seconds)
    wet_n = fftconvolve(samples_n, answer_n)[: len(samples_n)]
    changed_n: np.ndarray = samples_n + wet_n * (10 ** (level / 20) * _size(samples_n) / max(_size(wet_n), 1e-12))
    return changed_n


def chorus(samples_n: Samples, generator: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Mixes in one to three copies, each delayed by 5 to 30 ms that vary by 0.5 to 4 ms, 0.2 to 3 times a second."""
    at_n = np.arange(len(samples_n), dtype=np.float64)
    total_n: np.ndarray = samples_n.astype(np.float64)
    for _ in range(int(generator.integers(1, 4))):
        delay, depth = generator.uniform(0.005, 0.03), generator.uniform(0.0005, 0.004)
        rate, phase = generator.uniform(0.2, 3), generator.uniform(0, 2 * math.pi)
        moved_n = at_n - sample_rate * (delay + depth * np.sin(2 * math.pi * rate * at_n / sample_rate + phase))
        total_n += generator.uniform(0.2, 0.7) * np.interp(moved_n, at_n, samples_n, left=0.0)
    return total_n


def amplifier(samples_n: Samples, generator: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A soft saturation, the hyperbolic tangent of samples at 0.1 to 0.7 root mean square: rounded, never flat."""
    drive = generator.uniform(0.1, 0.7) / max(_size(samples_n), 1e-12)
    changed_n: np.ndarray = np.tanh(samples_n * drive) / drive
    return changed_n


CHANGES: tuple[Callable[[Samples, np.random.Generator, int], np.ndarray], ...] = (amplifier, equaliser, chorus, room)


def recolour(samples_n: Samples, generator: np.random.Generator, sample_rate: int) -> Samples:
    """Applies each change with a chance of a half; the level and the places of onsets stay. Silence stays silence.

    samples_n: float32. generator: of all draws.
    """
    for change in CHANGES:
        if generator.random() < CHANCE:
            samples_n = normalise_level(change(samples_n, generator, sample_rate).astype(np.float32))
    return samples_n


def _size(samples_n: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(samples_n, dtype=np.float64))))
