"""Muon whose Newton-Schulz iteration runs in a precision that the device computes fast."""

from typing import Any

import torch
from pytorch_optimizer.optimizer import muon
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from torch import Tensor
from torch.distributed.tensor import DTensor

from etude.core.processor import cpu_computes_bfloat16


def iteration_dtype(device: torch.device) -> torch.dtype:
    """Returns bfloat16, or float32 on a CPU that would emulate bfloat16, which would take most of a small model's step."""
    return torch.float32 if device.type == "cpu" and not cpu_computes_bfloat16() else torch.bfloat16


class Muon(muon.Muon):
    """As pytorch_optimizer's, which always iterates in bfloat16."""

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        """Returns the orthogonalized updates, which have one shape or its transpose; sharded matrices one by one."""
        matrices = [update.reshape(update.size(0), -1) for update in updates]
        if len(matrices) == 1 or any(isinstance(matrix, DTensor) for matrix in matrices):
            return [_orthogonal(group, matrix) for matrix in matrices]
        tall = [matrix.size(0) > matrix.size(1) for matrix in matrices]
        stacked = torch.stack([matrix.mT if turn else matrix for matrix, turn in zip(matrices, tall, strict=True)])
        found = _orthogonal(group, stacked).unbind()
        return [matrix.mT if turn else matrix for matrix, turn in zip(found, tall, strict=True)]


def _orthogonal(group: dict[str, Any], matrices: Tensor) -> Tensor:
    dtype = iteration_dtype(matrices.device)
    found: Tensor = zero_power_via_newton_schulz_5(
        matrices, num_steps=group["ns_steps"], weights=group["ns_coeffs"], dtype=dtype
    )  # fmt: skip
    return found
