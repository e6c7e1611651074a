"""Every optimizer with settings of its own, found by the same number of trials; rows for docs/results/optimizers.md.

    OMP_NUM_THREADS=1 python benchmarks/optimizers.py tune --data jsb=Jsb16thSeparated.json genres=FOLDER
    OMP_NUM_THREADS=1 python benchmarks/optimizers.py compare --data jsb=Jsb16thSeparated.json genres=FOLDER --seeds 0 1 2

`tune` sees the training pieces of each data set alone, and validates on a fifth of them. It runs the sweep that a user would
type: the space `optimizer`, random search with the median pruner, the same points on every data set, and as one trial more the
settings of conf/optimizer. `compare` trains on all training pieces with the settings that were best on this data set's tuning
pieces ("tuned"), and with those that lost least on all data sets together ("shared"), and validates on the canonical split,
which no setting was chosen on. Rows that are there are not run again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from peer import append_row, context
from techniques import BASELINE, fit
from training import ROOT, composed

from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.sweeps.storage import open_storage, storage_url

ROWS = ROOT / "docs" / "results" / "rows"
TUNING, TABLE = ROWS / "optimizer_tuning.jsonl", ROWS / "optimizers.jsonl"
OPTIMIZERS = ("adamw", "muon", "soap", "lion", "sophia", "adafactor", "lookahead_adamw", "schedule_free")
LEVELS = ("basic", "enhanced", "experimental")
KINDS = ("shared", "tuned", "default")
STEPS, CHECKS = 150, 5
SMALL = {  # data and model of a quarter of a million parameters: 0.05 s a step on one core
    "jsb": [
        "data=jsb", "data.max_len=1032", "model.dim=64", "model.num_heads=2", "model.num_layers=2", "model.decoder_dim=48",
        "model.decoder_layers=1",
    ],
    "genres": [
        "data=folder", "data.max_len=512", "data.batch_size=2", "model.dim=64", "model.num_heads=2", "model.num_kv_heads=2",
        "model.num_layers=2", "model.hidden_dim=192",
    ],
}  # fmt: skip


def shared_options(data: str, root: str | Path, seed: int, steps: int = STEPS) -> list[str]:
    """The options of every run on a data set, whatever the optimizer."""
    return [BASELINE, *SMALL[data], f"max_steps={steps}", f"data.root={root}", f"seed={seed}"]


def chosen_optimizer(name: str) -> list[str]:
    """The options that select an optimizer of the house, with no technique besides its own."""
    return [f"optimizer={name}"] if name == "schedule_free" else [f"optimizer={name}", "technique=[]"]


def tuning_data(data: str, root: Path, folder: Path) -> Path:
    """Writes the training pieces of a data set as one of its own, of which a fifth validates, and returns its path."""
    if data == "jsb":
        chorales = json.loads(root.read_text())
        train, held_out = [[p for i, p in enumerate(chorales["train"]) if (i % 5 == 4) == last] for last in (False, True)]
        path = folder / "tuning.json"
        path.write_text(json.dumps({"train": train, "valid": held_out, "test": held_out}))
        return path
    cfg = composed(shared_options(data, root, 0), folder)
    datamodule = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), folder)
    for row in datamodule.manifest("train").select(["path", "genre"]).to_pylist():
        target = folder / "tuning" / row["genre"] / Path(row["path"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / row["path"], target)
    return folder / "tuning"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def tune(data: str, root: Path, name: str, trials: int, rows: Path) -> None:
    """Appends a row with all trials of one optimizer on the tuning pieces of one data set."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mine = [*shared_options(data, tuning_data(data, root, folder), 0), *chosen_optimizer(name)]
        _, _, default = fit(mine, folder / "default", checks=CHECKS)
        study = f"{data}_{name}"
        options = [
            "sweep=random", "space=optimizer", f"n_trials={trials}", "pruner=median", "pruner_options={n_startup_trials: 2}",
            f"study={study}", f"storage={folder}/study.journal", f"outputs={folder}",
            f"trainer.val_check_interval={STEPS // CHECKS}",
            f"cache_dir={ROOT / 'outputs' / 'cache'}", "logger=[]",
        ]  # fmt: skip
        subprocess.run([sys.executable, str(ROOT / "train.py"), *mine, *options], check=True, cwd=folder)
        found = optuna.load_study(study_name=study, storage=open_storage(storage_url(f"{folder}/study.journal")))
        tried = [
            {
                "settings": {key.partition("@")[0]: float(f"{value:.2g}") for key, value in trial.params.items()},
                "state": trial.state.name,
                "value": trial.value if trial.state == TrialState.COMPLETE else None,
                "steps": STEPS if trial.state == TrialState.COMPLETE else trial.last_step or 0,
            }
            for trial in found.trials
        ]  # fmt: skip
    first = {"settings": {}, "state": "COMPLETE", "value": default["best"], "steps": STEPS}  # those of conf/optimizer
    steps = STEPS + sum(trial["steps"] for trial in tried)
    append_row(rows, {"data": data, "optimizer": name, "trials": [first, *tried], "steps": steps, **context()})


