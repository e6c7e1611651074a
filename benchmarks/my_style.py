"""Fine-tuning the bundled model on a small folder: adapters, all weights, and random weights, at equal steps; rows for
docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/my_style.py --data rock=FOLDER --seeds 0 1

Each case is the command of a user, in a process of its own: CPU-minutes and the peak of its memory are those of the whole
command, with reading, validations, samples and the report. Rows that are there are not measured again.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peer import context
from techniques import done
from training import ROOT

ROWS = ROOT / "docs" / "results" / "rows" / "my_style.jsonl"
FULL = "technique=[ema,early_stopping]"
LAYERS = "technique.stages.stages=[{name:finetune,layer_decay:0.8,warmup:0.1}]"
CASES: dict[str, list[str]] = {
    "adapters": [],
    "adapters alone": ["technique.lora.also_train=[]"],
    "all weights": [FULL, "optimizer.lr=0.0015"],
    "all weights, rates by layer": ["technique=[stages,ema,early_stopping]", LAYERS, "optimizer.lr=0.0015"],
    "random weights, default optimizer": [
        FULL,
        "weights=null",
        "optimizer=muon",
        "optimizer.lr=0.006",
        "optimizer.weight_decay=0.1",
        "scheduler=wsd",
        "ema_decay=0.99",
    ],
}
NAMES = {  # columns of a row, and what before_after.csv calls them
    "val": "validation pieces, nats per token", "test": "test pieces, nats per token",
    "in_key": "notes in the piece's key, share", "distance": "distance from held-out pieces, deviations",
    "copied": "copied passages of 12 notes, share",
}  # fmt: skip


def trained_parameters(last: Path) -> int:
    """The number of weights that the optimizer of a checkpoint has a first moment for."""
    states = torch.load(last, map_location="cpu", weights_only=True)["optimizer_states"][0]["state"].values()
    firsts = (next((state[key] for key in ("exp_avg", "momentum_buffer") if key in state), None) for state in states)
    return sum(first.numel() for first in firsts if first is not None)


def curve(metrics: Path) -> list[list[float]]:
    """[step, nats per token] of each validation."""
    with metrics.open(newline="") as file:
        return [[float(row["step"]), float(row["val/nll"])] for row in csv.DictReader(file) if row.get("val/nll")]


def run(options: list[str], folder: Path) -> dict[str, Any]:
    """Trains by the command line and returns what came out of it."""
    command = [sys.executable, str(ROOT / "train.py"), *options, f"hydra.run.dir={folder}"]
    began = time.perf_counter()
    with (folder.parent / "log").open("w") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit((folder.parent / "log").read_text())
    with (folder / "before_after.csv").open(newline="") as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    points = curve(folder / "metrics.csv")
    best = min(points, key=lambda point: point[1])
    found: dict[str, Any] = {
        "steps": int(points[-1][0]), "best_step": int(best[0]), "wall_min": round((time.perf_counter() - began) / 60, 2),
        "cpu_min": round((used.ru_utime + used.ru_stime) / 60, 2), "peak_mb": round(used.ru_maxrss / 1024),
        "trained": trained_parameters(folder / "checkpoints" / "last.ckpt"), "curve": points,
    }  # fmt: skip
    for column, measure in NAMES.items():
        for place, key in (("before", f"{column}_before"), ("after", column), ("the pieces themselves", f"{column}_real")):
            if measure in rows and rows[measure][place]:
                found[key] = float(rows[measure][place])
    log_lines = (folder.parent / "log").read_text().splitlines()
    found["told"] = next((line for line in log_lines if "cop" in line and "passages" in line), "")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="NAME=FOLDER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="names of cases, or `NAME: options`")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    for seed in args.seeds:
        for place in args.data:
            data, _, root = place.partition("=")
            for case in args.cases:
                name, _, given = case.partition(": ")
                if (data, name, seed) in done(args.rows):
                    continue
                mine = [*(CASES[name] if not given else given.split()), f"seed={seed}", *args.options]
                with tempfile.TemporaryDirectory() as scratch:
                    start = ["experiment=my_style", f"data.root={root}"]
                    found = run([*start, *mine], Path(scratch) / "run")
                shown = " ".join(["experiment=my_style", f"data.root={Path(root).name}", *mine])
                row = {"data": data, "name": name, "seed": seed, "options": shown, **found, **context()}
                args.rows.parent.mkdir(parents=True, exist_ok=True)
                with args.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({key: value for key, value in row.items() if key not in ("curve", "options")}, flush=True)


if __name__ == "__main__":
    main()
