"""Measures of how complex a recording is, computed from its log-mel spectrogram; curricula order audio by them.

Shapes: f frames, m mel bands.
"""

import numpy as np

from etude.audio.chroma import mel_chroma_filterbank
from etude.audio.mel import MelContract

MAX_SECONDS = 120.0  # longer recordings are measured on this much of their middle
BLOCK_SECONDS = 1.0
FEATURES = tuple(
    f"complexity_{name}"
    for name in (
        "rhythmic_flux", "rhythmic_irregularity", "harmonic_entropy", "harmonic_change", "melodic_motion", "structural_novelty",
    )
)  # fmt: skip
DYNAMIC_RANGE = 7.0  # nats below the loudest band of the recording; anything quieter is masked


def complexity(log_mel_fm: np.ndarray, contract: MelContract) -> dict[str, float]:
    """Returns the complexity features of a natural-log mel spectrogram [f, m]; higher is more complex, silence gives 0.

    - rhythmic_flux: mean increase over all bands, in nats per second.
    - rhythmic_irregularity: 1 - the highest autocorrelation of that increase at lags of 0.2 to 2 s, in [0, 1].
    - harmonic_entropy: entropy of the mean chroma in bits, in [0, log2 12].
    - harmonic_change: 1 - cosine similarity of the chroma of neighbouring one-second blocks, in [0, 1].
    - melodic_motion: movement of the spectral centroid, in octaves per second.
    - structural_novelty: 1 - cosine similarity of a block with the most similar other block, averaged over blocks, in [0, 2].

    Source: the axes are those of `music.complexity`; flux as in Dixon 2006, novelty as in Foote 2000, on mels.
    """
    if log_mel_fm.max() < np.log(contract.floor) + 1e-3:
        return dict.fromkeys(FEATURES, 0.0)
    rate = contract.sample_rate / contract.hop_length
    longest = round(MAX_SECONDS * rate)
    middle = max(0, (len(log_mel_fm) - longest) // 2)
    mel_fm = np.maximum(log_mel_fm[middle : middle + longest].astype(np.float64), log_mel_fm.max() - DYNAMIC_RANGE)
    flux_f = np.maximum(np.diff(mel_fm, axis=0), 0).mean(axis=1)
    block = max(1, round(BLOCK_SECONDS * rate))
    count = max(1, len(mel_fm) // block)
    blocks_bm = np.stack([part.mean(axis=0) for part in np.array_split(mel_fm, count)])
    power_bm = np.exp(blocks_bm - blocks_bm.max())
    chroma_bk = power_bm @ mel_chroma_filterbank(contract).numpy().T.astype(np.float64)
    values = (
        float(flux_f.mean() * rate) if len(flux_f) else 0.0,
        _irregularity(flux_f, rate),
        _entropy(chroma_bk.sum(axis=0)),
        _mean_distance(chroma_bk[1:], chroma_bk[:-1]),
        _motion(mel_fm, rate, contract),
        _novelty(blocks_bm),
    )
    return dict(zip(FEATURES, values, strict=True))


def _irregularity(flux_f: np.ndarray, rate: float) -> float:
    centred = flux_f - flux_f.mean() if len(flux_f) else flux_f
    energy = float(centred @ centred)
    lags = range(max(1, round(0.2 * rate)), min(round(2 * rate), len(centred) - 1) + 1)
    if energy <= 1e-9 or not lags:
        return 0.0
    return 1 - max(0.0, max(float(centred[lag:] @ centred[:-lag]) for lag in lags) / energy)


def _entropy(weights: np.ndarray) -> float:
    if weights.sum() <= 0:
        return 0.0
    share = weights[weights > 0] / weights.sum()
    return float(-(share * np.log2(share)).sum())


def _mean_distance(one_bk: np.ndarray, other_bk: np.ndarray) -> float:
    if len(one_bk) == 0:
        return 0.0
    norms = np.linalg.norm(one_bk, axis=1) * np.linalg.norm(other_bk, axis=1)
    heard = norms > 1e-12
    return float((1 - (one_bk * other_bk).sum(axis=1)[heard] / norms[heard]).mean()) if heard.any() else 0.0


def _motion(mel_fm: np.ndarray, rate: float, contract: MelContract) -> float:
    power_fm = np.exp(mel_fm - mel_fm.max()) - np.exp(-DYNAMIC_RANGE)
    bands = np.log2(np.maximum(_centres(contract), 1.0))
    loud_f = power_fm.sum(axis=1)
    heard = loud_f > 1e-3 * max(float(loud_f.max()), 1e-12)
    centroid = (power_fm @ bands)[heard] / loud_f[heard]
    return float(np.abs(np.diff(centroid)).mean() * rate) if len(centroid) > 1 else 0.0


def _centres(contract: MelContract) -> np.ndarray:
    bank = contract.filterbank().double().numpy()
    hz = np.arange(contract.num_bins) * contract.sample_rate / contract.n_fft
    centres: np.ndarray = bank @ hz / np.maximum(bank.sum(axis=1), 1e-12)
    return centres


def _novelty(blocks_bm: np.ndarray) -> float:
    if len(blocks_bm) < 2:
        return 0.0
    centred = blocks_bm - blocks_bm.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -1.0)
    return float(1 - alike.max(axis=1).mean()) if np.abs(centred).max() > 1e-6 else 0.0
