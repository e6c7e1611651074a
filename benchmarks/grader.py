"""Trains the grader for a given budget of CPU-seconds and tests it on held-out tunes; writes rows for docs/results/grader.md.

    OMP_NUM_THREADS=1 python benchmarks/grader.py --soundfont FluidR3_GM.sf2 --rows docs/results/rows/grader.jsonl \
        --pictures docs/results

The budget covers training steps and the drawing of their batches, but not validations. Two tests: the held-out tunes as training
renders its tunes, and the same tunes by FluidSynth with another soundfont, which nothing was chosen on.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from peer import append_row, context
from training import composed, trained_audio

from etude.evaluation.grading import score_grader
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

TASK = "task=grader"
PLAYED = ("data.corpus.synthesizer=fluidsynth", "data.corpus.songs_per_style=1")  # held-out tunes stay the same
PICTURES = ("precision_recall", "confusion", "reliability", "quality", "segment_0", "segment_2")


class Clock(pl.Callback):
    """Measures the CPU-seconds of training with its batches, without validations."""

    def __init__(self) -> None:
        self.seconds = self._since = 0.0
        self.curve: list[list[float]] = []

    def on_train_start(self, *_: Any) -> None:
        self._since = time.process_time()

    def on_validation_start(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._since

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        names = ("val/map", "val/clip_nll", "val/quality_error")
        self.curve.append(
            [trainer.global_step, round(self.seconds, 1), *(round(float(trainer.callback_metrics[n]), 4) for n in names)]
        )
        print(self.curve[-1], flush=True)
        self._since = time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._since


def fit(cfg: Any, folder: Path, *, steps: int, checks: int) -> tuple[Any, Any, Clock]:
    """Trains as train.py does, with `checks` validations; returns (task with its averaged weights, data, clock)."""
    clock = Clock()
    return *trained_audio(cfg, folder, steps=steps, checks=checks, clock=clock), clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=360, help="CPU-seconds of training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--checks", type=int, default=4, help="validations on the way")
    parser.add_argument("--soundfont", type=Path, default=None, help="an .sf2 file for the second test, played by FluidSynth")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="val while settings are chosen")
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines to append to")
    parser.add_argument("--pictures", type=Path, default=None, help="folder for the first seed's pictures, grader_*.png")
    parser.add_argument("--keep", type=Path, default=None, help="folder for checkpoints and reports")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    quiet_lightning()
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (args.keep or Path(scratch)) / f"grader_{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            options = [TASK, f"seed={seed}", *args.options]
            _, _, trial = fit(composed(options, folder), folder, steps=30, checks=0)
            steps = max(50, int(args.budget / (trial.seconds / 30)))
            task, datamodule, clock = fit(composed(options, folder), folder, steps=steps, checks=args.checks)
            tests = {"same soundfont": datamodule}
            if args.soundfont is not None:
                data = composed([*options, *PLAYED, f"data.corpus.soundfont={args.soundfont}"], folder).data
                tests[f"{args.soundfont.name} by FluidSynth"] = run.prepare_data(data, None, folder)
            for place, (name, data) in enumerate(tests.items()):
                results = folder / f"test_{place}"
                results.mkdir(exist_ok=True)
                rows, summary = score_grader(task=task, datamodule=data, folder=results, split=args.split)
                shared = {"options": " ".join(options), "seed": seed, "test": name, "split": args.split, "steps": steps,
                          "budget_s": args.budget, "cpu_s": round(clock.seconds, 1), "curve": clock.curve,
                          "parameters": sum(p.numel() for p in task.parameters())}  # fmt: skip
                line = {**context(), **shared, "summary": summary, "defects": rows}
                print(name, json.dumps(summary, indent=1), flush=True)
                for row in rows:
                    print(" ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
                if args.rows is not None:
                    append_row(args.rows, line)
                if args.pictures is not None and seed == args.seeds[0]:
                    suffix = "" if place == 0 else "_other"
                    for picture in PICTURES:
                        shutil.copyfile(results / f"{picture}.png", args.pictures / f"grader_{picture}{suffix}.png")


if __name__ == "__main__":
    main()
