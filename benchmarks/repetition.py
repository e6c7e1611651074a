"""How much samples repeat themselves, with and without limits; rows for docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/repetition.py --ckpt bundled --samples 16

The same seeds in every condition. A passage is six notes of one track; the prompts of the searches, which draw nothing at random,
are the first four bars of the plain samples. Nats per token under the model say what a condition costs in likelihood.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from peer import append_row, context
from training import ROOT

from etude.core.checkpoint_search import find_checkpoint
from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.similarity import repeated_bar_share, repeated_passages
from etude.music.score import num_bars, trim
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "repetition.jsonl"
BARS, LENGTH, PROMPT = 16, 6, 4
CUTS = {"top_p": 0.98, "min_p": 0.02, "max_new_tokens": 900}
CONDITIONS: dict[str, dict[str, Any]] = {
    "sampling": {}, "no_repeat_ngram=6": {"no_repeat_ngram": 6}, "pitch_penalty=1.5": {"pitch_penalty": 1.5},
    "decoding=contrastive": {"decoding": "contrastive"}, "decoding=beam": {"decoding": "beam"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="bundled")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    task: Any = run.load_task(find_checkpoint(args.ckpt, "outputs", best=True))[0]
    plain = task.sample(num_samples=args.samples, num_bars=BARS, seed=0, **CUTS)
    prompts = [trim(score, num_bars=PROMPT) for score in plain if num_bars(score) >= PROMPT]
    for name in args.conditions:
        if "decoding" in name:
            drawn = task.sample(num_samples=1, prompt=prompts, num_bars=BARS, seed=0, **CUTS, **CONDITIONS[name])
        else:
            drawn = plain if name == "sampling" else task.sample(
                num_samples=args.samples, num_bars=BARS, seed=0, **CUTS, **CONDITIONS[name]
            )  # fmt: skip
        notes = [NoteArray.from_score(score) for score in drawn]
        repeated, every = (sum(column) for column in zip(*(repeated_passages(n, length=LENGTH) for n in notes), strict=True))
        found = {
            "condition": name, "samples": len(drawn), "passages": every, "repeated": repeated / max(every, 1),
            "repeated_bars": float(np.nanmean([repeated_bar_share(n) for n in notes])),
            "nats_per_token": float(np.nanmean(task.nats_per_token(drawn, num_bars=BARS))),
        }  # fmt: skip
        append_row(args.rows, {"model": args.ckpt, **found, **context()})


if __name__ == "__main__":
    main()
