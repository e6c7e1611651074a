"""Trains style transfer for a given budget of CPU-seconds on one thread; writes rows for docs/results/style_transfer.md.

    OMP_NUM_THREADS=1 python benchmarks/style_transfer.py --budget 90 --pairs folk,rock folk,jazz --seeds 0 1 2 \
        --rows docs/results/rows/style_transfer.jsonl

The budget covers the training steps: losses, backward pass, clipping, optimizer, average. It does not cover drawing batches
(under 1 ms each) and validation. The number of steps is computed from the speed of a trial of 40 steps.

With --bed FOLDER, the audio is that of another test bed, see second_bed.py; --heard N listens to N songs, too:

    OMP_NUM_THREADS=1 python benchmarks/style_transfer.py --bed outputs/second_bed --heard 12 --budget 600 --seeds 0 \
        --rows docs/results/rows/style_second.jsonl

With --case supervised, the same networks learn from tunes that are rendered in both styles (see supervised.py): the bound that
unpaired training approaches. With --split val, outputs are compared with the validation tunes, as for every choice.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf, open_dict
from peer import context
from supervised import paired_data
from training import composed, trained_audio

from etude.evaluation.styles import score_styles
from etude.run.quiet import quiet_lightning


class StepClock(pl.Callback):
    """Measures the CPU-seconds of training steps, and counts losses that are not finite."""

    def __init__(self) -> None:
        self.seconds = self.wall = self._start = self._start_wall = 0.0
        self.steps = self.not_finite = 0
        self.curve: list[list[float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._start, self._start_wall = time.process_time(), time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.seconds += time.process_time() - self._start
        self.wall += time.perf_counter() - self._start_wall
        self.steps += 1
        self.not_finite += not bool(torch.isfinite(outputs["loss"]))

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        found = trainer.callback_metrics
        self.curve.append([round(self.seconds, 1), *(round(float(found[name]), 4) for name in ("val/frechet", "val/l1"))])


def fit(
    cfg: Any, folder: Path, *, steps: int, checks: int, bed: bool = False, supervised: bool = False, stops: bool = False
) -> tuple[Any, Any, StepClock]:
    """Trains as train.py does, with `checks` validations, and returns (task with its averaged weights, data, clock).

    bed: whether data.root is a folder of second_bed.py. Checkpoints call it a folder of audio: they name Etude's classes only.
    supervised: train on paired tunes, see supervised.py. stops: whether the technique early_stopping may end the run, as in
    train.py; a budget is used up without it.
    """
    if not stops:
        with open_dict(cfg):
            cfg.technique.pop("early_stopping", None)
    data = OmegaConf.merge(cfg.data, {"corpus": {"_target_": "second_bed.SplitFolder"}}) if bed else cfg.data
    data = paired_data(data, cfg.styles) if supervised else data
    clock, task_class = StepClock(), "supervised.Supervised" if supervised else None
    return *trained_audio(cfg, folder, steps=steps, checks=checks, clock=clock, data=data, task_class=task_class), clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=90, help="CPU-seconds of training steps")
    parser.add_argument("--pairs", nargs="+", default=["folk,rock", "folk,jazz"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--songs", type=int, default=None, help="held-out songs; all without it")
    parser.add_argument("--checks", type=int, default=10, help="validations on the way")
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines to append to")
    parser.add_argument("--keep", type=Path, default=None, help="folder for checkpoints, pictures and reports")
    parser.add_argument("--pictures", type=Path, default=None, help="folder for the first seed's mels, style_<from>_to_<to>.png")
    parser.add_argument("--bed", type=Path, default=None, help="folder of second_bed.py; the rendered tunes of Etude without it")
    parser.add_argument("--heard", type=int, default=0, help="held-out songs that are compared as sound, too")
    parser.add_argument("--name", default=None, help="what the table calls this recipe; the case without it")
    parser.add_argument("--case", choices=["default", "supervised"], default="default", help="what the networks learn from")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="the held-out tunes that are compared with")
    parser.add_argument("--steps", type=int, default=None, help="training steps; without it those that the budget allows")
    parser.add_argument("--stops", action="store_true", help="with --steps: validate and stop early as train.py does")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    args.name, supervised = args.name or args.case, args.case == "supervised"
    if supervised and args.bed is not None:
        sys.exit("error: --case supervised renders the training tunes in both styles, which it can't with --bed; leave one out")
    if args.stops and args.steps is None:
        sys.exit("error: --stops lets a run end before its budget is used up; give --steps, too")
    quiet_lightning()
    bed = []
    if args.bed is not None:
        if not args.bed.is_dir():
            sys.exit(f"error: --bed {args.bed} is not a folder; make it with benchmarks/second_bed.py")
        bed = ["data=audio_folder", f"data.root={args.bed}"]
    for pair in args.pairs:
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as scratch:
                folder = (args.keep or Path(scratch)) / f"{args.name}_{pair.replace(',', '-')}_{args.budget:.0f}_{seed}"
                folder.mkdir(parents=True, exist_ok=True)
                options = ["task=style_transfer", f"styles=[{pair}]", f"seed={seed}", *bed, *args.options]
                kind: Any = {"bed": bool(bed), "supervised": supervised}
                if (steps := args.steps) is None:
                    _, _, trial = fit(composed(options, folder), folder, steps=40, checks=0, **kind)
                    steps = max(50, int(args.budget / (trial.seconds / trial.steps)))
                cfg = composed(options, folder)
                checks = max(1, steps // cfg.save_every) if args.stops else args.checks
                task, datamodule, clock = fit(cfg, folder, steps=steps, checks=checks, stops=args.stops, **kind)
                rows = score_styles(
                    task=task, datamodule=datamodule, folder=folder, split=args.split, num_songs=args.songs,
                    perceptual_songs=args.heard,
                )  # fmt: skip
                if args.pictures is not None and seed == args.seeds[0]:
                    for picture in folder.glob("*_to_*.png"):
                        shutil.copyfile(picture, args.pictures / f"style_{picture.name}")
                shared = {
                    "recipe": args.name, "split": args.split, "options": " ".join(options), "pair": pair, "seed": seed,
                    "budget_s": args.budget if args.steps is None else None, "asked_steps": args.steps, "stops": args.stops,
                    "cpu_s": round(clock.seconds, 1), "wall_s": round(clock.wall, 1), "steps": clock.steps,
                    "not_finite": clock.not_finite, "parameters": sum(p.numel() for p in task.generators.parameters()),
                    "curve": clock.curve,
                }  # fmt: skip
                for row in rows:
                    line = {**context(), **shared, **row}
                    print(" ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
                    if args.rows is not None:
                        args.rows.parent.mkdir(parents=True, exist_ok=True)
                        with args.rows.open("a") as file:
                            file.write(json.dumps(line) + "\n")
                print(f"{pair} seed {seed}: {clock.steps} steps, {clock.seconds:.0f} CPU-s, {clock.wall:.0f} s", flush=True)


if __name__ == "__main__":
    main()
