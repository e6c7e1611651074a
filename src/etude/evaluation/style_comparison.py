"""Compare restyled mels with the true rendering of the same songs: the values of one row of the style-transfer table.

Shapes: m mel bands, f frames.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from etude.audio.mel import MelContract
from etude.metrics.audio.mel_distances import frechet_distance, log_mel_l1, mel_cepstral_distortion, mmd
from etude.metrics.audio.mel_features import chroma_correlation, chroma_similarity, onset_agreement, segment_features

COLUMNS = {
    # key: (name and unit, whether lower is better)
    "l1_nats": ("log-mel L1, nats", True),
    "mcd_db": ("mel-cepstral distortion, dB", True),
    "frechet_bel2": ("Fréchet distance, bel²", True),
    "mmd": ("MMD²", True),
    "onset_f": ("onset agreement, F within 50 ms", False),
    "chroma": ("chroma similarity, cosine", False),
    "chroma_r": ("chroma correlation", False),
}


def compare_mels(
    pairs: Iterable[tuple[ArrayLike, ArrayLike]], *, contract: MelContract, segment_frames: int = 128
) -> dict[str, float]:
    """Returns a value for each key of `COLUMNS`.

    L1, distortion, onset agreement and chroma are means over the songs in which they are defined. Fréchet distance and MMD
    compare the set of all fakes with the set of all true mels, without using the pairs.

    Args:
        pairs: (fake, true) natural-log mels [m, f] of each song; see `mel_distances.common_part` for lengths.
        contract: the settings of all mels.
        segment_frames: frames of a segment for MMD.

    Raises:
        ValueError: no song, fewer than two segments in all (for MMD), or a pair whose shapes don't fit.
    """
    songs = [(np.asarray(fake, np.float64), np.asarray(truth, np.float64)) for fake, truth in pairs]
    if not songs:
        raise ValueError("pairs has no song; give at least one (fake, truth)")
    rate = contract.sample_rate / contract.hop_length
    fakes, truths = ([song[side] for song in songs] for side in (0, 1))
    features = [
        np.concatenate([segment_features(mel, segment_frames=segment_frames) for mel in mels]) for mels in (fakes, truths)
    ]
    return {
        "l1_nats": _mean(log_mel_l1(*song) for song in songs),
        "mcd_db": _mean(mel_cepstral_distortion(*song) for song in songs),
        "frechet_bel2": frechet_distance(np.concatenate(fakes, axis=1), np.concatenate(truths, axis=1)),
        "mmd": mmd(*features),
        "onset_f": _mean(onset_agreement(*song, frame_rate=rate) for song in songs),
        "chroma": _mean(chroma_similarity(*song, contract=contract) for song in songs),
        "chroma_r": _mean(chroma_correlation(*song, contract=contract) for song in songs),
    }


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
