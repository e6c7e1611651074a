"""Controlled degradations of audio: the defects that a grader learns to find, each with a known strength and place.

A degradation is a pure function of (samples, strength, generator, sample rate). Strengths lie in [0, 1]; each function says what
0 and 1 mean in its unit. All randomness comes from the generator, so equal generators give equal audio.

Shapes: n samples of one channel.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample

Samples = NDArray[np.float32]
Marks = NDArray[np.bool_]

LEVEL_DB = -23.0  # root mean square that `normalise_level` gives, in decibels of full scale
FADE_SECONDS, SLOW_FADE_SECONDS = 0.01, 0.25  # with which a degradation of a part of the audio begins and ends; of `wow`
OVERSAMPLING = 4  # of the interpolation in `wow`, whose error is then below -50 dB up to half of the highest frequency


class Degraded(NamedTuple):
    """Degraded samples, and which of them the defect covers."""

    samples_n: Samples
    marks_n: Marks


Degradation = Callable[[Samples, float, np.random.Generator, int], Degraded]


def normalise_level(samples_n: Samples) -> Samples:
    """Returns the samples at a root mean square of `LEVEL_DB`, so that level alone tells nothing; silence stays silence."""
    power = float(np.mean(np.square(samples_n, dtype=np.float64)))
    if power < 1e-12:
        return samples_n.astype(np.float32)
    return (samples_n * (10 ** (LEVEL_DB / 20) / math.sqrt(power))).astype(np.float32)


# --- the defects ---


def clipping(samples_n: Samples, strength: float, generator: np.random.Generator, sample_rate: int) -> Degraded:
    """Limits the magnitude of samples, as an input driven too hard does.

    Strength: the share of the samples that are limited, from 1 % (0) to 30 % (1), geometric.
    """
    mask_n, marks_n = _part(len(samples_n), generator, sample_rate)
    share = _between(0.01, 0.3, strength)
    limit = float(np.quantile(np.abs(samples_n[marks_n]), 1 - share))
    return Degraded(_faded(samples_n, np.clip(samples_n, -limit, limit), mask_n), marks_n)


def click(samples_n: Samples, strength: float, generator: np.random.Generator, sample_rate: int) -> Degraded:
    """Adds clicks, as scratches and lost clock pulses do: bursts of noise that decay within 0.1 to 1 ms, one to four a second.

    Strength: the peak of a click over the root mean square of the audio, from 8 dB (0) to 28 dB (1).
    """
    seconds = len(samples_n) / sample_rate
    count = max(1, round(seconds * float(generator.uniform(0.5, 4))))
    peak = _rms(samples_n) * 10 ** ((8 + 20 * strength) / 20)
    out_n, marks_n = samples_n.copy(), np.zeros(len(samples_n), bool)
    for start in generator.integers(0, len(samples_n), count).tolist():
        decay = float(generator.uniform(1e-4, 1e-3)) * sample_rate
        length = min(max(2, round(4 * decay)), len(samples_n) - start)
        burst = generator.uniform(-1, 1, length) * np.exp(-np.arange(length) / decay)
        burst[0] = generator.choice([-1.0, 1.0])
        out_n[start : start + length] += (peak * burst).astype(np.float32)
        marks_n[start : start + length] = True
    return Degraded(out_n, marks_n)


def dropout(samples_n: Samples, strength: float, generator: np.random.Generator, sample_rate: int) -> Degraded:
    """Mutes gaps with edges of 1 ms, as lost packets and bad tape do: one or two in every two seconds.

    Strength: the length of a gap, from 20 ms (0) to 300 ms (1), geometric.
    """
    length = min(round(_between(0.02, 0.3, strength) * sample_rate), len(samples_n) // 2)
    edge = max(1, round(0.001 * sample_rate))
    count = max(1, round(len(samples_n) / sample_rate / 2 * float(generator.uniform(1, 2))))
    gain_n, marks_n = np.ones(len(samples_n), np.float32), np.zeros(len(samples_n), bool)
    shape = np.concatenate([np.linspace(1, 0, edge), np.zeros(max(0, length - 2 * edge)), np.linspace(0, 1, edge)])
    total = np.concatenate([[0.0], np.cumsum(np.square(samples_n, dtype=np.float64))])
    power = total[length:] - total[:-length]  # of the audio that a gap at each place would mute
    for _ in range(count):
        starts = generator.integers(0, len(power), 8)
        start = int(starts[np.argmax(power[starts])])  # a gap in silence is none
        gain_n[start : start + len(shape)] *= shape.astype(np.float32)[: len(samples_n) - start]
        marks_n[start : start + length] = True
    return Degraded(samples_n * gain_n, marks_n)


def hum(samples_n: Samples, strength: float, generator: np.random.Generator, sample_rate: int) -> Degraded:
    """Adds mains hum: 50 or 60 Hz with nine overtones that fall off.

    Strength: the hum's root mean square relative to the audio's, from -26 dB (0) to 0 dB (1).
    """
    mask_n, marks_n = _part(len(samples_n), generator, sample_rate)
    base = float(generator.choice([50.0, 60.0])) * float(generator.uniform(0.998, 1.002))
    slope = float(generator.uniform(0.3, 1.2))
    time_n = np.arange(len(samples_n)) / sample_rate
    tone_n = np.zeros(len(samples_n))
    for overtone in range(1, 11):
        phase, size = generator.uniform(0, 2 * math.pi), float(generator.uniform(0.3, 1)) * overtone**-slope
        if overtone * base < sample_rate / 2:
            tone_n += size * np.sin(2 * math.pi * overtone * base * time_n + phase)
    return Degraded(_added(samples_n, tone_n, -26 + 26 * strength, mask_n), marks_n)


def hiss(samples_n: Samples, strength: float, generator: np.random.Generator, sample_rate: int) -> Degraded:
    """Adds steady noise, as tape and preamplifiers do, whose power falls by 1.5 dB an octave to rises by 3 dB an octave.

    Strength: the noise's root mean square relative to the audio's, from -40 dB (0) to -10 dB (1).
    """
    mask_n, marks_n = _part(len(samples_n), generator, sample_rate)
    spectrum = np.fft.rfft(generator.standard_normal(len(samples_n)))
    tilt = float(generator.uniform(-0.25, 0.5))
    spectrum *= np.maximum(np.arange(len(spectrum)) / len(spectrum), 0.01) ** tilt
    return Degraded(_added(samples_n, np.fft.irfft(spectrum, len(samples_n)), -40 + 30 * strength, mask_n), marks_n)


def codec(samples_n: Samples, strength: float, generator: np.random.Generator, sample_rate: int) -> Degraded:
    """Limits the bandwidth and codes with loss, as MP3 or OGG Vorbis with few bits.

    Strength: the upper limit of the band, from 80 % (0) to 25 % (1) of half the sample rate, geometric, varied by a seventh; and
    libsndfile's compression level, from 0.5 (0) to 0.99 (1): at 16 kHz about 30 to 20 kbit/s of MP3, 53 to 40 of Vorbis.

    Raises: ValueError where libsndfile can't write the format.
    """
    mask_n, marks_n = _part(len(samples_n), generator, sample_rate)
    corner = _between(0.8, 0.25, strength) * float(generator.uniform(6 / 7, 8 / 7))
    spectrum = np.fft.rfft(samples_n)
    place = np.arange(len(spectrum)) / len(spectrum)
    limited_n = np.fft.irfft(spectrum / (1 + (place / corner) ** 48), len(samples_n)).astype(np.float32)
    kind = str(generator.choice(["MP3", "OGG"]))
    return Degraded(_faded(samples_n, _coded(limited_n, kind, 0.5 + 0.49 * strength, sample_rate), mask_n), marks_n)


def wow(samples_n: Samples, strength: float, generator: np.random.Generator, sample_rate: int) -> Degraded:
    """Varies the speed slowly, as an uneven turntable or a worn tape does: a sine of 0.5 to 4 Hz.

    Strength: the greatest deviation of the speed, from 0.5 % (0) to 6 % (1, a semitone), geometric.
    """
    mask_n, marks_n = _part(len(samples_n), generator, sample_rate, fade_seconds=SLOW_FADE_SECONDS)
    rate = float(generator.uniform(0.5, 4))
    time_n = np.arange(len(samples_n)) / sample_rate
    delay_n = _between(0.005, 0.06, strength) / (2 * math.pi * rate) * np.sin(
        2 * math.pi * rate * time_n + generator.uniform(0, 2 * math.pi)
    )  # fmt: skip
    at_n = np.clip((time_n + mask_n * delay_n) * sample_rate, 0, len(samples_n) - 1)
    fine = resample(samples_n.astype(np.float64), OVERSAMPLING * len(samples_n))
    return Degraded(np.interp(at_n * OVERSAMPLING, np.arange(len(fine)), fine).astype(np.float32), marks_n)


DEGRADATIONS: Mapping[str, Degradation] = {  # in the order of a recording's life: tape, line, microphone, converter, file
    "wow": wow,
    "dropout": dropout,
    "hum": hum,
    "hiss": hiss,
    "click": click,
    "clipping": clipping,
    "codec": codec,
}
DEFECTS = tuple(sorted(DEGRADATIONS))
BAND_DEFECTS = ("codec", "hiss", "hum")  # those that lie in some part of the spectrum


def check_defects(defects: Sequence[str], *, key: str = "data.defects") -> tuple[str, ...]:
    """Returns the defects as they were given. Raises: ValueError, with the key, for none, an unknown or a repeated one."""
    if not defects:
        raise ValueError(f"{key} is empty; name at least one of {', '.join(DEFECTS)}")
    if unknown := [name for name in defects if name not in DEGRADATIONS]:
        raise ValueError(f"{key}={list(defects)}: {unknown[0]!r} is not one of {', '.join(DEFECTS)}")
    if len(set(defects)) < len(defects):
        raise ValueError(f"{key}={list(defects)} names a defect twice; name each once")
    if "codec" in defects and (missing := [kind for kind in ("MP3", "OGG") if kind not in soundfile.available_formats()]):
        raise ValueError(f"{key}: codec needs {missing[0]}, which libsndfile lacks here; leave codec out or update soundfile")
    return tuple(defects)


def degrade(
    samples_n: Samples, strengths: Mapping[str, float], generator: np.random.Generator, sample_rate: int
) -> tuple[Samples, dict[str, Degraded]]:
    """Applies several degradations, in the order of `DEGRADATIONS`.

    Args:
        samples_n: at least 0.1 s, float32.
        strengths: of each defect, in [0, 1].
        generator: of all draws.

    Returns:
        The final samples, and for each defect the samples right after it with its marks.

    Raises:
        ValueError: an unknown defect, a strength out of range, or too few samples.
    """
    if len(samples_n) < 0.1 * sample_rate:
        raise ValueError(f"samples last {len(samples_n) / sample_rate:.2f} s; degradations need at least 0.1 s")
    for name, strength in strengths.items():
        if name not in DEGRADATIONS or not 0 <= strength <= 1:
            raise ValueError(f"strengths: {name}={strength} must be one of {', '.join(DEFECTS)} with a strength in [0, 1]")
    found = {}
    for name, function in DEGRADATIONS.items():
        if name in strengths:
            found[name] = function(samples_n, strengths[name], generator, sample_rate)
            samples_n = found[name].samples_n
    return samples_n, found


def quality(strengths: Mapping[str, float]) -> float:
    """Returns a quality from 1 (a defect of full strength) to 10 (no defect) of the strengths of all defects:

        quality = 1 + 9 * product over defects of (1 - strength)

    It falls with every strength, and a further defect never raises it.
    """
    return 1 + 9 * math.prod(1 - strength for strength in strengths.values())


# --- what they share ---


def _between(low: float, high: float, strength: float) -> float:
    return float(low * (high / low) ** strength)


def _rms(samples_n: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(samples_n, dtype=np.float64))))


def _part(
    length: int, generator: np.random.Generator, sample_rate: int, *, fade_seconds: float = FADE_SECONDS
) -> tuple[np.ndarray, Marks]:
    """Returns the weight in [0, 1] of the degradation at each sample, and where it is: everywhere in half of the cases,
    in a random part of 30 to 80 % in the others."""
    everywhere, share, place = generator.random(3)
    if everywhere < 0.5:
        return np.ones(length), np.ones(length, bool)
    size = round((0.3 + 0.5 * share) * length)
    start = round(place * (length - size))
    inside = np.zeros(length, bool)
    inside[start : start + size] = True
    fade = max(1, round(fade_seconds * sample_rate))
    at = np.arange(length)
    return np.clip(np.minimum(at - start, start + size - 1 - at) / fade, 0, 1), inside


def _faded(before_n: Samples, after_n: np.ndarray, mask_n: np.ndarray) -> Samples:
    mixed: Samples = (before_n + mask_n * (after_n - before_n)).astype(np.float32)
    return mixed


def _added(samples_n: Samples, noise_n: np.ndarray, level_db: float, mask_n: np.ndarray) -> Samples:
    size = _rms(samples_n) * 10 ** (level_db / 20) / max(_rms(noise_n), 1e-12)
    mixed: Samples = (samples_n + mask_n * size * noise_n).astype(np.float32)
    return mixed


def _coded(samples_n: Samples, kind: str, level: float, sample_rate: int) -> Samples:
    """Returns the samples after coding and decoding, in their own length."""
    peak = max(1.0, float(np.abs(samples_n).max()))  # coders clip what is above full scale
    sink = io.BytesIO()
    mode = {"bitrate_mode": "VARIABLE"} if kind == "MP3" else {}
    try:
        soundfile.write(sink, samples_n / peak, sample_rate, format=kind, compression_level=level, **mode)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{kind} at {sample_rate} Hz can't be written here; leave codec out of data.defects") from error
    sink.seek(0)
    decoded_n, rate = soundfile.read(sink, dtype="float32")
    if rate != sample_rate:
        decoded_n = resample(decoded_n, round(len(decoded_n) * sample_rate / rate))
    out_n = np.zeros(len(samples_n), np.float32)
    kept = min(len(samples_n), len(decoded_n))
    out_n[:kept] = decoded_n[:kept]
    return out_n * np.float32(peak)