def best_settings(rows: Sequence[dict[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """Returns the settings of an optimizer by data set, and as "shared" those that lose least on all of them together.

    What a trial loses is the distance of its value from the best of its data set. Trial 0 has the settings of conf/optimizer.
    Raises: ValueError if an optimizer was not tuned, or no trial finished on all data sets.
    """
    mine = [row for row in rows if row["optimizer"] == name]
    loss: dict[int, list[float]] = defaultdict(list)
    best: dict[str, dict[str, float]] = {}
    for row in mine:
        finished = [(t["value"], i) for i, t in enumerate(row["trials"]) if t["value"] is not None]
        lowest, number = min(finished)
        best[row["data"]] = row["trials"][number]["settings"]
        for value, i in finished:
            loss[i].append(value - lowest)
    everywhere = {i: sum(values) for i, values in loss.items() if len(values) == len(mine)}
    if not everywhere:
        raise ValueError(f"{name} has no trial that finished on every data set; run `optimizers.py tune` with more --trials")
    return best | {"shared": mine[0]["trials"][min(everywhere, key=everywhere.__getitem__)]["settings"]}


def cases(
    data: str, tuning: Sequence[dict[str, Any]], *, kinds: Sequence[str], only: Sequence[str] | None
) -> dict[str, list[str]]:
    """Returns the options of every row of a data set's table by its name."""
    found: dict[str, list[str]] = {}
    for kind in kinds:
        for name in OPTIMIZERS:
            best = {} if kind == "default" else best_settings(tuning, name)[data if kind == "tuned" else kind]
            found[f"{name}, {kind}"] = [*chosen_optimizer(name), *(f"{key}={value:g}" for key, value in best.items())]
    found |= {f"level {level}": [f"level={level}"] for level in LEVELS}
    return {name: options for name, options in found.items() if not only or name in only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "compare"])
    parser.add_argument("--data", nargs="+", required=True, help="jsb=FILE, genres=FOLDER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of compare; tuning has one")
    parser.add_argument("--trials", type=int, default=7, help="of random search, for each optimizer and data set")
    parser.add_argument("--only", nargs="+", default=None, help="optimizers, or names of rows; all without it")
    parser.add_argument(
        "--kinds", nargs="+", default=["shared", "tuned"], choices=KINDS, help="rows of compare; default: conf/optimizer"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run of compare")
    parser.add_argument("--tuning", type=Path, default=TUNING, help="JSON lines of tuning")
    parser.add_argument("--rows", type=Path, default=TABLE, help="JSON lines of compare")
    args = parser.parse_args()
    quiet_lightning()
    places = {data: Path(root).resolve() for data, _, root in (place.partition("=") for place in args.data)}
    if args.what == "tune":
        for name in args.only or OPTIMIZERS:
            for data, root in places.items():
                if not any((row["data"], row["optimizer"]) == (data, name) for row in rows_of(args.tuning)):
                    tune(data, root, name, args.trials, args.tuning)
        return
    done = {(row["data"], row["name"], row["seed"], row["steps"]) for row in rows_of(args.rows)}
    for seed in args.seeds:
        for data, root in places.items():
            for name, options in cases(data, rows_of(args.tuning), kinds=args.kinds, only=args.only).items():
                if (data, name, seed, args.steps) in done:
                    continue
                with tempfile.TemporaryDirectory() as scratch:
                    _, _, found = fit([*shared_options(data, root, seed, args.steps), *options], Path(scratch), checks=CHECKS)
                append_row(
                    args.rows, {"data": data, "name": name, "seed": seed, "options": " ".join(options), **found, **context()}
                )


if __name__ == "__main__":
    main()
