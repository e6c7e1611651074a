"""Distillation losses: soft targets, hidden states through a projection, attention maps.

Shapes: n tokens, v vocabulary, b rows, t time, d and e widths, h heads, l tokens of a piece.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_target_loss(student_nv: Tensor, teacher_nv: Tensor, temperature_n: Tensor) -> Tensor:
    """Returns T^2 KL(softmax(teacher / T) || softmax(student / T)) of each token, float32 [n].

    The factor T^2 makes the magnitude of the gradient independent of T.

    Args:
        temperature_n: T of each token, above 0.

    Source: Hinton, Vinyals and Dean 2015, section 2.
    """
    scale_n1 = temperature_n.float()[:, None]
    student = F.log_softmax(student_nv.float() / scale_n1, dim=-1)
    teacher = F.log_softmax(teacher_nv.float() / scale_n1, dim=-1)
    return temperature_n.float().square() * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def adaptive_temperature(teacher_nv: Tensor, highest: float) -> Tensor:
    """Returns T = 1 + (highest - 1) (1 - H / log k) of each token [n]: confident predictions are softened most.

    H is the entropy of the teacher's distribution. k is the number of tokens with more than a thousandth of the largest
    probability (at least 2), so that tokens which are impossible at a position do not count.
    """
    log_p = F.log_softmax(teacher_nv.float(), dim=-1)
    entropy_n = -(log_p.exp() * log_p).sum(-1)
    choices_n = (log_p > log_p.max(-1, keepdim=True).values - math.log(1000)).sum(-1).clamp(min=2)
    return 1 + (highest - 1) * (1 - entropy_n / choices_n.log()).clamp(0, 1)


def projected_distance(student_btd: Tensor, teacher_bte: Tensor, projection_de: Tensor) -> Tensor:
    """Returns 1 - the mean cosine similarity of the student's projected hidden states and the teacher's.

    Source: Romero et al. 2015 (FitNets), with the cosine, which does not depend on scale, in place of the squared error.
    """
    projected = student_btd.float() @ projection_de
    return 1 - F.cosine_similarity(projected, teacher_bte.float(), dim=-1).mean()


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Returns KL(teacher || student) of the attention weights, averaged over heads before and over tokens after.

    Args:
        student, teacher: attention weights [h, l, l] of each piece, rows summing to 1; the numbers of heads may differ.

    Source: Jiao et al. 2020 (TinyBERT), section 3.1, with KL for the squared error.
    """
    total = torch.stack([_row_kl(t.float().mean(0), s.float().mean(0)).sum() for s, t in zip(student, teacher, strict=True)])
    return total.sum() / sum(s.shape[-1] for s in student)


def _row_kl(p_ll: Tensor, q_ll: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny
    return (p_ll * (p_ll.clamp(min=tiny).log() - q_ll.clamp(min=tiny).log())).sum(-1)
