"""The context of the chorale model's next token, kept up to date or computed of the whole piece; rows for docs/results/speed.md.

    OMP_NUM_THREADS=1 python benchmarks/context_speed.py

Both in one process, in turns, on the same made-up frames; CPU time of one token, the median of `--repeats`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peer import append_row, context
from training import ROOT

from etude.models.symbolic.grid_cache import RunningContext
from etude.models.symbolic.grid_context import compute_context

ROWS = ROOT / "docs" / "results" / "rows" / "context_speed.jsonl"


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--bars", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for batch in args.batch:
            for bars in args.bars:
                frames = torch.randint(48, 80, (batch, 16 * bars, 4), generator=generator)
                running = RunningContext(batch, frames.device)
                for pitch in frames.flatten(1).unbind(1):
                    running.push(pitch)
                pitch = frames[:, -1, 0]
                old, new = [], []
                for _ in range(args.repeats):
                    old.append(seconds(lambda frames=frames: compute_context(frames)))
                    new.append(seconds(lambda running=running, pitch=pitch: (running.push(pitch), running.next())))
                row = {"batch": batch, "bars": bars, "whole_s": statistics.median(old), "kept_s": statistics.median(new)}
                append_row(args.rows, {**row, "ratio": row["whole_s"] / row["kept_s"], **context()})


if __name__ == "__main__":
    main()
