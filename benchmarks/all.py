"""Run every speed comparison and append its rows to docs/results/rows; then `make report` makes the tables.

    python benchmarks/all.py --scores FOLDER --jsb Jsb16thSeparated.json [--threads 1]

The machine should be otherwise idle. FOLDER holds MIDI files.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "results" / "rows"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--jsb", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    scores, jsb, threads = str(args.scores.resolve()), str(args.jsb.resolve()), str(args.threads)
    ROWS.mkdir(parents=True, exist_ok=True)
    for command in (
        ["train_speed.py", "--lengths", jsb, "--cases", "rows", "pieces", "--threads", threads, "--json", "train_speed.jsonl"],
        ["generate_speed.py", "--threads", threads, "--json", "generate_speed.jsonl"],
        ["metrics.py", scores, "--json", "metrics.json"],
        ["data.py", scores, "--json", "data.jsonl"],
    ):
        path = ROWS / command[-1]
        path.unlink(missing_ok=True)
        script = [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:-1], str(path)]
        subprocess.run(script, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
