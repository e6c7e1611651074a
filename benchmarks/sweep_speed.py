"""Measures what a sweep costs beyond its trials, and how much faster two slots are than one.

    python benchmarks/sweep_speed.py --rows docs/results/rows/sweep_speed.jsonl

The trials are the function of benchmarks/toy_sweep.py: first 200 that take no time, then 20 that compute for a second each.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from peer import context

ROOT = Path(__file__).parents[1]


def seconds(*options: str) -> float:
    """Returns how long a sweep takes once its warm process is warm."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.toy_sweep", folder, *options]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    found = re.search(r"took ([\d.]+) s", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def main() -> None:
    """Runs the measurements and prints or writes one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--rows", type=Path, default=None)
    given = parser.parse_args()
    trivial = seconds("--n-trials", str(given.trials), "--sampler", given.sampler)
    busy = ("--n-trials", "20", "--seconds", "1", "--busy", "--sampler", "random")
    one, two = seconds(*busy), seconds(*busy, "--n-jobs", "2")
    row = {
        "trials": given.trials, "sampler": given.sampler, "seconds_per_trial": round(trivial / given.trials, 4),
        "one_slot": one, "two_slots": two, "speedup": round(one / two, 3), **context(),
    }  # fmt: skip
    print(json.dumps(row))
    if given.rows is not None:
        with given.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
