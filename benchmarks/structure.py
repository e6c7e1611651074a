"""How much material comes back after 4, 8 and 16 bars: real music, its bars shuffled, and samples; rows for generation.md.

    OMP_NUM_THREADS=1 python benchmarks/structure.py --ckpt bundled --data corpus_free folder=DIR --samples 16

Pieces of 32 bars and more, cut to their first 32; samples of 32 bars. The measure is `recurrence` of
`etude.metrics.scores.similarity`. *Shuffled* has the bars of the real pieces in random order: what key and rhythm alone give.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import append_row, context
from training import ROOT, composed

from etude.core.checkpoint_search import find_checkpoint
from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.similarity import recurrence, self_similarity_matrix
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "structure.jsonl"
BARS, SCALES = 32, (4, 8, 16)


def means(matrices: list[np.ndarray]) -> dict[str, float]:
    return {str(scale): float(np.nanmean([recurrence(matrix, bars=scale) for matrix in matrices])) for scale in SCALES}


def cut(scores: list[Any]) -> list[np.ndarray]:
    """The similarities of the first bars of every score that has so many."""
    found = [self_similarity_matrix(NoteArray.from_score(score)) for score in scores]
    return [matrix[:BARS, :BARS] for matrix in found if len(matrix) >= BARS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="bundled")
    parser.add_argument("--data", nargs="+", default=["corpus_free"], help="choices of data=, or folder=DIR")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    for name in args.data:
        data, _, root = name.partition("=")
        cfg = composed([f"data={data}", *([f"data.root={root}"] if root else [])], Path("outputs"))
        module: Any = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), Path("outputs"))
        tokenizer, real = module.tokenizer, []
        for split in ("val", "test"):
            view = module.view(split)
            real += cut([tokenizer.decode(view.body(i)) for i in range(len(view))])
        if not real:
            continue
        random = np.random.default_rng(0)
        orders = [random.permutation(BARS) for _ in real]
        mixed = [matrix[np.ix_(order, order)] for matrix, order in zip(real, orders, strict=True)]
        append_row(args.rows, {"music": f"{data}, held out", "pieces": len(real), "recurrence": means(real), **context()})
        append_row(args.rows, {"music": f"{data}, bars shuffled", "pieces": len(real), "recurrence": means(mixed), **context()})
    if args.samples:
        task: Any = run.load_task(find_checkpoint(args.ckpt, "outputs", best=True))[0]
        with torch.inference_mode():
            scores = task.sample(num_samples=args.samples, num_bars=BARS, max_new_tokens=2048, top_p=0.98, min_p=0.02, seed=0)
        made = cut(scores)
        append_row(args.rows, {"music": f"samples, {args.ckpt}", "pieces": len(made), "recurrence": means(made), **context()})


if __name__ == "__main__":
    main()
