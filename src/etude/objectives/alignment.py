"""Alignment: a piece belongs to the class with whose melodies its own can be aligned best.

Shapes: s pieces of the support, q queries, d features, n ways, p pairs, k notes of a melody.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.losses.alignment import likely_shifts, soft_alignment
from etude.losses.episodes import attention_logits, cosines

LARGEST, BINS, PER_OCTAVE = 24, 16, 4  # semitones and quarter steps of log2 duration that are told apart
SHIFTS, MOST_SHIFT, PITCHES = 2, 9, 128  # transpositions that are tried, of at most so many semitones
STEP, OTHER, GAP = 0.0, -1.0, 0.6  # for two semitones at most, for more, for a note without a match
OF_DURATION, TEMPERATURE, SHARPNESS = -0.0375, 0.1, 10.0  # each bin of a ratio of durations, ..., of the logits


class Alignment(nn.Module):
    """Compares melodies by global alignment with learnt scores, and the encoder's vectors beside them.

    Notes match by how far apart they are after transposition (a table by semitones, from the same pitch, 1, to other pitches,
    -1) and by the ratio of their durations relative to the median of each melody (a table, too). Transpositions are chosen by
    pitch histograms: from the last notes being equal, the two best of up to 9 semitones either way. The alignment's score is
    divided by the geometric mean of the two lengths. A support piece's similarity is the score plus a learnt weight times the
    cosine of the vectors, and the softmax over the support votes for the ways, as in matching networks.

    Tables, gap, weight and temperatures start at common values, so that it is a fair alignment before any training, and are
    learnt with the encoder on episodes. Meant for melodies: of chords, the notes count one after the other.

    Args:
        dim: of the encoder's vectors, which come before the notes in each row.
        notes: of a melody that are compared, the first ones, at least 2; the cost grows with their square.
        encoder_weight: of the vectors at the start; it is learnt.

    Raises: ValueError for a value out of range.

    Source: Needleman and Wunsch 1970; van Kranenburg et al. 2013 (of folk songs); Vinyals et al. 2016, equation 1 (votes).
    """

    def __init__(self, *, dim: int, notes: int = 96, encoder_weight: float = 1.0) -> None:
        super().__init__()
        if notes < 2:
            raise ValueError(f"algorithm.notes={notes} must be at least 2; 96 is a good start")
        self.dim, self.notes = dim, notes
        self.by_pitch, self.by_duration = nn.Parameter(torch.empty(LARGEST + 1)), nn.Parameter(torch.empty(BINS + 1))
        self.gap, self.log_temperature = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.log_sharpness, self.encoder_weight = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.first_weight = encoder_weight
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the scores of an alignment before any training."""
        self.by_pitch.fill_(OTHER)
        self.by_pitch[0], self.by_pitch[1:3] = 1.0, STEP
        self.by_duration.copy_(OF_DURATION * torch.arange(BINS + 1))
        self.gap.fill_(GAP)
        self.log_temperature.fill_(math.log(TEMPERATURE))
        self.log_sharpness.fill_(math.log(SHARPNESS))
        self.encoder_weight.fill_(self.first_weight)

    def logits(self, support_sd: Tensor, way_s: Tensor, query_qd: Tensor, *, ways: int) -> Tensor:
        """Returns the logits of the ways for each query, [q, n].

        support_sd, query_qd: the vectors, and after them the melodies of `etude.tasks.melodies`, flattened.
        """
        support, query = (melody.view(len(melody), 2, -1) for melody in (support_sd[:, self.dim :], query_qd[:, self.dim :]))
        q, s = len(query), len(support)
        one, other = query.repeat_interleave(s, 0), support.repeat(q, 1, 1)
        aligned = self.alignment(one, other).view(q, s)
        by_vector = cosines(query_qd[:, : self.dim], support_sd[:, : self.dim])
        similarity = self.log_sharpness.exp() * aligned + self.encoder_weight * by_vector
        return attention_logits(similarity, way_s, ways=ways)

    def alignment(self, one_p2k: Tensor, other_p2k: Tensor) -> Tensor:
        """Returns the alignment's score of each pair of melodies divided by the geometric mean of their lengths, [p]."""
        one, other = _Melodies(one_p2k), _Melodies(other_p2k)
        shifts = likely_shifts(one.histogram, other.histogram, most=MOST_SHIFT, count=SHIFTS)
        pair = torch.arange(len(one_p2k), device=one_p2k.device).repeat_interleave(SHIFTS)
        distance = one.pitch[pair][:, :, None] + shifts.flatten()[:, None, None] - other.pitch[pair][:, None]
        ratio = (one.duration[:, :, None] - other.duration[:, None]).abs() * PER_OCTAVE
        score = self.by_duration[ratio.round().long().clamp(max=BINS)][pair]
        score = score + self.by_pitch[distance.long().abs().clamp(max=LARGEST)]
        found = soft_alignment(
            score, one.length[pair], other.length[pair], gap=F.relu(self.gap), temperature=self.log_temperature.exp()
        )
        lengths = (one.length * other.length).to(found.dtype).sqrt()
        return found.view(-1, SHIFTS).amax(1) / lengths


class _Melodies:
    """Pitches relative to the last note, log2 durations relative to their median, lengths and histograms; padding is cut off.

    A piece without a note counts as one of a single note.
    """

    def __init__(self, melody_p2k: Tensor) -> None:
        known = melody_p2k[:, 0] >= 0
        self.length = known.sum(1).clamp(min=1)
        longest = int(self.length.max())
        pitch, duration = melody_p2k[:, 0, :longest], melody_p2k[:, 1, :longest]
        known = known[:, :longest]
        last = pitch.gather(1, self.length[:, None] - 1)
        self.pitch = pitch - last
        middle = duration.masked_fill(~known, torch.nan).nanmedian(1, keepdim=True).values.nan_to_num()
        self.duration = duration - middle
        place = (self.pitch.long() + PITCHES // 2).clamp(0, PITCHES - 1)
        self.histogram = duration.new_zeros(len(pitch), PITCHES).scatter_add(1, place, duration.exp2() * known)
