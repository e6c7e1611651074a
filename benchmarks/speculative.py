"""Speculative decoding against plain sampling of the same model, in turn, at batch 1; rows for docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/speculative.py --draft outputs/DATE/STUDENT [--ckpt bundled] [--pieces 12]

Both draw from the same distribution, but not the same pieces, so seconds per token are compared: of each pair of pieces, and the
median of the pairs' ratios. The student of the row was made by

    python train.py experiment=bundled model.num_layers=1 model.dim=64 max_steps=150 ~sampling \
        technique=[distillation] technique.distillation.teacher=bundled
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from peer import append_row, context
from training import ROOT

from etude.core.checkpoint_search import find_checkpoint
from etude.models.symbolic.sampling import generate
from etude.models.symbolic.speculative import Speculation, random_choice, speculative_sample
from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.tasks.openings import Opening, Rows

ROWS = ROOT / "docs" / "results" / "rows" / "speculative.jsonl"
CUTS = {"temperature": 1.0, "top_k": None, "top_p": 0.98, "min_p": 0.02}
BARS, TOKENS = 16, 400


def seconds_per_token(task: Any, draft: Any, seed: int, *, length: int, told: Speculation) -> float:
    """Draws one piece: plainly, or with a draft of `length` tokens."""
    opening = Opening.of(None, tokenizer=task.tokenizer, controls=())
    rows = Rows.of([opening], 1, tokenizer=task.tokenizer, labels={}, num_bars=BARS)
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"decoder": rows.decoder, "max_new_tokens": TOKENS, **CUTS}
    start = time.perf_counter()
    if length:
        choose = random_choice(generator)
        made = speculative_sample(
            task.model, draft.model, rows.tokens_bt, draft_length=length, choose=choose, told=told, **options
        )
    else:
        made = generate(task.model, rows.tokens_bt, generator=generator, **options)[0]
    return (time.perf_counter() - start) / (len(made) - len(opening.ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="bundled")
    parser.add_argument("--draft", required=True)
    parser.add_argument("--lengths", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--pieces", type=int, default=12, help="pairs of each length")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    task, draft = (run.load_task(find_checkpoint(path, "outputs", best=True))[0] for path in (args.ckpt, args.draft))
    sizes = [sum(p.numel() for p in each.model.parameters()) for each in (task, draft)]
    for length in args.lengths:
        told, ratios = Speculation(), []
        for number in range(args.pieces + 1):
            order = (0, length) if number % 2 else (length, 0)
            spent = {each: seconds_per_token(task, draft, number, length=each, told=told) for each in order}
            if number:  # the first pair warms up
                ratios.append(spent[0] / spent[length])
        found = {
            "parameters": sizes[0], "draft_parameters": sizes[1], "draft_length": length, "pairs": len(ratios),
            "accepted": told.accepted / told.drafted, "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        }  # fmt: skip
        append_row(args.rows, {"model": args.ckpt, **found, **context()})


if __name__ == "__main__":
    main()
