"""Matching networks: a query attends to the support, and each piece there votes for its class.

Shapes: as in `etude.losses.episodes`.
"""

import torch
from torch import Tensor, nn

from etude.losses.episodes import attention_logits, cosines


class Matching(nn.Module):
    """Attention by cosine over the support; with full context every vector is first changed by the support as a whole.

    A support piece becomes the sum of its vector and of both directions of an LSTM that reads the support (g of the paper); a
    query is read `steps` times by an LSTM that attends to the support (f of the paper).

    Args:
        dim: of the encoder's vectors, even.
        full_context: whether to change vectors by context; False compares those of the encoder.
        steps: readings of a query, at least 1.
        temperature: above 0, of the cosines; the paper has 1, which leaves the attention nearly even.

    Raises: ValueError for a value out of range.

    Source: Vinyals et al. 2016, equation 1, and appendices A.1 and A.2.
    """

    def __init__(self, *, dim: int, full_context: bool = True, steps: int = 3, temperature: float = 0.1) -> None:
        super().__init__()
        if steps < 1 or temperature <= 0:
            raise ValueError(f"algorithm.steps={steps} must be at least 1 and algorithm.temperature={temperature} above 0")
        self.temperature, self.steps = temperature, steps
        self.reader = nn.LSTM(dim, dim, bidirectional=True) if full_context else None
        self.attending = nn.LSTMCell(dim, 2 * dim) if full_context else None

    def in_context(self, support_sd: Tensor, query_qd: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors of support and queries in the context of the support."""
        if self.reader is None or self.attending is None:
            return support_sd, query_qd
        dim = support_sd.shape[1]
        both, _ = self.reader(support_sd[:, None])
        support = support_sd + both[:, 0, :dim] + both[:, 0, dim:]
        hidden = torch.cat([query_qd, query_qd.new_zeros(query_qd.shape)], dim=1)
        cell = torch.zeros_like(hidden)
        read = query_qd
        for _ in range(self.steps):
            hidden, cell = self.attending(query_qd, (hidden, cell))
            read = hidden[:, :dim] + query_qd
            hidden = torch.cat([read, (read @ support.T).softmax(-1) @ support], dim=1)
        return support, read

    def logits(self, support_sd: Tensor, way_s: Tensor, query_qd: Tensor, *, ways: int) -> Tensor:
        """Returns the logits of the ways for each query, [q, n]; their softmax is the sum of the attention to each way."""
        support, query = self.in_context(support_sd, query_qd)
        return attention_logits(cosines(query, support) / self.temperature, way_s, ways=ways)
