"""Hand-written forward and backward passes of the functions that take most of a Transformer's time on CPU.

Profiling a plain implementation under bf16 autocast on two CPU cores shows what is slow: the backward pass of scaled
dot-product attention (six times its forward pass), RMSNorm written as five elementwise operations, and dropout masks from a
serial random generator. Each function here computes the same in fewer passes over memory, and is tested against autograd. None
supports double backward or `torch.func`: a second derivative raises; build the model with `fused=False` for that.

Shapes: n tokens (all rows flattened), h heads, g query heads per key-value head, k head width, r norm groups.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

EPSILON = 1e-12  # added to the mean square; only keeps a row of zeros finite
QUERY_BLOCK = 256  # rows of the score matrix computed at once; skips about half of the masked upper triangle


class _NoDoubleBackward(torch.autograd.Function):
    """Returns the first `count` tensors as if they depended on all of them; differentiating the result raises."""

    @staticmethod
    def forward(ctx: FunctionCtx, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        raise RuntimeError(
            "the Transformer's fused functions have no second derivative; build the model with fused=False (model.fused=false)"
        )


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a hand-written backward pass so that differentiating its gradients raises a RuntimeError.

    PyTorch's `once_differentiable` raises only if the incoming gradient has a graph. Otherwise, for example for
    `autograd.grad(create_graph=True)` of a plain sum, the gradients count as constants and second derivatives are silently
    wrong. Here the gradients stay connected to the inputs, provided that `forward` saves all inputs that they depend on.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        outputs = found if isinstance(found, tuple) else (found,)
        made = [output for output in outputs if output is not None]
        inputs = [value for value in (*ctx.saved_tensors, *grads) if value is not None and value.requires_grad]
        guarded = iter(_NoDoubleBackward.apply(len(made), *made, *inputs))  # type: ignore[no-untyped-call]
        return tuple(None if output is None else next(guarded) for output in outputs)

    return checked


class _RMSNorm(torch.autograd.Function):
    """RMSNorm by PyTorch's weight normalisation: each row is scaled to length g = sqrt(k) gain, in one pass each way."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain: Tensor | None) -> Tensor:
        y, length, norm = _normed(x, gain)
        ctx.save_for_backward(x, gain, length, norm)  # type: ignore[arg-type]
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


