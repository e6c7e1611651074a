"""Terms from music theory on a model's distributions over tokens.

Shapes: n tokens, v vocabulary, p MIDI pitches (128), k the 12 major scales by tonic (a natural minor is its relative major).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PITCHES = 128
MAJOR = (0, 2, 4, 5, 7, 9, 11)
OCTAVE, FIFTH, NEAR = 4.0, 2.0, 1.0  # weights of an octave, of a fifth or fourth, of a scale's tone within a whole tone
LEAP = 7  # semitones, a fifth: what a voice may leap without penalty


def pitch_neighbours() -> Tensor:
    """Returns what a pitch's smoothing mass goes to: [k, p, p], rows summing to 1; nothing to the pitch itself.

    Octaves get 4 parts, fifths and fourths 2, tones of the scale within two semitones 1, everything else none. Before it is
    normalised, an octave weighs more than a fifth, a fifth more than a neighbour, and a tone outside the scale nothing.
    """
    pitch = np.arange(PITCHES)
    distance = np.abs(pitch[:, None] - pitch[None])
    fixed = OCTAVE * (distance == 12) + FIFTH * ((distance == 7) | (distance == 5))
    tables = []
    for tonic in range(12):
        in_scale = np.isin((pitch - tonic) % 12, MAJOR)
        table = fixed + NEAR * ((distance == 1) | (distance == 2)) * in_scale[None]
        tables.append(table / table.sum(1, keepdims=True))
    return torch.from_numpy(np.stack(tables)).float()


def metrical_level(units: np.ndarray) -> np.ndarray:
    """Returns how strong a place or length is: 1 a quarter, 1/2 an eighth, 1/4 a sixteenth or triplet, 1/16 finer; units are
    twelfths of a quarter."""
    level = np.full(np.shape(units), 1 / 16)
    for grid, value in ((4, 0.25), (3, 0.25), (6, 0.5), (12, 1.0)):
        level = np.where(units % grid == 0, value, level)
    return level


def place_neighbours(units: np.ndarray) -> Tensor:
    """Returns for places in a bar what their smoothing mass goes to, [m, m], rows summing to 1 (0 for a place alone): near
    places, e^(-quarters apart), by their metrical level."""
    apart = np.abs(units[:, None] - units[None]) / 12
    return _rows(np.exp(-apart) * metrical_level(units)[None])


def length_neighbours(units: np.ndarray) -> Tensor:
    """Returns likewise for durations and time shifts: near in ratio, e^(-2 |log2 ratio|), by their metrical level."""
    ratio = np.abs(np.log2(np.maximum(units, 1)[:, None] / np.maximum(units, 1)[None]))
    return _rows(np.exp(-2 * ratio) * metrical_level(units)[None])


def _rows(table: np.ndarray) -> Tensor:
    table = table * (1 - np.eye(len(table)))
    return torch.from_numpy(table / np.maximum(table.sum(1, keepdims=True), 1e-12)).float()


def best_scale(pitch_classes_12: Tensor) -> Tensor:
    """Returns the tonic of the major scale that holds most of the counts [..., 12]: int64 [...]."""
    scales = torch.stack([torch.zeros(12).index_fill(0, torch.tensor([(t + s) % 12 for s in MAJOR]), 1.0) for t in range(12)])
    return (pitch_classes_12.float() @ scales.to(pitch_classes_12.device).T).argmax(-1)


def leap_penalty(probability_np: Tensor, previous_n: Tensor) -> Tensor:
    """Returns the expected leap beyond a fifth, in octaves, of each token [n]: sum_q P(q) max(0, |q - previous| - 7) / 12.

    Args:
        probability_np: of each MIDI pitch. previous_n: the voice's pitch before.
    """
    pitch_p = torch.arange(PITCHES, device=probability_np.device)
    leap = (pitch_p - previous_n[:, None]).abs()
    return (probability_np * F.relu((leap - LEAP).float()) / 12).sum(-1)


def crossing_penalty(probability_np: Tensor, upper_n: Tensor) -> Tensor:
    """Returns the expected height above the next higher voice, in octaves, [n]: sum_q P(q) max(0, q - upper) / 12."""
    pitch_p = torch.arange(PITCHES, device=probability_np.device)
    return (probability_np * F.relu((pitch_p - upper_n[:, None]).float()) / 12).sum(-1)


def parallel_probability(probability_np: Tensor, own_before_n: Tensor, other_before_n: Tensor, other_n: Tensor) -> Tensor:
    """Returns the probability of a parallel fifth or octave with another voice, [n].

    Where the two stood a fifth or an octave (or several) apart and the other moves, only one pitch keeps the interval: own
    before + other's step. Elsewhere 0.
    """
    interval = (own_before_n - other_before_n).abs() % 12
    step = other_n - other_before_n
    forbidden = (own_before_n + step).clamp(0, PITCHES - 1)
    holds = ((interval == 7) | (interval == 0)) & (step != 0)
    return probability_np.gather(1, forbidden[:, None])[:, 0] * holds


def equivariance_loss(log_p_nv: Tensor, transposed_log_p_nv: Tensor, table_v: Tensor) -> Tensor:
    """Returns KL(P(. | x) || P(T . | T x)) of each token [n]: 0 where transposing the past transposes the prediction.

    Args:
        log_p_nv: of the music as it is; no gradient goes there. transposed_log_p_nv: of the transposed music.
        table_v: where transposition puts each id, -1 outside the range; those are left out and the rest renormalised.
    """
    kept = table_v >= 0
    one = F.log_softmax(log_p_nv[:, kept].detach().float(), -1)
    other = F.log_softmax(transposed_log_p_nv[:, table_v[kept]].float(), -1)
    return F.kl_div(other, one, reduction="none", log_target=True).sum(-1)
