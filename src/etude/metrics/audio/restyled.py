"""A few restyled mels as a set: rhythm and harmony kept, style reached, told from real ones or not.

Shapes: n clips, m mel bands, f frames. Mels are natural-log magnitudes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etude.audio.mel import MelContract
from etude.metrics.audio.mel_features import chroma_correlation, onset_agreement, segment_features
from etude.metrics.scores.alarms import Level, diversity
from etude.metrics.scores.dimensions import Described, closeness, own_distances
from etude.metrics.sets.turing import Turing, turing_test

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Restyled:
    """One direction: clips, what was made of them, real clips of the target style; paired where row i is one song's place.

    Attributes:
        sources, fakes, reals: [n, m, f].
        paired: whether real clip i is what fake clip i should have become.
    """

    sources: Floats
    fakes: Floats
    reals: Floats
    paired: bool


def compare_restyled(directions: Sequence[Restyled], *, contract: MelContract, seed: int = 0) -> tuple[dict[str, float], Turing]:
    """Scores 0..1 of all directions together, and the Turing test of fake against real clips.

    `rhythm`: onset agreement with the source, or with the truth where paired; `harmony`: correlation of its pitch classes,
    below 0 as 0; means of the clips in which they are defined, 0 where none does. `style`: closeness to real clips of the
    style in mean and deviation of every band. `quality`: mean of the three. `diversity` and `diversity_real`: of fakes and
    of real clips, in deviations of the style's real clips, see `alarms.diversity`.

    The Turing test sees mean and deviation of every band, standardised by the real clips of each style; a clip's fakes and
    the real clips of its row stay in one fold.

    Raises:
        ValueError: no direction, or fewer than two clips.
    """
    if not directions or min(len(way.fakes) for way in directions) < 2:
        raise ValueError("directions has none of two or more clips; give more validation segments of each style")
    rate = contract.sample_rate / contract.hop_length
    rhythm, harmony, style, spread, real_spread = [], [], [], [], []
    sides: tuple[list[Floats], list[Floats]] = ([], [])
    rows = []
    for way in directions:
        truths = way.reals if way.paired else way.sources
        rhythm += [onset_agreement(a, b, frame_rate=rate) for a, b in zip(way.fakes, truths, strict=True)]
        harmony += [chroma_correlation(a, b, contract=contract) for a, b in zip(way.fakes, truths, strict=True)]
        fakes, reals = _described(way.fakes), _described(way.reals)
        own = own_distances(reals, count=len(fakes), seed=seed)
        style += list(closeness(fakes, reals, own=own).values())
        features = [reals.standardised(x.features) for x in (fakes, reals)]
        spread.append(diversity(features[0]))
        real_spread.append(diversity(features[1]))
        for side, values in zip(sides, features, strict=True):
            side.append(values)
        rows.append(np.arange(len(way.fakes)))
    groups = np.concatenate(rows)
    found = {"rhythm": _mean(rhythm), "harmony": max(_mean(harmony), 0.0), "style": _mean(style)}
    found["quality"] = _mean(list(found.values()))
    found |= {"diversity": _mean(spread), "diversity_real": _mean(real_spread)}
    judged = turing_test(*map(np.concatenate, sides), generated_groups=groups, real_groups=groups, seed=seed)
    return found, judged


def restyled_levels(found: dict[str, float]) -> dict[str, Level]:
    """The levels of real music that `alarms.alarms` wants."""
    return {"diversity": Level(found["diversity_real"], 0.0)}


def _described(mels: Floats) -> Described:
    """Mean and deviation of each band of each clip."""
    features = np.concatenate([segment_features(mel, segment_frames=mel.shape[1]) for mel in mels])
    return Described({str(band): features[:, band] for band in range(features.shape[1])}, {})


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else 0.0