def _normed(x: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the normalised rows, the length that each was scaled to, and its norm before."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    length = torch.full((len(rows), 1), math.sqrt(width), dtype=x.dtype, device=x.device)
    if gain is not None:
        length.view(-1, len(gain)).mul_(gain)
    y, norm = torch._weight_norm_interface(rows, length, 0)
    if not norm.all():  # the kernel divides 0 by 0 for a row of zeros
        norm.clamp_(min=math.sqrt(width * EPSILON))
        y = rows * (length / norm).to(x.dtype)
    return y, length, norm


def rms_norm(x: Tensor, gain: Tensor | None = None, *, fused: bool = True) -> Tensor:
    """Scales the last axis to root mean square 1, then by one gain per group.

    y = gain * x / sqrt(mean(x^2) + 1e-12), the mean in at least float32. There is no elementwise gain,
    since the following linear layer contains it.

    Args:
        x: [..., r, k] (or [..., k] when gain is None).
        gain: [r], or None for 1.
        fused: use the two-pass CPU kernel; on other devices PyTorch's own is faster.

    Source: Zhang & Sennrich 2019, eq. 4, without its per-channel gain.
    """
    if fused and x.device.type == "cpu":
        if not torch.is_grad_enabled():
            return _normed(x, gain)[0].view(x.shape)
        normed: Tensor = _RMSNorm.apply(x, gain)  # type: ignore[no-untyped-call]
        return normed
    y = torch.nn.functional.rms_norm(x, (x.shape[-1],), eps=EPSILON).to(x.dtype)
    return y if gain is None else y * gain[:, None].to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    swapped = x.roll(x.shape[-1] // 2, -1)
    return (x * torch.cat((cos, cos), -1)).addcmul_(swapped, torch.cat((-sin, sin), -1))


class _Rotary(torch.autograd.Function):
    """A rotation; its gradient is the inverse rotation, so x is not saved."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin).transpose(0, 1).contiguous()

    @staticmethod
    @first_derivative_only
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        return _rotate(grad.transpose(0, 1).contiguous(), cos, -sin), None, None


def rotary(x_nhk: Tensor, cos: Tensor, sin: Tensor, *, fused: bool = True) -> Tensor:
    """Rotates the pairs (i, i + k/2) of each head by the angles of its token; heads come first in the result.

    Args:
        x_nhk: [n, h, k], k even.
        cos, sin: [n, 1, k/2] in x's dtype.
        fused: use the hand-written passes on CPU; elsewhere `torch.compile` fuses the plain expression.

    Returns:
        [h, n, k].

    Source: Su et al. 2021, eq. 34, with the halves paired as in GPT-NeoX.
    """
    if fused and x_nhk.device.type == "cpu":
        rotated: Tensor = _Rotary.apply(x_nhk, cos, sin)  # type: ignore[no-untyped-call]
        return rotated
    first, second = x_nhk.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).transpose(0, 1)


class _CausalAttention(torch.autograd.Function):
    """Causal attention within each piece; saves the probabilities of the lower block triangle, or of the window."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], window: int | None) -> Tensor:
        heads, tokens, width = q.shape
        groups = heads // k.shape[0]
        out = torch.empty(tokens, heads, width, dtype=q.dtype, device=q.device)
        block = min(QUERY_BLOCK, max(lengths))
        future = torch.full((block, block), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
        probabilities = []
        for start, first, last in _blocks(lengths, window):
            scores = torch.bmm(_grouped(q[:, first:last], groups), k[:, start:last].transpose(1, 2))
            size = last - first
            scores.view(-1, groups, size, last - start)[..., first - start :] += future[:size, :size]
            if window is not None and last - start > window:
                past = torch.full((size, last - start), -math.inf, dtype=q.dtype, device=q.device)
                scores.view(-1, groups, size, last - start).add_(past.tril_(first - start - window))
            probability = torch._softmax(scores, -1, False)
            mixed = torch.bmm(probability, v[:, start:last])
            out[first:last] = mixed.view(heads, size, width).transpose(0, 1)
            probabilities.append(probability)
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.lengths, ctx.window = lengths, window  # type: ignore[attr-defined]
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *probabilities = ctx.saved_tensors  # type: ignore[attr-defined]
        groups = q.shape[0] // k.shape[0]
        grad = grad.transpose(0, 1).contiguous()
        window: int | None = ctx.window  # type: ignore[attr-defined]
        empty = torch.empty_like if window is None else torch.zeros_like
        grad_q, grad_k, grad_v = torch.empty_like(q), empty(k), empty(v)
        blocks = zip(_blocks(ctx.lengths, window), probabilities, strict=True)  # type: ignore[attr-defined]
        ends = set(itertools.accumulate(ctx.lengths)) if window is None else set()  # type: ignore[attr-defined]
        for (start, first, last), probability in reversed(list(blocks)):
            keys = slice(start, last)
            # Without a window, the last block of a piece has all keys: it is processed first and overwrites, the others add.
            beta = 0 if last in ends else 1
            grad_out = _grouped(grad[:, first:last], groups)
            grad_v[:, keys].baddbmm_(probability.transpose(1, 2), grad_out, beta=beta)
            grad_p = torch.bmm(grad_out, v[:, keys].transpose(1, 2))
            grad_s = torch._softmax_backward_data(grad_p, probability, -1, probability.dtype)
            grad_q[:, first:last] = torch.bmm(grad_s, k[:, keys]).view(q.shape[0], last - first, -1)
            grad_k[:, keys].baddbmm_(grad_s.transpose(1, 2), _grouped(q[:, first:last], groups), beta=beta)
        return grad_q, grad_k, grad_v, None, None


def _blocks(lengths: tuple[int, ...], window: int | None) -> list[tuple[int, int, int]]:
    """Returns (first key, first query, end of the queries) of each block of queries, as indices of tokens."""
    blocks, start = [], 0
    size = QUERY_BLOCK if window is None else min(QUERY_BLOCK, max(64, window))  # a narrow window wastes more in large blocks
    for length in lengths:
        for first in range(start, start + length, size):
            seen = start if window is None else max(start, first - window + 1)
            blocks.append((seen, first, min(first + size, start + length)))
        start += length
    return blocks


def _grouped(q_hnk: Tensor, groups: int) -> Tensor:
    """Returns the query heads that share a key-value head, stacked along the token axis: [h/g, g*n, k]."""
    heads, tokens, width = q_hnk.shape
    return q_hnk.reshape(heads // groups, groups * tokens, width)


def causal_attention(
    q_hnk: Tensor, k_hnk: Tensor, v_hnk: Tensor, *, lengths: tuple[int, ...], window: int | None = None
) -> Tensor:
    """Returns causal attention, softmax(q k' + mask) v, within each of the consecutive pieces.

    Saves the probabilities for the backward pass, h * length^2 / 2 numbers per piece, fewer with a window. On CPU
    this makes the backward pass several times as fast as that of PyTorch's flash kernel.

    Args:
        q_hnk: [h, n, k], already scaled by 1 / sqrt(k).
        k_hnk, v_hnk: [h/g, n, k].
        lengths: tokens of each piece, in order; they sum to n.
        window: a token attends to at most the last `window` tokens of its piece, itself included; None for all.

    Returns:
        [n, h, k].

    Source: Vaswani et al. 2017, eq. 1; grouped heads: Ainslie et al. 2023.
    """
    mixed: Tensor = _CausalAttention.apply(q_hnk, k_hnk, v_hnk.contiguous(), lengths, window)  # type: ignore[no-untyped-call]
    return mixed


def dropout(x: Tensor, p: float) -> Tensor:
    """Returns x with each element zeroed with probability p (rounded to 1/65536) and the rest divided by 1 - p.

    On CPU the mask comes from 16 random bits per element, which is four times as fast as `torch.nn.functional.dropout`, whose
    generator is serial. It draws from PyTorch's global generator, so restoring its state restores the masks.
    """
    if x.device.type != "cpu":
        return torch.nn.functional.dropout(x, p)
    threshold = round(p * 65536)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - 32768
    return x * keep.to(x.dtype).mul_(65536 / (65536 - threshold))
