"""Losses and label-smoothing targets from music theory, for a model's distributions over tokens.

Shapes: n tokens, v vocabulary, p MIDI pitches (128), k the 12 major scales by tonic (a natural minor is its relative major).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PITCHES = 128
MAJOR = (0, 2, 4, 5, 7, 9, 11)
OCTAVE, FIFTH, STEP = 4.0, 2.0, 1.0  # weights of an octave, of a fifth or fourth, of a scale tone within a whole tone
LEAP = 7  # semitones, a fifth: the largest leap of a voice without penalty


def pitch_smoothing() -> Tensor:
    """Returns how label smoothing distributes a pitch's mass over other pitches: [k, p, p], rows summing to 1.

    Before normalisation an octave has weight 4, a fifth or fourth 2, a scale tone within two semitones 1, and any other pitch,
    the pitch itself included, 0.
    """
    pitch = np.arange(PITCHES)
    distance = np.abs(pitch[:, None] - pitch[None])
    fixed = OCTAVE * (distance == 12) + FIFTH * ((distance == 7) | (distance == 5))
    tables = []
    for tonic in range(12):
        in_scale = np.isin((pitch - tonic) % 12, MAJOR)
        table = fixed + STEP * ((distance == 1) | (distance == 2)) * in_scale[None]
        tables.append(table / table.sum(1, keepdims=True))
    return torch.from_numpy(np.stack(tables)).float()


def metrical_level(units: np.ndarray) -> np.ndarray:
    """Returns the metrical strength of positions or durations, given in twelfths of a quarter note.

    1 for multiples of a quarter, 1/2 of an eighth, 1/4 of a sixteenth or triplet, 1/16 for anything finer.
    """
    level = np.full(np.shape(units), 1 / 16)
    for grid, value in ((4, 0.25), (3, 0.25), (6, 0.5), (12, 1.0)):
        level = np.where(units % grid == 0, value, level)
    return level


def position_smoothing(units: np.ndarray) -> Tensor:
    """Returns how label smoothing distributes the mass of a position in the bar, [m, m], rows summing to 1 (0 if m is 1).

    The weight of a position is e^(-distance in quarters) times its metrical level.
    """
    apart = np.abs(units[:, None] - units[None]) / 12
    return _normalised_rows(np.exp(-apart) * metrical_level(units)[None])


def duration_smoothing(units: np.ndarray) -> Tensor:
    """Returns the same for durations and time shifts; the weight is e^(-2 |log2 ratio|) times the metrical level."""
    ratio = np.abs(np.log2(np.maximum(units, 1)[:, None] / np.maximum(units, 1)[None]))
    return _normalised_rows(np.exp(-2 * ratio) * metrical_level(units)[None])


def _normalised_rows(table: np.ndarray) -> Tensor:
    table = table * (1 - np.eye(len(table)))
    return torch.from_numpy(table / np.maximum(table.sum(1, keepdims=True), 1e-12)).float()


def best_scale(pitch_classes_12: Tensor) -> Tensor:
    """Returns the tonic of the major scale that contains most of the pitch-class counts [..., 12]: int64 [...]."""
    scales = torch.stack([torch.zeros(12).index_fill(0, torch.tensor([(t + s) % 12 for s in MAJOR]), 1.0) for t in range(12)])
    return (pitch_classes_12.float() @ scales.to(pitch_classes_12.device).T).argmax(-1)


def leap_penalty(probability_np: Tensor, previous_n: Tensor) -> Tensor:
    """Returns the expected size of a leap beyond a fifth, in octaves, [n]: sum_q P(q) max(0, |q - previous| - 7) / 12.

    Args:
        probability_np: probability of each MIDI pitch. previous_n: the previous pitch of the voice.
    """
    pitch_p = torch.arange(PITCHES, device=probability_np.device)
    leap = (pitch_p - previous_n[:, None]).abs()
    return (probability_np * F.relu((leap - LEAP).float()) / 12).sum(-1)


def crossing_penalty(probability_np: Tensor, upper_n: Tensor) -> Tensor:
    """Returns the expected crossing above the next higher voice, in octaves, [n]: sum_q P(q) max(0, q - upper) / 12."""
    pitch_p = torch.arange(PITCHES, device=probability_np.device)
    return (probability_np * F.relu((pitch_p - upper_n[:, None]).float()) / 12).sum(-1)


def parallel_probability(probability_np: Tensor, own_before_n: Tensor, other_before_n: Tensor, other_n: Tensor) -> Tensor:
    """Returns the probability that a voice moves in parallel fifths or octaves with another one, [n].

    If the two voices were a fifth or octave apart (or a compound of it) and the other moves, exactly one pitch keeps the
    interval: own_before + step of the other. In all other cases the probability is 0.
    """
    interval = (own_before_n - other_before_n).abs() % 12
    step = other_n - other_before_n
    forbidden = (own_before_n + step).clamp(0, PITCHES - 1)
    holds = ((interval == 7) | (interval == 0)) & (step != 0)
    return probability_np.gather(1, forbidden[:, None])[:, 0] * holds


def equivariance_loss(log_p_nv: Tensor, transposed_log_p_nv: Tensor, table_v: Tensor) -> Tensor:
    """Returns KL(P(. | x) || P(T . | T x)) of each token [n]: 0 if transposing the input transposes the prediction.

    Args:
        log_p_nv: log-probabilities for the original music; they get no gradient.
        transposed_log_p_nv: log-probabilities for the transposed music.
        table_v: the transposed id of each token, -1 if out of range; such tokens are left out and the rest renormalised.
    """
    kept = table_v >= 0
    one = F.log_softmax(log_p_nv[:, kept].detach().float(), -1)
    other = F.log_softmax(transposed_log_p_nv[:, table_v[kept]].float(), -1)
    return F.kl_div(other, one, reduction="none", log_target=True).sum(-1)
