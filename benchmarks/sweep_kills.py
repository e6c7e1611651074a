"""Kills a sweep at random moments, starts it again each time, and compares it with one that nothing interrupted.

    python benchmarks/sweep_kills.py --kills 10 --seed 0

It ends with an error if a trial is missing, was done twice or came to another value, or if another trial is the best.
"""

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peer import context

ROOT = Path(__file__).parents[1]


def start(folder: Path, trials: int, jobs: int) -> "subprocess.Popen[bytes]":
    """Starts the sweep of benchmarks/toy_sweep.py in this folder, or goes on with it."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    options = ["--n-trials", str(trials), "--n-jobs", str(jobs), "--seconds", "0.5", "--lease-seconds", "5"]
    command = [sys.executable, "-m", "benchmarks.toy_sweep", str(folder), *options]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def outcome(folder: Path) -> list[tuple[Any, ...]]:
    """Returns number, state, values and parameters of every trial."""
    import optuna

    from etude.sweeps.storage import open_storage, storage_url

    study = optuna.load_study(storage=open_storage(storage_url(str(folder / "study.journal"))), study_name="toy")
    return [(t.number, t.state.name, t.values, t.params) for t in study.get_trials(deepcopy=False)]


def ends(folder: Path) -> collections.Counter[str]:
    """Returns how often each trial has come to its end."""
    lines = (folder / "runs.txt").read_text().splitlines()
    return collections.Counter(line.split()[1] for line in lines if line.startswith("end"))


def main() -> None:
    """Runs both sweeps and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines to append to")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        began = time.monotonic()
        if start(whole, given.trials, given.jobs).wait():
            sys.exit("the uninterrupted sweep failed")
        took = time.monotonic() - began
        kills = 0
        while kills < given.kills:
            process = start(killed, given.trials, given.jobs)
            try:
                process.wait(timeout=draw.uniform(0.1, 2.5) * took / given.kills)
                break  # it has all its trials
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        if start(killed, given.trials, given.jobs).wait():
            sys.exit("the killed sweep could not go on")
        mine, theirs = outcome(killed), outcome(whole)
        twice = [number for number, count in ends(killed).items() if count > 1]
        best = [min(values[0] for _, _, values, _ in found if values) for found in (mine, theirs)]
        row = {
            "kills": kills, "trials": len(mine),
            "finished": sum(state in ("COMPLETE", "FAIL", "PRUNED") for _, state, _, _ in mine),
            "twice": len(twice), "same": sum(a == b for a, b in zip(mine, theirs, strict=False)), "best": best[0],
            "best_uninterrupted": best[1],
        }  # fmt: skip
        row |= {"jobs": given.jobs, "seed": given.seed, **context()}
        print(json.dumps(row))
        if given.rows is not None:
            with given.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if row["finished"] != given.trials or twice or (given.jobs == 1 and mine != theirs):
            sys.exit("the killed sweep is another one")


if __name__ == "__main__":
    main()
