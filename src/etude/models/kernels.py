"""Hand-written forward and backward passes for the Transformer's CPU hot spots.

A profile of a plain implementation under bf16 autocast on two CPU cores shows where a step goes: the backward
pass of scaled dot-product attention (six times its forward), RMSNorm written as five elementwise passes, dropout
masks from a serial generator. Each function here computes the same thing in fewer passes over memory, and is
tested against autograd. None supports double backward or `torch.func`: build the model with `fused=False` for that.

Shape legend: n tokens (all rows flattened), h heads, g query heads per key-value head, k head width, r norm groups.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

EPSILON = 1e-6
QUERY_BLOCK = 256  # rows of the score matrix computed at once; skips about half of the masked upper triangle


class _RMSNorm(torch.autograd.Function):
    """y = gain * x / m with m = sqrt(mean(x^2) + eps); dx = gain / m * (dy - x (dy . x) / (k m^2))."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain: Tensor | None) -> Tensor:
        width = x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            # With s = sqrt(k) m, y is x times g / s, the weight normalisation of x with length g = sqrt(k) gain,
            # so that its one-pass backward kernel serves here, the eps included.
            exact = torch.promote_types(x.dtype, torch.float32)
            scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
            scale = scale.square_().add_(width * EPSILON).sqrt_()
            length = torch.full_like(scale, math.sqrt(width))
            if gain is not None:
                length *= gain[:, None]
            ctx.save_for_backward(x, length, scale)  # type: ignore[attr-defined]
            return x * (length / scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, length, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        width = x.shape[-1]
        grad_x, grad_length = torch.ops.aten._weight_norm_interface_backward(
            grad.contiguous().view(-1, width), x.contiguous().view(-1, width),
            length.to(x.dtype).view(-1, 1), scale.view(-1, 1), 0,
        )
        grad_gain = None
        if ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
            groups = grad_length.view(-1, x.shape[-2]).to(scale.dtype)
            grad_gain = groups.sum(0) * math.sqrt(width)
        return grad_x.view_as(x), grad_gain


def rms_norm(x: Tensor, gain: Tensor | None = None, *, fused: bool = True) -> Tensor:
    """Scale the last axis to root mean square 1, then by one gain per group.

    y = gain * x / sqrt(mean(x^2) + 1e-6), the mean in at least float32. Without an elementwise gain, which the
    following linear layer already contains.

    Args:
        x: [..., r, k] (or [..., k] when gain is None).
        gain: [r], or None for 1.
        fused: use the two-pass CPU kernel; on other devices PyTorch's own is the fast one.

    Source: Zhang & Sennrich 2019, eq. 4, without its per-channel gain.
    """
    if fused and x.device.type == "cpu":
        return _RMSNorm.apply(x, gain)
    y = torch.nn.functional.rms_norm(x, (x.shape[-1],), eps=EPSILON).to(x.dtype)
    return y if gain is None else y * gain[:, None].to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, sign: float) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=sign)
    return out


class _Rotary(torch.autograd.Function):
    """A rotation: its gradient is the rotation back, so nothing of x is saved."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)  # type: ignore[attr-defined]
        tokens, heads, width = x.shape
        out = torch.empty(heads, tokens, width, dtype=x.dtype, device=x.device)
        _rotate(x, cos, sin, out.transpose(0, 1), 1.0)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = grad.transpose(0, 1)
        return _rotate(grad, cos, sin, torch.empty(grad.shape, dtype=grad.dtype, device=grad.device), -1.0), None, None


def rotary(x_nhk: Tensor, cos: Tensor, sin: Tensor, *, fused: bool = True) -> Tensor:
    """Rotate the pairs (i, i + k/2) of each head by its token's angles; heads come first in the result.

    Args:
        x_nhk: [n, h, k], k even.
        cos, sin: [n, 1, k/2] in x's dtype.

    Returns:
        [h, n, k].

    Source: Su et al. 2021, eq. 34, with the halves paired as in GPT-NeoX.
    """
    if fused:
        return _Rotary.apply(x_nhk, cos, sin)
    first, second = x_nhk.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).transpose(0, 1)


class _SwiGLU(torch.autograd.Function):
    """h = gate * s * up, s = sigmoid(gate); saves s, so that backward is multiplications only."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        sigmoid = torch.sigmoid(gate)
        swish = gate * sigmoid
        ctx.save_for_backward(up, sigmoid, swish)  # type: ignore[attr-defined]
        return swish * up

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        up, sigmoid, swish = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_up = grad * swish
        # d swish / d gate = s + gate s (1 - s) = s + swish (1 - s)
        slope = torch.addcmul(swish, swish, sigmoid, value=-1.0).add_(sigmoid)
        return slope.mul_(grad).mul_(up), grad_up


