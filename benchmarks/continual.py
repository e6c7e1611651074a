"""Trains on one genre after the other with and without techniques against forgetting; rows for docs/results/continual.md.

    OMP_NUM_THREADS=1 python benchmarks/continual.py --scores FOLDER --seeds 0
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
from omegaconf import OmegaConf
from peer import context
from training import ROOT, composed

from etude.core.technique import Composition
from etude.metrics.sets.forgetting import transfer
from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.techniques.continual.forgetting import START, Forgetting

ROWS = ROOT / "docs" / "results" / "rows" / "continual.jsonl"
ORDER = "[classical,folk,jazz,pop,rock]"
SMALL = [
    "data=folder", "data.controls=[]", "data.infill=0", "data.max_len=256", "data.batch_size=4", "data.transpose=null",
    "tokenizer.infill=false", "model.dim=64", "model.num_layers=2", "model.num_heads=2", "model.num_kv_heads=2",
    "model.hidden_dim=128", "optimizer=adamw", "optimizer.lr=0.004", "scheduler=cosine", "weights=null",
]  # fmt: skip
MEMORY = 40  # pieces, of all earlier genres together
UNITS = 64  # hidden units that model=expandable adds to each block, half of those it has


def phases(*techniques: str, **options: Any) -> list[str]:
    """The options of a run in phases."""
    own = [f"technique.{name}={value}" for name, value in options.items()]
    return ["stage=genres", f"stage.order={ORDER}", f"technique=[{','.join(techniques)}]", *own]


CASES: dict[str, list[str]] = {
    "fine-tuning": phases(),
    "joint": ["technique=[forgetting]"],
    "replay": phases("replay", **{"replay.size": MEMORY, "replay.batch_size": 4}),
    "agem": phases("agem", **{"agem.size": MEMORY, "agem.batch_size": 4}),
    "gem": phases("gem", **{"gem.size": MEMORY, "gem.batch_size": 4}),
    "ewc": phases("ewc", **{"ewc.strength": 300, "ewc.samples": 32}),
    "ewc, online": phases("ewc", **{"ewc.strength": 300, "ewc.samples": 32, "ewc.decay": 0.9}),
    "si": phases("si", **{"si.strength": 1}),
    "packnet": phases("packnet"),
    "meta_replay": phases("meta_replay", **{"meta_replay.size": MEMORY, "meta_replay.batch_size": 4}),
    "progressive": [*phases(), "model=progressive"],
    "expandable": [*phases(), "model=expandable", f"model.units={UNITS}"],
}


def fit(options: list[str], folder: Path) -> dict[str, Any]:
    """Trains as train.py does; returns the forgetting matrix and what the run took."""
    cfg = composed(options, folder)
    cfg.trainer.limit_val_batches = 0
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), folder)
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
    shown = {name: [row["values"][name] for row in rows] for name in ("nll_per_note", "nll")}
    figures = transfer(shown["nll_per_note"][1:], shown["nll_per_note"][0]) if len(rows) == 1 + len(measured.groups) else {}
    final = sum(shown["nll_per_note"][-1]) / len(measured.groups)
    return {
        "genres": list(measured.groups), "after": [row["after"] for row in rows], **shown, **figures, "final": final,
        "pieces": datamodule.num_training_pieces, "tokens": int(datamodule.view("train").num_tokens),
        "parameters": sum(p.numel() for p in task.parameters()), "steps": trainer.global_step,
        "grown": sum(bool(each.get("grown")) for each in task.phases.added_modules), "cpu_s": round(seconds, 1),
    }  # fmt: skip


def done(rows: Path) -> set[tuple[str, str, int, str]]:
    """Returns name, split, seed and options of the rows that are already in the file."""
    found = map(json.loads, rows.read_text().splitlines()) if rows.is_file() else ()
    return {(row["name"], row["split"], row["seed"], row["options"]) for row in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, required=True, help="folder with a subfolder for each genre")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=500, help="of all phases together")
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of the names of cases")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    quiet_lightning()
    for seed in args.seeds:
        for name, options in CASES.items():
            if not any(fnmatch.fnmatch(name, pattern) for pattern in args.only):
                continue
            mine = [*SMALL, *options, f"max_steps={args.steps}", f"technique.forgetting.split={args.split}", *args.options]
            shown = " ".join(mine)
            if (name, args.split, seed, shown) in done(args.rows):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                found = fit([f"data.root={args.scores}", *mine, f"seed={seed}"], Path(scratch))
            row = {"name": name, "split": args.split, "seed": seed, "options": shown, **found, **context()}
            args.rows.parent.mkdir(parents=True, exist_ok=True)
            with args.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                name, seed, {key: row.get(key) for key in ("final", "backward_transfer", "forward_transfer", "cpu_s")}, flush=True
            )


if __name__ == "__main__":
    main()
