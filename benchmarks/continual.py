"""Trains on one genre after the other with and without techniques against forgetting; rows for docs/results/continual.md.

    OMP_NUM_THREADS=1 python benchmarks/continual.py --scores FOLDER --seeds 0
    OMP_NUM_THREADS=1 python benchmarks/continual.py --task classifier --scores FOLDER --seeds 0 1 2
    OMP_NUM_THREADS=1 python benchmarks/continual.py --task style_transfer
    OMP_NUM_THREADS=1 python benchmarks/continual.py --scores FOLDER --split val --only "ewc*"   # to choose strengths

FOLDER has a subfolder of scores for each genre. Fine-tuning trains on the genres in turn with nothing against forgetting; joint
training takes as many steps on all of them at once. Strengths were chosen on val; the page shows test. Pieces have no control
tokens, so the model isn't told the genre; packnet, progressive and expandable read each piece as one of its genre. Existing rows
are not measured again.
"""

import argparse
import fnmatch
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from continual_beds import BEDS, Bed
from omegaconf import OmegaConf
from peer import context
from training import ROOT, composed

from etude.core.technique import Composition
from etude.data.scores.module import MusicDataModule
from etude.metrics.sets.forgetting import transfer
from etude.run import parts as run
from etude.run.heads import set_targets
from etude.run.quiet import quiet_lightning
from etude.techniques.continual.forgetting import START, Forgetting

ROWS = ROOT / "docs" / "results" / "rows" / "continual.jsonl"


def fit(options: list[str], folder: Path, bed: Bed) -> dict[str, Any]:
    """Trains as train.py does; returns the forgetting matrix and what the run took."""
    cfg = composed(options, folder)
    set_targets(cfg, [])
    cfg.trainer.limit_val_batches = 0
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer) if cfg.get("tokenizer") else None, folder)
    task = run.build_task(cfg, **datamodule.parts)
    task.recipe = OmegaConf.to_container(cfg, resolve=True)
    techniques = Composition(run.build_technique(node) for node in (cfg.get("technique") or {}).values()).techniques
    trainer = run.instantiate(
        cfg.trainer, logger=False, enable_progress_bar=False, enable_checkpointing=False, default_root_dir=str(folder),
        callbacks=techniques,
    )  # fmt: skip
    started = time.process_time()
    trainer.fit(task, datamodule=datamodule)
    seconds = time.process_time() - started
    (measured,) = (technique for technique in techniques if isinstance(technique, Forgetting))
    rows = [row for row in measured.rows if row["after"] == START or row["ends"] is not None]
    groups = list(measured.groups)
    kept = [groups.index(name) for name in names_of(bed) or groups]  # joint training is measured on what the phases have, too
    shown = {name: [[row["values"][name][place] for place in kept] for row in rows] for name in bed.measures}
    matrix, better = shown[bed.measures[0]], bed.measures[0].endswith("accuracy")
    figures = transfer(matrix[1:], matrix[0], higher_is_better=better) if len(rows) == 1 + len(kept) else {}
    of_scores = isinstance(datamodule, MusicDataModule)
    pieces = datamodule.num_training_pieces if of_scores else len(datamodule.manifest("train"))
    tokens = {"tokens": int(datamodule.view("train").num_tokens)} if of_scores else {}
    return {
        "genres": [groups[place] for place in kept], "after": [row["after"] for row in rows], **shown, **figures,
        "final": sum(matrix[-1]) / len(kept), "pieces": pieces, **tokens,
        "parameters": sum(p.numel() for p in task.parameters()), "steps": trainer.global_step,
        "grown": sum(bool(each.get("grown")) for each in task.phases.added_modules), "cpu_s": round(seconds, 1),
    }  # fmt: skip


def names_of(bed: Bed) -> list[str]:
    """Returns the names of the bed's phases; [] if there is one for each value of its column."""
    order: Any = OmegaConf.to_container(OmegaConf.create(f"order: {bed.order}"))
    return ["+".join(each) if isinstance(each, list) else each for each in order["order"] or []]


def options_of(bed: Bed, case: list[str], *, steps: int | None, split: str) -> list[str]:
    """Returns the options of a run but its data's folder and its seed. case: those of a technique; steps: None for the bed's."""
    column = []
    if bed.column != "genre":
        column = [f"{'stage' if 'stage=genres' in case else 'technique.forgetting'}.column={bed.column}"]
    return [*bed.options, *case, *column, f"max_steps={steps or bed.steps}", f"technique.forgetting.split={split}"]


def done(rows: Path) -> set[tuple[str, str, str, int, str]]:
    """Returns task, name, split, seed and options of the rows that are already in the file."""
    found = map(json.loads, rows.read_text().splitlines()) if rows.is_file() else ()
    return {(row.get("task", "language_model"), row["name"], row["split"], row["seed"], row["options"]) for row in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(BEDS), default="language_model")
    parser.add_argument("--scores", type=Path, help="folder with a subfolder for each genre; style_transfer needs none")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="of all phases together")
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of the names of cases")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    quiet_lightning()
    bed = BEDS[args.task]()
    if bed.needs_scores and args.scores is None:
        parser.error(f"--task {args.task} needs --scores, a folder with a subfolder for each genre")
    data = [f"data.root={args.scores}"] if bed.needs_scores else []
    for seed in args.seeds:
        for name, options in bed.cases.items():
            if not any(fnmatch.fnmatch(name, pattern) for pattern in args.only):
                continue
            mine = [*options_of(bed, options, steps=args.steps, split=args.split), *args.options]
            shown = " ".join(mine)
            if (args.task, name, args.split, seed, shown) in done(args.rows):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                found = fit([*data, *mine, f"seed={seed}"], Path(scratch), bed)
            row = {"task": args.task, "name": name, "split": args.split, "seed": seed, "options": shown, **found, **context()}
            args.rows.parent.mkdir(parents=True, exist_ok=True)
            with args.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                name, seed, {key: row.get(key) for key in ("final", "backward_transfer", "forward_transfer", "cpu_s")}, flush=True
            )


if __name__ == "__main__":
    main()
