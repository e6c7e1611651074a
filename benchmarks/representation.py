"""What representations are worth, beside floors and supervised training; rows for docs/results/representation.md.

    OMP_NUM_THREADS=1 python benchmarks/representation.py [--beds dances essen audio] [--cases masked moco] [--seeds 0 1 2]

A case is an objective, which trains an encoder without labels by the command that a user would type; `evaluate.py` then probes
its vectors with 1, 10 and 100 % of the training labels. With --fine-tune it also trains the encoder further, and a random one:
supervised training from scratch. `classifier` is task=classifier on all labels, `fine-tuned` the same from the encoder --start.

Beds: `dances` trains on one tune book and is tested on another; `essen` holds regions of folk songs; `audio` rendered styles.
A case that has its rows is not repeated, so that the whole can be measured bit by bit. --split val shows the validation split, on
which settings are chosen; those rows go to --rows and not into the tables. --cost measures seconds of CPU per step instead.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peer import append_row, context
from training import ROOT

ROWS = ROOT / "docs" / "results" / "rows" / "representation.jsonl"
COSTS = ROOT / "docs" / "results" / "rows" / "representation_cost.jsonl"
OBJECTIVES = ("masked", "moco", "simclr", "byol", "swav")
SCORES = ["task=representation", "model.dim=128", "model.num_layers=3", "model.num_heads=4", "model.num_kv_heads=null"]
CLASSIFIER = ["task=classifier", *SCORES[1:], "data.batch_size=8"]
BEDS = {
    "dances": (SCORES, ["data=dances", "data.corpus.held_out=oneills1850"], OBJECTIVES),
    "essen": (SCORES, ["data=essen_regions"], OBJECTIVES),
    "audio": (["task=mel_representation"], ["data=arranged"], ("mae", "simclr", "moco", "byol", "swav")),
}


def call(program: str, *options: str) -> tuple[float, float]:
    """Runs a program; returns the seconds and the seconds of CPU that it took."""
    begin, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(ROOT / program), *options], check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - begin, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime


def command(bed: str, case: str, start: str | None) -> list[str]:
    """Returns the options of a case of a bed; start: the run whose weights `fine-tuned` takes."""
    task, data, _ = BEDS[bed]
    if case in ("classifier", "fine-tuned"):
        return [*CLASSIFIER, *data, *([f"weights={start}"] if case == "fine-tuned" else [])]
    return [*task, *data, f"objective={case}"]


def known(rows: Path, **wanted: object) -> bool:
    """Whether there is a row with these entries."""
    lines = rows.read_text().splitlines() if rows.exists() else []
    return any(wanted.items() <= json.loads(line).items() for line in lines)


def measure(args: argparse.Namespace, bed: str, case: str, seed: int) -> None:
    """Trains and evaluates one case; appends its rows."""
    shown = {"bed": bed, "objective": case, "seed": seed, "steps": args.steps, "split": args.split}
    if known(args.rows, **shown):
        print(f"{shown} is there already", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        length = [f"max_steps={args.steps}", f"trainer.val_check_interval={max(1, args.steps // 2)}", "logger=[csv]"]
        common = [f"seed={seed}", f"outputs={folder}", *length, *args.options]
        start = None
        if case == "fine-tuned":
            start = f"{folder}/start"
            call("train.py", *command(bed, args.start, None), *common, f"hydra.run.dir={start}")
        seconds, cpu = call("train.py", *command(bed, case, start), *common, f"hydra.run.dir={folder}/run")
        kind = "classes" if case in ("classifier", "fine-tuned") else "probes"
        tuned = [f"task.fine_tune_steps={args.fine_tune}", f"task.seed={seed}"] if kind == "probes" else []
        judged = "task=representation" if kind == "probes" else "task=classifier"
        where = [
            judged,
            f"ckpt={folder}/run",
            f"outputs={folder}",
            f"hydra.run.dir={folder}/evaluated",
            f"task.split={args.split}",
        ]
        call("evaluate.py", *where, *tuned)
        with (Path(folder) / "evaluated" / f"{kind}.csv").open() as file:
            for row in csv.DictReader(file):
                more = {"kind": kind, "wall_s": round(seconds, 1), "cpu_s": round(cpu, 1), "options": args.options}
                append_row(args.rows, shown | more | dict(row) | context())


def cost(args: argparse.Namespace, bed: str, case: str) -> None:
    """Appends a row with the seconds of CPU of a training step: those of a longer run less those of a shorter, by their steps."""
    few, many, used = 5, 25, []
    with tempfile.TemporaryDirectory() as folder:
        for steps in (1, few, many):  # the first fills the caches
            length = [f"max_steps={steps}", "trainer.limit_val_batches=0", "logger=[]", f"outputs={folder}", "seed=0"]
            length += [f"trainer.val_check_interval={steps}", f"hydra.run.dir={folder}/{steps}"]
            used.append(call("train.py", *command(bed, case, None), *length)[1])
    row = {"bed": bed, "objective": case, "cpu_s_per_step": round((used[2] - used[1]) / (many - few), 4)}
    append_row(args.costs, row | context())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", nargs="+", choices=list(BEDS), default=["dances"])
    parser.add_argument("--cases", nargs="+", default=None, help="objectives, classifier, fine-tuned; without it, all of the bed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--fine-tune", type=int, default=0, help="steps of fine-tuning and of supervised training on each share")
    parser.add_argument("--start", default="masked", help="the objective from whose encoder `fine-tuned` starts")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--options", nargs="*", default=[], help="further options of train.py, as task.crop=0.2")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("--cost", action="store_true", help="measure the cost of a step instead")
    parser.add_argument("--costs", type=Path, default=COSTS, help="JSON lines of --cost to append to")
    args = parser.parse_args()
    if (args.split == "val" or args.options) and args.rows == ROWS:
        parser.error("the tables show the test split with default settings; give another file: --rows FILE")
    for bed in args.beds:
        more = () if bed == "audio" else ("classifier",) if args.cost else ("classifier", "fine-tuned")
        for case in args.cases or (*BEDS[bed][2], *more):
            if args.cost:
                cost(args, bed, case)
                continue
            for seed in args.seeds:
                measure(args, bed, case, seed)


if __name__ == "__main__":
    main()
