"""Trains `experiment=jsb` on the JSB chorales with several seeds, and fits two baselines: copy-previous-step and count model.

    python benchmarks/jsb.py Jsb16thSeparated.json --seeds 0 1 2

Trains with train.py, measures with evaluate.py, appends a row per run to docs/results/rows/jsb.jsonl.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from peer import context

from etude.evaluation.baselines import CopyPrevious
from etude.evaluation.count_model import CountModel

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "results" / "rows" / "jsb.jsonl"


def baselines(path: Path) -> list[dict[str, object]]:
    """Both baselines, fitted on the training pieces, scored on every token of the others."""
    data = {split: [np.array(piece) for piece in pieces] for split, pieces in json.loads(path.read_text()).items()}
    rows = []
    for name, model in (("copy previous step", CopyPrevious(low=36, high=81)), ("count model", CountModel(low=36, high=81))):
        model.fit(data["train"])
        row: dict[str, object] = {"model": name, "seed": None}
        for split, label in (("valid", "val"), ("test", "test")):
            nats, tokens = sum(model.nats(data[split])), sum(piece.size for piece in data[split])
            row |= {f"{label}_token": nats / tokens, f"{label}_frame": 4 * nats / tokens}
        rows.append(row)
    return rows


def run(path: Path, seed: int, threads: int, overrides: list[str]) -> dict[str, object]:
    """Trains and evaluates one seed; returns its row."""
    folder = ROOT / "outputs" / "results" / f"jsb_seed{seed}_{time.strftime('%m%d%H%M%S')}"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = ["train.py", "experiment=jsb", f"data.root={path}", f"seed={seed}", *overrides]
    train = [sys.executable, *command, f"hydra.run.dir={folder}", "~sampling"]
    started = time.monotonic()
    subprocess.run(train, cwd=ROOT, env=environment, check=True)
    minutes = (time.monotonic() - started) / 60
    measure = [
        "evaluate.py",
        f"ckpt={folder / 'checkpoints' / 'best.ckpt'}",
        "num_samples=0",
        f"hydra.run.dir={folder / 'evaluate'}",
    ]
    subprocess.run([sys.executable, *measure], cwd=ROOT, env=environment, check=True)
    with (folder / "evaluate" / "likelihood.csv").open() as file:
        found = {line["split"]: line for line in csv.DictReader(file)}
    shown = " ".join(["python", *command]).replace(str(path), path.name)
    row: dict[str, object] = {
        "model": "etude" if not overrides else "variant",
        "seed": seed,
        "command": shown,
        "minutes": minutes,
        "threads": threads,
    }
    for split in ("val", "test"):
        row |= {f"{split}_token": float(found[split]["nats_per_token"]), f"{split}_frame": float(found[split]["nats_per_frame"])}
    row["bits_per_note"] = float(found["val"]["bits_per_note"])
    with (folder / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    row["curve"] = [[int(line["step"]), round(float(line["val/nll"]), 4)] for line in lines if line.get("val/nll")]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=2, help="threads of each run")
    parser.add_argument("--no-baselines", action="store_true")
    arguments, overrides = parser.parse_known_args()
    path = arguments.path.resolve()
    ROWS.parent.mkdir(parents=True, exist_ok=True)

    def keep(row: dict[str, object]) -> None:
        with ROWS.open("a") as file:
            file.write(json.dumps({**context(), **row}, default=float) + "\n")
        print({key: value for key, value in row.items() if key != "curve"}, flush=True)

    if not arguments.no_baselines:
        for row in baselines(path):
            keep(row)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = [pool.submit(run, path, seed, arguments.threads, overrides) for seed in arguments.seeds]
        for future in as_completed(futures):
            keep(future.result())


if __name__ == "__main__":
    main()
