"""Pure functions that align two melodies note by note.

Shapes: p pairs of melodies, n and m notes of the one and the other, s semitones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_alignment(
    score_pnm: Tensor, length_p: Tensor, other_p: Tensor, *, gap: Tensor | float, temperature: Tensor | float
) -> Tensor:
    """Returns the score of the best global alignment of each pair, [p], smoothed so that it can be differentiated.

    An alignment matches notes in order; it gets the scores of its matches and loses `gap` for each note that has none. The
    maximum over alignments is replaced by temperature * log(sum(exp(score / temperature))), which is at least as high.

    Args:
        score_pnm: of matching note i of the one with note j of the other. length_p, other_p: notes of each, at least 1; what
            comes after them is not read.
        gap: at least 0. temperature: above 0; towards 0 the result becomes the maximum.

    Source: Needleman and Wunsch 1970, smoothed as in Cuturi and Blondel 2017, section 2.
    """
    pairs, rows, columns = score_pnm.shape
    place = gap / temperature * torch.arange(columns + 1, dtype=score_pnm.dtype, device=score_pnm.device)
    score = score_pnm / temperature
    row = (-place).expand(pairs, -1)  # the other's first notes without a match
    found = [row]
    for i in range(rows):
        matched = torch.logaddexp(row[:, :-1] + score[:, i], row[:, 1:] - gap / temperature)
        arrived = torch.cat((row[:, :1] - gap / temperature, matched), dim=1)
        row = (arrived + place).logcumsumexp(1) - place  # any number of the other's notes without a match
        found.append(row)
    return temperature * torch.stack(found, 1)[torch.arange(pairs, device=row.device), length_p, other_p]


def likely_shifts(one_ps: Tensor, other_ps: Tensor, *, most: int, count: int) -> Tensor:
    """Returns the `count` transpositions, of at most `most` semitones, under which two pitch histograms agree best, [p, count].

    one_ps, other_ps: how long each pitch sounds, by pitch; shifted up by the result, the one looks like the other. Of equally
    good ones the lowest comes first.

    Source: van Kranenburg et al. 2013, who compare the histograms by their intersection instead of their cosine.
    """
    one, other = F.normalize(one_ps, dim=1), F.normalize(other_ps, dim=1)
    padded = F.pad(other, (most, most))
    agreement = torch.stack([(one * padded[:, k : k + one.shape[1]]).sum(1) for k in range(2 * most + 1)], 1)
    return agreement.sort(dim=1, descending=True, stable=True).indices[:, :count] - most