def swiglu(gate: Tensor, up: Tensor, *, fused: bool = True) -> Tensor:
    """gate * sigmoid(gate) * up, elementwise.

    Source: Shazeer 2020, eq. 5 (the product before the last projection).
    """
    if fused and gate.device.type == "cpu":
        return _SwiGLU.apply(gate, up)
    return torch.nn.functional.silu(gate) * up


class _CausalAttention(torch.autograd.Function):
    """Causal attention inside each run of tokens; saves the probabilities of the lower block triangle."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
        heads, tokens, width = q.shape
        groups = heads // k.shape[0]
        out = torch.empty(tokens, heads, width, dtype=q.dtype, device=q.device)
        block = min(QUERY_BLOCK, max(lengths))
        future = torch.full((block, block), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
        probabilities = []
        with torch.autocast(q.device.type, enabled=False):
            for start, first, last in _blocks(lengths):
                scores = _scaled(_grouped(q[:, first:last], groups), k[:, start:last].transpose(1, 2), scale)
                size = last - first
                scores.view(-1, groups, size, last - start)[..., first - start :] += future[:size, :size]
                probability = torch.softmax(scores, -1)
                mixed = torch.bmm(probability, v[:, start:last])
                out[first:last] = mixed.view(heads, size, width).transpose(0, 1)
                probabilities.append(probability)
        ctx.save_for_backward(q, k, v, *probabilities)  # type: ignore[attr-defined]
        ctx.lengths, ctx.scale = lengths, scale  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *probabilities = ctx.saved_tensors  # type: ignore[attr-defined]
        groups = q.shape[0] // k.shape[0]
        grad = grad.transpose(0, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, first, last), probability in zip(_blocks(ctx.lengths), probabilities, strict=True):  # type: ignore[attr-defined]
            keys = slice(start, last)
            grad_out = _grouped(grad[:, first:last], groups)
            grad_v[:, keys] += torch.bmm(probability.transpose(1, 2), grad_out)
            grad_p = torch.bmm(grad_out, v[:, keys].transpose(1, 2))
            grad_s = torch._softmax_backward_data(grad_p, probability, -1, probability.dtype)
            block_q = _scaled(grad_s, k[:, keys], ctx.scale)  # type: ignore[attr-defined]
            grad_q[:, first:last] = block_q.view(q.shape[0], last - first, -1)
            grad_k[:, keys] += _scaled(grad_s.transpose(1, 2), _grouped(q[:, first:last], groups), ctx.scale)  # type: ignore[attr-defined]
        return grad_q, grad_k, grad_v, None, None


def _blocks(lengths: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(document start, first query, last query) of every block of queries, as positions among all tokens."""
    blocks, start = [], 0
    for length in lengths:
        blocks += [(start, i, min(i + QUERY_BLOCK, start + length)) for i in range(start, start + length, QUERY_BLOCK)]
        start += length
    return blocks


def _grouped(q_hnk: Tensor, groups: int) -> Tensor:
    """Query heads that share a key-value head, stacked along the token axis: [h/g, g*n, k]."""
    heads, tokens, width = q_hnk.shape
    return q_hnk.reshape(heads // groups, groups * tokens, width)


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a @ b in one pass."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def causal_attention(q_hnk: Tensor, k_hnk: Tensor, v_hnk: Tensor, *, lengths: tuple[int, ...]) -> Tensor:
    """softmax(q k' / sqrt(k) + causal mask) v inside each of the consecutive runs of tokens.

    Keeps the probabilities for backward: h * length^2 / 2 numbers a run, which on CPU buys a backward pass several
    times as fast as that of PyTorch's flash kernel.

    Args:
        q_hnk: [h, n, k].
        k_hnk, v_hnk: [h/g, n, k].
        lengths: tokens of each run, in order; they sum to n.

    Returns:
        [n, h, k].

    Source: Vaswani et al. 2017, eq. 1; grouped heads: Ainslie et al. 2023.
    """
    return _CausalAttention.apply(q_hnk, k_hnk, v_hnk, lengths, q_hnk.shape[-1] ** -0.5)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p (to 1/65536) and divide the rest by 1 - p.

    On CPU the mask comes from 16 random bits an element, four times as fast as `torch.nn.functional.dropout`, whose
    generator is serial; it draws from PyTorch's global generator, so restoring that restores the masks.
    """
    if x.device.type != "cpu":
        return torch.nn.functional.dropout(x, p)
    threshold = round(p * 65536)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - 32768
    return x * keep.to(x.dtype).mul_(65536 / (65536 - threshold))
