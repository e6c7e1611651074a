"""Keys and values of the tokens so far, for generating token by token.

Shapes: b batch, t time, g key-value heads, k head width, s slots of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PRODUCTS_FROM = 1024  # slots from which two matrix products are faster than PyTorch's attention kernel (float32 on CPU)


class KVCache:
    """Key-value cache in preallocated buffers, so that adding a token copies nothing.

    A layer with a window of w tokens has w slots: token p lies in slot p mod w, where it replaces token p - w. So its memory and
    the cost of a token stop growing at w tokens.

    Where attention is computed as two matrix products (float32 on CPU, many slots), the tokens of a channel follow each other in
    memory; elsewhere the channels of a token do, as PyTorch's attention kernels expect. The shapes are equal, the strides differ.

    Args:
        num_layers, batch, num_kv_heads, head_dim: sizes of the model and of the batch.
        max_len: number of tokens that fit, and slots of a layer without a window.
        dtype, device: dtype and device of the buffers; keys and values are cast to dtype when they are written.
        windows: the number of tokens that each layer attends to, None for all; None if no layer has a window.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device,
        windows: Sequence[int | None] | None = None,
    ) -> None:
        exact = device.type == "cpu" and dtype in (torch.float32, torch.float64)
        slots = [max_len if window is None else min(window, max_len) for window in windows or [None] * num_layers]
        self.by_products = [exact and count >= PRODUCTS_FROM for count in slots]

        def buffer(count: int) -> Tensor:
            if exact and count >= PRODUCTS_FROM:
                return torch.zeros(batch, num_kv_heads, head_dim, count, dtype=dtype, device=device).transpose(2, 3)
            return torch.zeros(batch, num_kv_heads, count, head_dim, dtype=dtype, device=device)

        self.keys, self.values = [buffer(count) for count in slots], [buffer(count) for count in slots]  # [b, g, s, k] each
        self.batch, self.max_len, self.length = batch, max_len, 0
        self.dtype, self.device = dtype, device
        self.padding_b: Tensor | None = None  # tokens in front of each row that are hidden; None without padding
        self.most_padding = 0
        self.rotary: tuple[int, Tensor, Tensor] | None = None  # first position, cos and sin of it and the next, set by the model
        self.step: Callable[[Tensor, Tensor, Tensor, KVCache], Tensor | None] | None = (
            None  # a `decoding.SingleStep`, set by the model
        )

    @property
    def rolls(self) -> bool:
        """Whether some layer has fewer slots than tokens fit, so that its old tokens are lost."""
        return any(keys.shape[2] < self.max_len for keys in self.keys)

    @property
    def num_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(buffer.nbytes for buffer in (*self.keys, *self.values))

    def reserve(self, time: int) -> None:
        """Raises a ValueError unless `time` more tokens fit."""
        end = self.length + time
        if end > self.max_len:
            raise ValueError(
                f"cache max_len={self.max_len} is full: {end} tokens do not fit; "
                f"create it with new_cache(..., max_len={end}) or more"
            )

    def pad(self, padding_b: Tensor) -> None:
        """Hides the first tokens of each row, which only fill it up to the length of the longest: int64 [b]."""
        self.padding_b, self.most_padding = padding_b.to(self.device), int(padding_b.max())

    def visible(self, layer: int, time: int) -> Tensor | None:
        """Returns which of a layer's keys are no padding, once `time` tokens are appended, bool [b, 1, 1, keys]; None if all are.

        The keys are those that `append` returns.
        """
        slots, end = self.keys[layer].shape[2], self.length + time
        first = max(0, end - slots) if time == 1 else max(0, self.length - slots)  # the oldest token among the keys
        if self.padding_b is None or self.most_padding <= first:
            return None
        position = torch.arange(first, end, device=self.device)
        if time == 1 and first:  # the keys lie in the order of their slots
            position = position.roll(first % slots)
        return (position >= self.padding_b[:, None])[:, None, None]

    def select(self, rows: Tensor, *, last: bool = False) -> None:
        """Makes row i a copy of the former row rows[i]; their number may change.

        last: copies only the latest token, where rows share all others; their number may not change then.
        """
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                slots = buffer.shape[2]
                end = min(self.length, slots)
                if len(rows) != self.batch:
                    buffers[layer] = _rows(buffer, rows)
                elif last:
                    latest = buffer.select(2, (self.length - 1) % slots)
                    latest.copy_(latest[rows])
                else:
                    buffer[:, :, :end] = buffer[rows, :, :end]
        if len(rows) != self.batch:
            self.batch, self.step = len(rows), None  # it holds the former buffers
        if self.padding_b is not None:
            self.padding_b = self.padding_b[rows]

    def rewind(self, length: int) -> None:
        """Forgets all tokens from the number `length` on. Raises: ValueError if a window has lost what they replaced."""
        if self.rolls and any(self.length > keys.shape[2] for keys in self.keys):
            raise ValueError(f"a cache with a window can't go back to {length} tokens: it keeps only the last ones")
        self.length = length

    def append(self, layer: int, k_bgtk: Tensor, v_bgtk: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new keys and values of one layer; returns those that the new tokens may attend to, [b, g, keys, k].

        They are all tokens in order; once old ones are lost, those kept and the new ones in order, or for a single new token, the
        order of the slots.
        """
        keys, values, time = self.keys[layer], self.values[layer], k_bgtk.shape[2]
        slots, end = keys.shape[2], self.length + time
        if time > 1 and end > slots:
            return self._append_rolling(keys, k_bgtk), self._append_rolling(values, v_bgtk)
        start, seen = self.length % slots if time == 1 else self.length, min(end, slots)
        keys[:, :, start : start + time] = k_bgtk
        values[:, :, start : start + time] = v_bgtk
        return keys[:, :, :seen], values[:, :, :seen]

    def _append_rolling(self, buffer: Tensor, new_bgtk: Tensor) -> Tensor:
        slots, time = buffer.shape[2], new_bgtk.shape[2]
        kept = torch.arange(max(0, self.length - slots), self.length, device=buffer.device) % slots
        both = torch.cat((buffer[:, :, kept], new_bgtk.to(buffer.dtype)), dim=2)
        written = torch.arange(max(self.length, self.length + time - slots), self.length + time, device=buffer.device)
        buffer[:, :, written % slots] = both[:, :, -len(written) :]
        return both


def _rows(buffer: Tensor, rows: Tensor) -> Tensor:
    """Returns buffer[rows] with the strides in the same order."""
    if buffer.stride(-1) == 1:
        return buffer[rows]
    return buffer.transpose(2, 3)[rows].transpose(2, 3)
