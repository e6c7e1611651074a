"""How many training steps TPE with pruning needs for what random search finds; rows for docs/results/sweeps.md.

    OMP_NUM_THREADS=1 python benchmarks/sweep_gain.py --seeds 0 1 2

For each seed, random search makes `--trials` trials of a small chorale model, none of them pruned. TPE with the median pruner
then searches the same space, for the same seed of training, until a trial is as good as the best of random search. Counted are
the optimizer steps of all trials, those that were pruned included. Each sweep is the command that a user would type.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from peer import append_row, context
from training import ROOT

from etude.sweeps.storage import open_storage, storage_url

ROWS = ROOT / "docs" / "results" / "rows" / "sweep_gain.jsonl"
STEPS = 40
MODEL = [
    "data=chorales", "model.dim=64", "model.num_heads=2", "model.num_layers=2", "model.decoder_dim=32", "data.max_len=600",
    f"max_steps={STEPS}", "trainer.val_check_interval=8", "trainer.limit_val_batches=6", "logger=[]",
]  # fmt: skip
SPACE = [
    "optimizer.lr=tag(log,interval(0.0005,0.1))", "optimizer.adamw_lr=tag(log,interval(0.0005,0.1))",
    "optimizer.weight_decay=tag(log,interval(0.01,1.0))", "scheduler.warmup=interval(0.0,0.4)", "model.dropout=interval(0.0,0.4)",
    "model.context_dropout=interval(0.0,0.4)",
]  # fmt: skip


def sweep(name: str, options: list[str], folder: Path) -> optuna.Study:
    """Runs a sweep and returns its study."""
    storage = folder / f"{name}.journal"
    command = [sys.executable, str(ROOT / "train.py"), *MODEL, *SPACE, *options, f"study={name}", f"storage={storage}",
               f"outputs={folder}", f"cache_dir={ROOT / 'outputs' / 'cache'}"]  # fmt: skip
    subprocess.run(command, check=True, cwd=folder)
    return optuna.load_study(study_name=name, storage=open_storage(storage_url(str(storage))))


def steps_of(trial: optuna.trial.FrozenTrial) -> int:
    return STEPS if trial.state == TrialState.COMPLETE else trial.last_step or 0


def compared(seed: int, trials: int, folder: Path) -> dict[str, Any]:
    """The best of random search, and the steps of both until they had it."""
    shared = [f"seed={seed}"]
    random = sweep("random", [*shared, "sweep=random", "pruner=none", f"n_trials={trials}"], folder)
    best = random.best_trial
    options = [*shared, "sweep=tpe", "pruner=median", f"n_trials={2 * trials}", f"target={best.value!r}"]
    tpe = sweep("tpe", options, folder)
    until = [steps_of(trial) for trial in tpe.trials if trial.state.is_finished()]
    found = tpe.best_value
    return {
        "random_best": best.value, "random_steps": trials * STEPS, "random_steps_until": (best.number + 1) * STEPS,
        "tpe_best": found, "reached": found <= best.value, "tpe_steps": sum(until), "tpe_trials": len(until),
        "tpe_pruned": sum(trial.state == TrialState.PRUNED for trial in tpe.trials), "share": sum(until) / (trials * STEPS),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=40, help="of random search; TPE may take twice as many")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            row = {"seed": seed, "trials": args.trials, "steps": STEPS, **compared(seed, args.trials, Path(scratch)), **context()}
        append_row(args.rows, row)


if __name__ == "__main__":
    main()
