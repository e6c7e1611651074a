"""Projections of a gradient that does not raise the loss on earlier examples: A-GEM and GEM. Shapes: n weights, k memories."""

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor


def averaged_projection(gradient_n: Tensor, reference_n: Tensor, *, margin: float = 0.0) -> Tensor:
    """Returns the vector nearest to the gradient whose product with the reference is not negative.

    g - (g . r / r . r) r where g . r < 0, otherwise g itself. With a margin the product is at least margin |g| |r|.

    Source: Chaudhry et al. 2019 (A-GEM), equation 11, where the margin is 0.
    """
    lacking = gradient_n @ reference_n
    if margin:
        lacking = lacking - margin * gradient_n.norm() * reference_n.norm()
    if not lacking < 0:
        return gradient_n
    return gradient_n - lacking / (reference_n @ reference_n) * reference_n


def episodic_projection(gradient_n: Tensor, memories_kn: Tensor, *, margin: float = 0.0) -> Tensor:
    """Returns the vector v nearest to the gradient with v . m >= 0 for each memory's gradient m.

    v = g + M^T w, where w >= margin minimizes |g + M^T w|^2: a non-negative least-squares problem in k unknowns, solved exactly
    on the triangular factor of M^T. A margin above 0 pushes v further towards the memories. Computed in float64.

    Source: Lopez-Paz and Ranzato 2017 (GEM), equations 8 to 11 and the margin of section 3.
    """
    g, m = gradient_n.double(), memories_kn.double()
    lengths = m.norm(dim=1)
    m = m[lengths > 0] / lengths[lengths > 0, None]  # of unit length: the same cone, and well-conditioned
    if not len(m) or (margin == 0 and bool((m @ g >= 0).all())):
        return gradient_n
    start = g + margin * m.sum(0)
    q_nk, r_kk = torch.linalg.qr(m.T)
    w, _ = nnls(r_kk.cpu().numpy(), (-(q_nk.T @ start)).cpu().numpy())
    found = start + m.T @ torch.from_numpy(np.asarray(w)).to(m)
    for row in m:  # rounding
        if (left := row @ found) < 0:
            found = found - left * row
    projected: Tensor = found.to(gradient_n.dtype)
    return projected
