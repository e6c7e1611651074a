"""The defaults on a folder that they were not chosen on, judged by its held-out pieces; rows for docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/strangers_case.py --ckpt outputs/DATE/TIME_folder --data folder=DIR

The checkpoint is that of `python train.py data=folder data.root=DIR`. Samples of 32 bars at several temperatures, else as
`generate.py` draws them, beside the first 32 bars of held-out pieces: metrics, and the musical Turing test (the balanced accuracy
of a classifier that tells samples from music; 0.5 is chance). They are compared with validation pieces, by which a temperature
may be chosen, and with the test pieces, by which nothing is chosen. Then keys: one for each sample, as `key=` enforces them.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import append_row, context
from training import ROOT, composed

from etude.core.checkpoint_search import find_checkpoint
from etude.metrics.scores.dimensions import measure_features
from etude.metrics.scores.tables import piece_metrics
from etude.metrics.sets.turing import turing_test
from etude.music.score import num_bars, num_notes, trim
from etude.music.theory import estimate_key
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "strangers_case.jsonl"
BARS = 32
SHOWN = ("out of key", "key clarity", "scale consistency", "repeated bars", "self-similarity", "notes per beat", "polyphony")
KEYS = ("C major", "G major", "D major", "F major", "A minor", "E minor", "D minor", "B minor")
HOW: dict[str, Any] = {"top_p": 0.98, "min_p": 0.02, "max_new_tokens": 2048}


def means(scores: list[Any]) -> dict[str, float]:
    rows = [piece_metrics(score) for score in scores]
    return {name: float(np.nanmean([row[name] for row in rows])) for name in SHOWN}


def excerpts(module: Any, split: str) -> list[Any]:
    rows = module.view(split).table["row"].tolist()
    scores = [module.score(split, row) for row in rows]
    return [trim(score, num_bars=BARS) for score in scores if num_bars(score) >= BARS // 2]


def compared(samples: list[Any], real: list[Any]) -> dict[str, Any]:
    told = turing_test(measure_features(samples).matrix, measure_features(real).matrix)
    return {"pieces": len(real), "real": means(real), "turing": [told.score, told.low, told.high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--data", required=True, help="choice of data=, or folder=DIR")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.9, 0.8])
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    task: Any = run.load_task(find_checkpoint(args.ckpt, "outputs", best=True))[0]
    data, _, root = args.data.partition("=")
    cfg = composed([f"data={data}", *([f"data.root={root}"] if root else [])], Path("outputs"))
    module: Any = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), Path("outputs"))
    real = {split: excerpts(module, split) for split in ("val", "test")}
    for temperature in args.temperatures:
        with torch.inference_mode():
            samples: list[Any] = []
            for seed in range(0, args.samples, 16):
                size = min(16, args.samples - seed)
                samples += task.sample(num_samples=size, num_bars=BARS, temperature=temperature, seed=seed, **HOW)
            kept, asked = 0, 0
            for key in KEYS if temperature == args.temperatures[0] else ():
                for piece in task.sample(num_samples=6, labels={"key": key}, num_bars=16, temperature=temperature, **HOW):
                    asked, kept = asked + 1, kept + (str(estimate_key(piece)) == key)
        samples = [piece for piece in samples if num_notes(piece)]
        row = {"temperature": temperature, "samples": len(samples), "metrics": means(samples)}
        row |= {split: compared(samples, pieces) for split, pieces in real.items()}
        append_row(args.rows, {"data": data, **row, "in_key": kept, "keys_asked": asked, **context()})


if __name__ == "__main__":
    main()
