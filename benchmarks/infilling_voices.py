"""How much likelier the true notes of a chorale's passage are given what surrounds it; rows for docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/infilling_voices.py --ckpt outputs/DATE/TIME_jsb --root Jsb16thSeparated.json

For pieces of the test split: two bars of all voices are missing, or one voice throughout, or all but the soprano. The
likelihood of the true cells given everything before and beside them is that of the model: log p(missing | past) + log p(given |
missing, past) - log p(given | past). The last is estimated by the particles that `fill_grid` draws, without bias in the
likelihood; its logarithm is too low on average, by less the more particles there are, so the gain is told for two numbers of
particles. *Left* is what the model says of the same cells from the past only. *Equal* is the share of drawn cells that are the
true ones.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import append_row, context
from training import ROOT

from etude.core.checkpoint_search import find_checkpoint
from etude.data.scores.jsb import read_jsb
from etude.models.symbolic.particles import Cell, fill_grid
from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.tokens.grammar import BOS

ROWS = ROOT / "docs" / "results" / "rows" / "infilling_voices.jsonl"
BAR = 16  # frames
CASES = {"two bars": None, "alto": (1,), "alto, tenor and bass": (1, 2, 3)}


def missing_cells(frames: np.ndarray, case: str, random: np.random.Generator) -> tuple[np.ndarray, int]:
    """Which cells are missing, and the last frame that is looked at."""
    missing = np.zeros(frames.shape, dtype=bool)
    voices = CASES[case]
    if voices is None:
        bar = int(random.integers(1, len(frames) // BAR - 3))
        missing[bar * BAR : (bar + 2) * BAR] = True
        return missing, (bar + 4) * BAR
    missing[: 8 * BAR, voices] = True
    return missing, min(len(frames), 8 * BAR)


def log_likelihoods(task: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The logarithm of each cell's probability given the cells before it, [f, 4]; ends are excluded."""
    ids = torch.tensor([[BOS, *tokens.flatten().tolist()]])
    voice = torch.tensor([[0, *[1, 2, 3, 4] * len(tokens)]])
    logits = task.model(ids, features={"voice": voice})[0, :-1].double()
    logits[:, : task.tokenizer.first_body] = -torch.inf
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None]).view(-1, 4)


def measured(task: Any, pieces: list[np.ndarray], case: str, particles: int, samples: int) -> dict[str, Any]:
    random, left, filled, equal, cells = np.random.default_rng(0), [], [], [], []
    for number, frames in enumerate(pieces):
        if len(frames) < 5 * BAR:
            continue
        missing, end = missing_cells(frames, case, random)
        tokens = torch.from_numpy(task.tokenizer.encode_frames(frames[:end]).reshape(-1, 4).astype(np.int64))
        gone = torch.from_numpy(missing[:end])
        logs = log_likelihoods(task, tokens)
        first = int(gone.any(1).nonzero()[0])
        given = ~gone
        given[:first] = False
        drawn = fill_grid(
            task.model, [BOS], tokens, torch.where(gone, Cell.MISSING, Cell.GIVEN), first_body=task.tokenizer.first_body,
            num_pieces=samples, particles=particles, generator=torch.Generator().manual_seed(number),
        )  # fmt: skip
        evidence = float(drawn.evidence.logsumexp(0) - np.log(samples))
        left.append(-float(logs[gone].sum()))
        filled.append(left[-1] - (float(logs[given].sum()) - evidence))
        equal.append(float((drawn.tokens == tokens)[:, gone].double().mean()))
        cells.append(int(gone.sum()))
        print(f"{case}, {particles} particles: {number + 1}/{len(pieces)}, ratio {sum(filled) / sum(left):.3f}", flush=True)
    a, b = np.array(left), np.array(filled)
    draws = [random.integers(len(a), size=len(a)) for _ in range(1000)]
    ratios = sorted(float(b[d].sum() / a[d].sum()) for d in draws)
    return {
        "case": case, "particles": particles, "samples": samples, "pieces": len(a), "cells": sum(cells),
        "left": a.sum() / sum(cells),
        "infilled": b.sum() / sum(cells), "ratio": b.sum() / a.sum(), "ratio_interval": [ratios[25], ratios[975]],
        "equal": float(np.average(equal, weights=cells)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--root", type=Path, required=True, help="the JSB file")
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--particles", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    task: Any = run.load_task(find_checkpoint(args.ckpt, "outputs", best=True))[0]
    task.eval()
    scores = [score for _, split, score in read_jsb(args.root) if split == "test"][: args.pieces]
    pieces = [task.tokenizer.decode_frames(task.tokenizer.encode(score)) for score in scores]
    for case in args.cases:
        for particles in args.particles:
            with torch.inference_mode():
                row = measured(task, pieces, case, particles, samples=2)
            append_row(args.rows, {**row, **context()})


if __name__ == "__main__":
    main()
