"""What representations of scores are worth, beside floors and supervised training; rows for docs/results/representation.md.

    OMP_NUM_THREADS=1 python benchmarks/representation.py [--held-out oneills1850] [--seeds 0 1 2] [--steps 500]

Each objective trains an encoder on the tunes of data=dances without labels, by the command that a user would type; its vectors
are then probed by `evaluate.py`, with 1, 10 and 100 % of the training labels. `supervised` is task=classifier on all labels, and
`fine-tuned` the same from the first objective's weights. With --held-out, the whole other book is the test.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peer import append_row, context
from training import ROOT

ROWS = ROOT / "docs" / "results" / "rows" / "representation.jsonl"
OBJECTIVES = ("simclr", "moco", "byol", "swav", "masked")
MODEL = ["model.dim=128", "model.num_layers=3", "model.num_heads=4", "model.num_kv_heads=null", "logger=[csv]"]


def call(program: str, *options: str) -> float:
    """Runs a program; returns the seconds that it took."""
    begin = time.monotonic()
    subprocess.run([sys.executable, str(ROOT / program), *options], check=True, cwd=ROOT)
    return time.monotonic() - begin


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", default="null", help="ryansMammoth, oneills1850, or null for tunes of both books")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", nargs="+", default=[*OBJECTIVES, "supervised", "fine-tuned"])
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            data = [f"data.corpus.held_out={args.held_out}", f"seed={seed}", f"outputs={folder}"]
            length = [f"max_steps={args.steps}", f"trainer.val_check_interval={max(1, args.steps // 5)}"]
            for name in args.only:
                run = Path(folder) / name
                task = ["task=representation", f"objective={name}"]
                if name in ("supervised", "fine-tuned"):
                    task = ["task=classifier", "data.batch_size=8"]
                    task += [f"weights={Path(folder) / args.only[0]}"] if name == "fine-tuned" else []
                seconds = call("train.py", *task, *MODEL, *data, *length, f"hydra.run.dir={run}")
                call("evaluate.py", f"ckpt={run}", f"outputs={folder}", f"hydra.run.dir={run}_evaluated")
                kind = "classes" if task[0] == "task=classifier" else "probes"
                for row in table(Path(f"{run}_evaluated") / f"{kind}.csv"):
                    shown = {"objective": name, "held_out": args.held_out, "seed": seed, "steps": args.steps, "kind": kind}
                    append_row(args.rows, shown | dict(row) | {"wall_s": round(seconds, 1)} | context())


if __name__ == "__main__":
    main()
