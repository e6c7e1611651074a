"""A generator in a new style from 1, 5 and 20 pieces of it; rows for docs/results/adaptation.md.

    OMP_NUM_THREADS=1 python benchmarks/adapt_style.py --data FOLDER [--val rock] [--test folk] [--seeds 0 1 2] [--cases ...]

FOLDER has a subfolder for each style. A language model is trained on all styles but two (`plain`, START steps). Each case goes on
from it: `plain` with ordinary training, the others by meta-learning on episodes of a training style, with as many passes over
pieces. `evaluate.py` then adapts each to pieces of the test style, which no training has seen, and asks about other pieces of it.
The learning rate of each adaptation is chosen on the style --val by evaluate.py, and that of meta-learning (RATE) was, too
(val_nll in the rows, after adaptation). All by the commands that a user would type.
"""

import argparse
import csv
import tempfile
from pathlib import Path

from peer import append_row, context
from representation import call
from training import ROOT

ROWS = ROOT / "docs" / "results" / "rows" / "adaptation.jsonl"
MODEL = [
    "task=few_shot_generation", "model.dim=64", "model.num_layers=2", "model.hidden_dim=128", "data.max_len=256",
    "data.max_eval_len=256", "data.eval_overlap=0.25", "data.val_episodes=10", "logger=[csv]",
]  # fmt: skip
RATE = 0.001  # of meta-learning; train.py's default is for weights that start at random
START = 600  # steps of the model that all cases start from
CASES = {  # what goes on from it, in how many steps, and what is adapted; a step of three inner ones counts as three
    "plain": (["algorithm=null"], 180, "all,adapters,scratch"),
    "reptile": (["algorithm=reptile"], 60, "all,inner"),
    "fomaml": (["algorithm=fomaml"], 60, "all,inner"),
    "maml": (["algorithm=maml"], 60, "all,inner"),
}


def lowest(metrics: Path) -> float:
    """Returns the lowest val/nll of a run."""
    with metrics.open(newline="") as file:
        return min(float(row["val/nll"]) for row in csv.DictReader(file) if row.get("val/nll"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with a subfolder for each style")
    parser.add_argument("--val", default="rock")
    parser.add_argument("--test", default="folk")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", default=["plain", "reptile", "fomaml"], choices=list(CASES))
    parser.add_argument("--lr", type=float, help=f"of Muon in the second stage; without it {RATE} for meta-learning")
    parser.add_argument(
        "--asked", nargs="+", default=["queries=8", "draws=2", "rates=[0.001,0.005]"], help="task.* of evaluate.py"
    )
    parser.add_argument("--splits", nargs="+", default=["test"], choices=["val", "test"])
    parser.add_argument("--keep", type=Path, help="keep runs here, and go on from those that are there")
    parser.add_argument("--options", nargs="*", default=[], help="of train.py in the second stage")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    styles = [f"data.root={args.data}", f"data.corpus.val=[{args.val}]", f"data.corpus.test=[{args.test}]"]
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.keep or Path(scratch)
            common = [*MODEL, *styles, f"seed={seed}", f"outputs={folder}", f"cache_dir={folder / 'cache'}"]
            start = folder / f"start_{seed}"
            if not (start / "checkpoints" / "last.ckpt").is_file():
                length = [f"max_steps={START}", f"trainer.val_check_interval={START // 3}"]
                call("train.py", *common, "algorithm=null", *length, f"hydra.run.dir={start}")
            for name in args.cases:
                how, steps, methods = CASES[name]
                lr = args.lr or (None if name == "plain" else RATE)
                rate = [] if lr is None else [f"optimizer.lr={lr}", f"optimizer.adamw_lr={lr}"]
                run = folder / "_".join([name, str(seed), str(lr or "default"), *args.options])
                options = [*how, f"weights={start}", *rate, *args.options]
                length = [f"max_steps={steps}", f"trainer.val_check_interval={steps // 3}"]
                _, cpu = call("train.py", *common, *options, *length, f"hydra.run.dir={run}")
                about = {
                    "case": name, "seed": seed, "lr": lr, "options": args.options, "val_style": args.val,
                    "test_style": args.test, "start": START, "more": steps, "val_nll": lowest(run / "metrics.csv"),
                    "train_cpu_s": round(cpu, 1),
                }  # fmt: skip
                for split in args.splits:
                    at = folder / f"{run.name}_{split}"
                    asked = [f"task.{option}" for option in args.asked]
                    own = [f"ckpt={run}", f"task.methods=[{methods}]", f"task.split={split}", f"task.seed={seed}"]
                    _, used = call(
                        "evaluate.py", "task=few_shot_generation", *own, *asked, f"outputs={folder}", f"hydra.run.dir={at}"
                    )
                    with (at / "few_shot_generation.csv").open(newline="") as file:
                        for row in csv.DictReader(file):
                            append_row(args.rows, about | dict(row) | {"evaluate_cpu_s": round(used, 1)} | context())


if __name__ == "__main__":
    main()
