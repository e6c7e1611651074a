"""How many samples have what was asked of them, measured on their notes; rows for docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/requests_kept.py --ckpt bundled --samples 48

Each condition is asked for alone, then all together. The key is estimated from the pitches (Krumhansl and Kessler 1982), metre,
tempo, bars and programs are read from the score that was decoded. `model alone` is the same without transposition, so that it
tells how far the model itself keeps to a key.
"""

import argparse
from pathlib import Path
from typing import Any

from peer import append_row, context
from training import ROOT

from etude.core.checkpoint_search import find_checkpoint
from etude.generation.requests import asked_and_got
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "requests.jsonl"
CONDITIONS: dict[str, dict[str, Any]] = {
    "key": {"key": "D major"}, "minor key": {"key": "A minor"}, "metre": {"metre": "3/4"}, "tempo": {"tempo_bpm": 77},
    "programs": {"programs": [40, 42]}, "bars": {},
    "all": {"key": "D major", "metre": "6/8", "tempo_bpm": 77, "programs": [40, 42]},
}  # fmt: skip
BARS = 8


def kept(task: Any, labels: dict[str, Any], *, samples: int, transpose_to_key: bool) -> dict[str, str]:
    """Returns the share of samples that have each of the labels."""
    drawn = task.sample(
        num_samples=samples, labels=labels, num_bars=BARS, max_new_tokens=800, top_p=0.98, min_p=0.02, seed=0,
        transpose_to_key=transpose_to_key,
    )  # fmt: skip
    return {label: share for label, _, _, share in asked_and_got({**labels, "num_bars": BARS}, drawn)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="bundled")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    task: Any = run.load_task(find_checkpoint(args.ckpt, "outputs", best=True))[0]
    for name, labels in CONDITIONS.items():
        for enforced in (True, False) if "key" in labels else (True,):
            shares = kept(task, labels, samples=args.samples, transpose_to_key=enforced)
            shown = name if enforced else f"{name}, model alone"
            append_row(args.rows, {"model": args.ckpt, "condition": shown, "asked": labels, "kept": shares, **context()})


if __name__ == "__main__":
    main()
