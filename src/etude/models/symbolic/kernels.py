"""Hand-written forward and backward passes for the Transformer's CPU hot spots.

A profile of a plain implementation under bf16 autocast on two CPU cores shows where a step goes: the backward
pass of scaled dot-product attention (six times its forward), RMSNorm written as five elementwise passes, dropout
masks from a serial generator. Each function here computes the same thing in fewer passes over memory, and is
tested against autograd. None supports double backward or `torch.func`: a second derivative raises, build the model with
`fused=False` for that.

Shape legend: n tokens (all rows flattened), h heads, g query heads per key-value head, k head width, r norm groups.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

EPSILON = 1e-12  # in units of the mean square: only to keep a row of zeros finite
QUERY_BLOCK = 256  # rows of the score matrix computed at once; skips about half of the masked upper triangle


class _Refusal(torch.autograd.Function):
    """Passes the first `count` tensors on, as if they depended on all; who differentiates them is refused."""

    @staticmethod
    def forward(ctx: FunctionCtx, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        raise RuntimeError(
            "a second derivative through the Transformer's fused functions, which have first derivatives only; build the model "
            "with fused=False (model.fused=false)"
        )


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the gradients of a hand-written backward pass refuse to be differentiated again.

    PyTorch's `once_differentiable` refuses only where the incoming gradient has a graph: `autograd.grad(create_graph=True)` of a
    plain sum then takes the gradients for constants and is silently wrong. Here they stay connected to the inputs too, provided
    that `forward` saves those that a gradient depends on.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        outputs = found if isinstance(found, tuple) else (found,)
        made = [output for output in outputs if output is not None]
        inputs = [value for value in (*ctx.saved_tensors, *grads) if value is not None and value.requires_grad]
        refused = iter(_Refusal.apply(len(made), *made, *inputs))
        return tuple(None if output is None else next(refused) for output in outputs)

    return refusing


class _RMSNorm(torch.autograd.Function):
    """Each row is x scaled to length g = sqrt(k) gain: PyTorch's weight normalisation, one pass in each direction."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain: Tensor | None) -> Tensor:
        width = x.shape[-1]
        rows = x.reshape(-1, width)
        length = torch.full((len(rows), 1), math.sqrt(width), dtype=x.dtype, device=x.device)
        if gain is not None:
            length.view(-1, len(gain)).mul_(gain)
        y, norm = torch._weight_norm_interface(rows, length, 0)
        if not norm.all():  # that kernel divides 0 by 0 where a row is zero
            norm.clamp_(min=math.sqrt(width * EPSILON))
            y = rows * (length / norm).to(x.dtype)
        ctx.save_for_backward(x, gain, length, norm)  # type: ignore[attr-defined, arg-type]
        ctx.groups = None if gain is None else len(gain)  # type: ignore[attr-defined]
        return y.view(x.shape)

    @staticmethod
    @first_derivative_only
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, _, length, norm = ctx.saved_tensors  # type: ignore[attr-defined]
        rows = x.reshape(-1, x.shape[-1])
        grad_rows = grad.reshape(rows.shape).contiguous()
        grad_x, grad_length = torch.ops.aten._weight_norm_interface_backward(grad_rows, rows, length, norm, 0)
        grad_gain = None
        if ctx.groups is not None:  # type: ignore[attr-defined]
            grad_gain = grad_length.view(-1, ctx.groups).sum(0, dtype=norm.dtype) * math.sqrt(rows.shape[1])  # type: ignore[attr-defined]
        return grad_x.view(grad.shape), grad_gain


def rms_norm(x: Tensor, gain: Tensor | None = None, *, fused: bool = True) -> Tensor:
    """Scale the last axis to root mean square 1, then by one gain per group.

    y = gain * x / sqrt(mean(x^2) + 1e-12), the mean in at least float32. Without an elementwise gain, which the
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


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    swapped = x.roll(x.shape[-1] // 2, -1)
    return (x * torch.cat((cos, cos), -1)).addcmul_(swapped, torch.cat((-sin, sin), -1))


class _Rotary(torch.autograd.Function):
    """A rotation: its gradient is the rotation back, so nothing of x is saved."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)  # type: ignore[attr-defined]
        return _rotate(x, cos, sin).transpose(0, 1).contiguous()

    @staticmethod
    @first_derivative_only
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        return _rotate(grad.transpose(0, 1).contiguous(), cos, -sin), None, None


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


class _CausalAttention(torch.autograd.Function):
    """Causal attention inside each run of tokens; saves the probabilities of the lower block triangle."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        heads, tokens, width = q.shape
        groups = heads // k.shape[0]
        out = torch.empty(tokens, heads, width, dtype=q.dtype, device=q.device)
        block = min(QUERY_BLOCK, max(lengths))
        future = torch.full((block, block), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
        probabilities = []
        for start, first, last in _blocks(lengths):
            scores = torch.bmm(_grouped(q[:, first:last], groups), k[:, start:last].transpose(1, 2))
            size = last - first
            scores.view(-1, groups, size, last - start)[..., first - start :] += future[:size, :size]
            probability = torch._softmax(scores, -1, False)
            mixed = torch.bmm(probability, v[:, start:last])
            out[first:last] = mixed.view(heads, size, width).transpose(0, 1)
            probabilities.append(probability)
        ctx.save_for_backward(q, k, v, *probabilities)  # type: ignore[attr-defined]
        ctx.lengths = lengths  # type: ignore[attr-defined]
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *probabilities = ctx.saved_tensors  # type: ignore[attr-defined]
        groups = q.shape[0] // k.shape[0]
        grad = grad.transpose(0, 1).contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        blocks = zip(_blocks(ctx.lengths), probabilities, strict=True)  # type: ignore[attr-defined]
        ends = set(itertools.accumulate(ctx.lengths))  # type: ignore[attr-defined]
        for (start, first, last), probability in reversed(list(blocks)):
            keys = slice(start, last)
            # A piece's last block sees all of its keys: it comes first and writes what the others add to.
            beta = 0 if last in ends else 1
            grad_out = _grouped(grad[:, first:last], groups)
            grad_v[:, keys].baddbmm_(probability.transpose(1, 2), grad_out, beta=beta)
            grad_p = torch.bmm(grad_out, v[:, keys].transpose(1, 2))
            grad_s = torch._softmax_backward_data(grad_p, probability, -1, probability.dtype)
            grad_q[:, first:last] = torch.bmm(grad_s, k[:, keys]).view(q.shape[0], last - first, -1)
            grad_k[:, keys].baddbmm_(grad_s.transpose(1, 2), _grouped(q[:, first:last], groups), beta=beta)
        return grad_q, grad_k, grad_v, None


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


def causal_attention(q_hnk: Tensor, k_hnk: Tensor, v_hnk: Tensor, *, lengths: tuple[int, ...]) -> Tensor:
    """softmax(q k' + causal mask) v inside each of the consecutive runs of tokens.

    Keeps the probabilities for backward: h * length^2 / 2 numbers a run, which on CPU buys a backward pass several
    times as fast as that of PyTorch's flash kernel.

    Args:
        q_hnk: [h, n, k], already scaled by 1 / sqrt(k).
        k_hnk, v_hnk: [h/g, n, k].
        lengths: tokens of each run, in order; they sum to n.

    Returns:
        [n, h, k].

    Source: Vaswani et al. 2017, eq. 1; grouped heads: Ainslie et al. 2023.
    """
    return _CausalAttention.apply(q_hnk, k_hnk, v_hnk.contiguous(), lengths)


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
