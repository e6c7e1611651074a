"""Do the latents of task=vae do what they say? Rows for docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/latents.py --ckpt outputs/DATE/TIME_folder --data folder=DIR

On held-out pieces: the bound and its parts, and how many latents differ between bars. Then pieces whose bars were changed by -2
to 2 standard deviations of an attribute: the correlation of what was asked with what the notes of the new pieces say, counted
from the decoded scores; beside it that of the other attribute, which should not move. Last, pieces between two scores: the
correlation of their place with how many more notes they share with the last score than with the first.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import append_row, context
from training import ROOT, composed

from etude.core.checkpoint_search import find_checkpoint
from etude.generation.latents import likeness, mean_pitch, notes_of_bar
from etude.music.score import bar_ticks
from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.tasks.vae import ATTRIBUTES
from etude.tokens.changes import bar_lengths

ROWS = ROOT / "docs" / "results" / "rows" / "latents.jsonl"
AMOUNTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
BARS = 8
HOW: dict[str, Any] = {"temperature": 1.0, "top_p": 0.98, "min_p": 0.02, "max_new_tokens": 1200}


def excerpts(task: Any, datamodule: Any, count: int) -> list[Any]:
    """The first bars of test pieces of at least eight bars."""
    view, found = datamodule.view("test"), []
    for number in range(len(view)):
        body = view.body(number)
        starts = task.tokenizer.bar_starts(body)
        if len(starts) > BARS and len(bar_lengths(score := task.tokenizer.decode(body[: starts[BARS]]))) == 1:
            found.append(score)
        if len(found) == count:
            break
    return found


def correlation(asked: list[float], got: list[float]) -> float:
    return float(np.corrcoef(asked, got)[0, 1])


def slides(task: Any, scores: list[Any]) -> dict[str, Any]:
    found = {}
    for attribute in ATTRIBUTES:
        asked: list[float] = []
        notes: list[float] = []
        pitch: list[float] = []
        for seed, score in enumerate(scores):
            made = [task.slide(score, {attribute: amount}, seed=seed, **HOW)[0] for amount in AMOUNTS]
            base = np.array([[notes_of_bar(piece), mean_pitch(piece)] for piece in made])
            base = np.nan_to_num(base - base[AMOUNTS.index(0.0)])
            asked += AMOUNTS
            notes += base[:, 0].tolist()
            pitch += base[:, 1].tolist()
        told = {"density": correlation(asked, notes), "pitch": correlation(asked, pitch)}
        other = next(name for name in ATTRIBUTES if name != attribute)
        per_deviation = float(np.polyfit(asked, notes if attribute == "density" else pitch, 1)[0])
        found[attribute] = {
            "correlation": told[attribute], "other": told[other],
            "change_of_one_deviation": per_deviation,
        }  # fmt: skip
    return found


def between(task: Any, scores: list[Any], steps: int = 5) -> dict[str, Any]:
    places: list[float] = []
    nearer: list[float] = []
    ends: list[float] = []
    alike: dict[float, list[Any]] = {}
    for score in scores:
        alike.setdefault(min(bar_lengths(score)), []).append(score)
    pairs = [pair for group in alike.values() for pair in zip(group[::2], group[1::2], strict=False)]
    for seed, (first, last) in enumerate(pairs):
        pieces = task.interpolate(first, last, steps=steps, seed=seed, **HOW)
        places += [number / (steps - 1) for number in range(steps)]
        nearer += [likeness(piece, last) - likeness(piece, first) for piece in pieces]
        ends += [likeness(pieces[0], first), likeness(pieces[-1], last)]
    return {"correlation": correlation(places, nearer), "pairs": len(ends) // 2, "likeness_of_ends": float(np.mean(ends))}


def bound(task: Any, datamodule: Any) -> dict[str, float]:
    sums: dict[str, float] = {}
    total = 0.0
    for batch in datamodule.test_dataloader():
        for name, found in task.measure(batch).items():
            sums[name] = sums.get(name, 0.0) + float(found.mean) * float(found.count)
        total += float(found.count)
    return {name: value / total for name, value in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="of task=vae")
    parser.add_argument("--data", required=True, help="choice of data=, or folder=DIR")
    parser.add_argument("--pieces", type=int, default=8)
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    task: Any = run.load_task(find_checkpoint(args.ckpt, "outputs", best=False))[0]
    task.eval()
    data, _, root = args.data.partition("=")
    options = ["task=vae", f"data={data}", *([f"data.root={root}"] if root else [])]
    cfg = composed(options, Path("outputs"))
    datamodule = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), Path("outputs"))
    datamodule.setup("test")
    with torch.inference_mode():
        row = {"data": data, **bound(task, datamodule)}
        scores = [score for score in excerpts(task, datamodule, args.pieces) if len(bar_ticks(score)) >= BARS]
        row |= {"pieces": len(scores), "slides": slides(task, scores), "between": between(task, scores)}
    append_row(args.rows, {**row, **context()})


if __name__ == "__main__":
    main()
