"""The peer of tokenizer_choice.py: a Llama of transformers of the same shape, trained on rows of fixed length.

All pieces end to end, each between a begin and an end token, cut into rows of 512, one for each step, in a new order for each
epoch; AdamW (betas 0.9 and 0.95, weight decay 0.1), gradients clipped at norm 1, a warm-up of 2 % and a linear decay over the
last 30 % of the time, as Etude's default schedule. Without augmentation and averaging of weights.

Pieces are rated in windows of 512 tokens, of which a quarter repeats the end of the one before; every token counts once, and
the end token does not.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peer import llama
from torch.nn import functional as F

LLAMA = "Llama (transformers) on MidiTok's REMI"
RATES = (0.001, 0.002, 0.004)
ROW, BATCH, OVERLAP = 512, 1, 128
BOS, EOS = 1, 2
HELD_BACK = 10  # to tune the rate, every tenth training piece
SHAPE = {"dim": 64, "layers": 2, "heads": 2, "hidden": 192, "max_len": ROW}

Pieces = Sequence[np.ndarray]


class Rated:
    """A trained Llama that rates pieces."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def nats_of_pieces(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
        """Returns -ln p of each piece and its number of tokens, [n]."""
        nats = [sum(self._nats(*window) for window in windows(len(piece), piece)) for piece in pieces]
        return np.array(nats), np.array([len(piece) for piece in pieces], dtype=np.float64)

    def _nats(self, row: np.ndarray, context: int) -> float:
        tokens = torch.from_numpy(row)[None]
        logits = self.model(tokens[:, :-1], use_cache=False).logits[0].float()
        return float(F.cross_entropy(logits[context:], tokens[0, 1 + context :], reduction="sum"))


def windows(length: int, piece: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (tokens of at most ROW + 1, how many of their predictions are context only); each token is counted once."""
    tokens, counted = np.concatenate([[BOS], piece]), 0
    while counted < length:
        start = max(0, counted - OVERLAP) if counted else 0
        row = tokens[start : start + ROW + 1]
        yield row, counted - start
        counted = start + len(row) - 1


def rows_of(pieces: Pieces) -> torch.Tensor:
    """All pieces end to end, in rows of ROW + 1 tokens that overlap by one; the rest is dropped."""
    stream = np.concatenate([part for piece in pieces for part in ([BOS], piece, [EOS])]).astype(np.int64)
    count = (len(stream) - 1) // ROW
    return torch.from_numpy(np.stack([stream[i * ROW : (i + 1) * ROW + 1] for i in range(count)]))


def fit_llama(pieces: Pieces, *, vocab_size: int, seconds: float, lr: float, seed: int) -> tuple[Rated, dict[str, Any]]:
    """Trains a Llama for so many CPU-seconds."""
    torch.manual_seed(seed)
    model = llama(vocab_size=vocab_size, **SHAPE)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
    rows, draw, steps, spent = rows_of(pieces), torch.Generator().manual_seed(seed), 0, 0.0
    order, start = torch.randperm(len(rows), generator=draw), time.process_time()
    while spent < seconds:
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(rows), generator=draw)])
        batch, order = rows[order[:BATCH]], order[BATCH:]
        share = spent / seconds
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (share + 0.001) / 0.02, (1 - share) / 0.3)
        logits = model(batch[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps, spent = steps + 1, time.process_time() - start
    tokens = steps * BATCH * ROW
    found = {
        "parameters": sum(p.numel() for p in model.parameters()), "steps": steps, "cpu_s": round(spent, 1),
        "trained_tokens": tokens, "epochs": tokens / rows[:, 1:].numel(),
    }  # fmt: skip
    return Rated(model), found


def tuned_rate(pieces: Pieces, *, vocab_size: int, seconds: float, seed: int) -> tuple[float, dict[str, float]]:
    """Returns the best of RATES on every tenth training piece, and the nats per token of each, after so many CPU-seconds."""
    held = pieces[::HELD_BACK]
    rest = [piece for number, piece in enumerate(pieces) if number % HELD_BACK]
    tried = {}
    for lr in RATES:
        nats, tokens = fit_llama(rest, vocab_size=vocab_size, seconds=seconds, lr=lr, seed=seed)[0].nats_of_pieces(held)
        tried[str(lr)] = float(nats.sum() / tokens.sum())
    return float(min(tried, key=lambda name: tried[name])), tried
