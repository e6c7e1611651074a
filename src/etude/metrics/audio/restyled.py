"""Metrics of a set of restyled mels: whether rhythm and harmony are kept, whether the style is right, a Turing test.

Shapes: n clips, m mel bands, f frames. Mels are natural-log magnitudes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etude.audio.mel import MelContract
from etude.metrics.audio.artefacts import squeal_share
from etude.metrics.audio.mel_features import chroma_correlation, onset_agreement, segment_features
from etude.metrics.scores.alarms import ReferenceStatistic, diversity
from etude.metrics.scores.dimensions import PieceFeatures, closeness, distances_within_real
from etude.metrics.sets.turing import Turing, turing_test

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RestyledClips:
    """Clips of one direction of style transfer.

    Attributes:
        sources: clips of the source style, [n, m, f].
        fakes: the same clips, translated to the target style, [n, m, f].
        reals: real clips of the target style, [n, m, f].
        paired: whether reals[i] is the same music as sources[i], and so the correct result for fakes[i].
        highest: maximum of each band over the training frames of the target style, in nats [m]; None takes that of `reals`.
    """

    sources: Floats
    fakes: Floats
    reals: Floats
    paired: bool
    highest: Floats | None = None


def compare_restyled(
    directions: Sequence[RestyledClips], *, contract: MelContract, seed: int = 0
) -> tuple[dict[str, float], Turing]:
    """Returns scores in 0..1 over all directions, and the Turing test of fake against real clips.

    `rhythm` is the onset agreement and `harmony` the chroma correlation (negative values count as 0) with the source, or
    with the real clip where paired. Both are means over the clips in which they are defined, 0 if there are none. `style`
    is the closeness to real clips of the target style in the mean and standard deviation of each band. `quality` is the
    mean of the three. `squeals` is the share of frames with a band more than 6 dB above `highest`. `diversity` and
    `diversity_real` are those of the fakes and of the real clips, see `alarms.diversity`.

    The Turing test sees the mean and standard deviation of each band, standardised by the real clips of each style. All
    clips with the same index stay in the same fold.

    Raises:
        ValueError: no direction, or a direction of fewer than two clips.
    """
    if not directions or min(len(direction.fakes) for direction in directions) < 2:
        raise ValueError("a direction has fewer than two clips; give more validation segments of each style")
    rate = contract.sample_rate / contract.hop_length
    rhythm, harmony, style, spread, real_spread, squeals = [], [], [], [], [], []
    sides: tuple[list[Floats], list[Floats]] = ([], [])
    rows = []
    for direction in directions:
        truths = direction.reals if direction.paired else direction.sources
        rhythm += [onset_agreement(a, b, frame_rate=rate) for a, b in zip(direction.fakes, truths, strict=True)]
        harmony += [chroma_correlation(a, b, contract=contract) for a, b in zip(direction.fakes, truths, strict=True)]
        fakes, reals = _band_statistics(direction.fakes), _band_statistics(direction.reals)
        expected = distances_within_real(reals, count=len(fakes), seed=seed)
        style += list(closeness(fakes, reals, expected=expected).values())
        highest = direction.reals.max(axis=(0, 2)) if direction.highest is None else direction.highest
        squeals += [squeal_share(fake, highest) for fake in direction.fakes]
        features = [reals.standardised(x.matrix) for x in (fakes, reals)]
        spread.append(diversity(features[0]))
        real_spread.append(diversity(features[1]))
        for side, values in zip(sides, features, strict=True):
            side.append(values)
        rows.append(np.arange(len(direction.fakes)))
    groups = np.concatenate(rows)
    found = {"rhythm": _mean(rhythm), "harmony": max(_mean(harmony), 0.0), "style": _mean(style)}
    found["quality"] = _mean(list(found.values()))
    found["squeals"] = _mean(squeals)
    found |= {"diversity": _mean(spread), "diversity_real": _mean(real_spread)}
    turing = turing_test(*map(np.concatenate, sides), generated_groups=groups, real_groups=groups, seed=seed)
    return found, turing


def restyled_reference(found: dict[str, float]) -> dict[str, ReferenceStatistic]:
    """Returns the reference statistics of real clips for `alarms.alarms`."""
    return {"diversity": ReferenceStatistic(found["diversity_real"], 0.0)}


def _band_statistics(mels: Floats) -> PieceFeatures:
    """Returns the mean and the standard deviation of each band of each clip as features."""
    features = np.concatenate([segment_features(mel, segment_frames=mel.shape[1]) for mel in mels])
    return PieceFeatures({str(band): features[:, band] for band in range(features.shape[1])}, {})


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else 0.0
