"""What technique=adversarial gives beside the same run without it; rows for docs/results/techniques.md.

    OMP_NUM_THREADS=1 python benchmarks/adversarial_gain.py --root FOLDER [--seconds 30] [--cases bare ...] [--seeds 0]

task=language_model with the defaults of a folder of few scores (the weights that come with Etude, REMI tokens, labels told), one
row of 1,024 tokens a step, for the same CPU-seconds of training, the critic's included. Then the likelihood of validation pieces,
and samples of 16 bars, drawn as by generate.py, beside the first 16 bars of the held-out pieces: the closeness of the dimensions
(1: as close as other real music), and the balanced accuracy of a classifier that tells them apart (0.5: it can't).
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from peer import append_row, context
from tokenizer_choice import arguments, done, nats_of_pieces, rates, train
from training import ROOT

from etude.core import bundled
from etude.metrics.scores.dimensions import closeness, dimension_scores, distances_within_real, measure_features
from etude.metrics.sets.turing import turing_test
from etude.music.score import num_bars, num_notes, trim
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "adversarial.jsonl"
GAME = ["technique=[ema,adversarial]", "technique.adversarial.warmup=20"]  # the runs are short
CASES: dict[str, list[str]] = {
    "bare": [],
    "adversarial": GAME,
    "adversarial, weight 0.1": [*GAME, "technique.adversarial.weight=0.1"],
}
BARS, SAMPLES = 16, 32
HOW: dict[str, Any] = {"temperature": 0.9, "top_p": 0.98, "min_p": 0.02, "max_new_tokens": 1024}


def music(task: Any, datamodule: Any) -> dict[str, Any]:
    """How close samples are to the openings of held-out pieces."""
    real = [
        trim(datamodule.score(split, row), num_bars=BARS)
        for split in ("val", "test") for row in datamodule.view(split).table["row"].tolist()
        if num_bars(datamodule.score(split, row)) >= BARS
    ]  # fmt: skip
    with torch.inference_mode():
        samples = task.sample(num_samples=SAMPLES, num_bars=BARS, seed=0, **HOW)
    kept = [score for score in samples if num_notes(score)]
    ours, theirs = measure_features(kept), measure_features(real)
    told = turing_test(ours.matrix, theirs.matrix)
    expected = distances_within_real(theirs, count=len(kept))
    return {
        "samples": len(kept), "real": len(real), "turing": [told.score, told.low, told.high],
        "closeness": dimension_scores(closeness(ours, theirs, expected=expected)),
    }  # fmt: skip


def main() -> None:
    args = arguments(__doc__, list(CASES), ROWS)
    quiet_lightning()
    for seed in args.seeds:
        for name in args.cases:
            if (name, args.seconds, seed) in done(args.rows):
                continue
            options = ["data=folder", f"data.root={args.root}", "max_steps=1000000", "data.batch_size=1", "ema_decay=0.95"]
            options += [f"seed={seed}", *CASES[name], *args.options]
            with tempfile.TemporaryDirectory() as scratch:
                task, datamodule, found = train(options, Path(scratch), args.seconds, start=bundled.PATH)
                nats, tokens, _ = nats_of_pieces(task, datamodule, "val")
                found["val"] = rates(datamodule.manifest("val").to_pylist(), nats, tokens)
                found |= music(task, datamodule)
            append_row(args.rows, {"case": name, "seconds": args.seconds, "seed": seed, **found, **context()})


if __name__ == "__main__":
    main()
