"""Which heads of a classifier help which: alone, together, weighted, in groups, by sharing; rows for docs/results/heads.md.

    OMP_NUM_THREADS=1 python benchmarks/heads.py genres --scores DIR [--seeds 0 1 2] [--only joint alone ...]
    OMP_NUM_THREADS=1 python benchmarks/heads.py composers

Every run is `python train.py task=classifier heads=[...] ...` with the options below, in one process. `joint` also has
technique=affinity, which changes nothing; the groups that it tells, by the mean over the seeds so far, are what `grouped` trains.
The weights after the last step are evaluated (their average, by technique=ema), on validation and test pieces: nothing is chosen
on the test pieces.
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from omegaconf import OmegaConf, open_dict
from peer import append_row, context
from training import ROOT, composed

from etude.core.checkpoints import LastCheckpoint
from etude.core.technique import Composition
from etude.evaluation.classes import score_classifier
from etude.metrics.sets.affinity import best_groups
from etude.run import parts
from etude.run.heads import set_targets

ROWS = ROOT / "docs" / "results" / "rows" / "heads.jsonl"
HEADS = {"genres": ["genre", "key", "metre"], "composers": ["composer", "key", "metre"]}
METHODS = ("adaptive", "uncertainty", "dwa", "gradnorm", "pcgrad", "cagrad", "imtl")
SHARED = ("soft", "cross_stitch", "attention")
LONGER = "longer"  # one network for as many steps as the networks of cross_stitch take together
OPTIONS = [
    "task=classifier", "model.dim=64", "model.num_layers=2", "model.num_heads=2", "model.num_kv_heads=null",
    "model.hidden_dim=null", "data.transpose=null", "data.max_len=512", "data.batch_size=8", "data.max_eval_len=1024",
    "logger=[]",
]  # fmt: skip


def shown(groups: list[list[str]]) -> str:
    return "[" + ",".join(f"[{','.join(group)}]" for group in groups) + "]"


def trained(options: list[str], folder: Path, *, steps: int) -> tuple[Any, Any, dict[str, Any]]:
    """Trains as train.py does; returns the task with its last weights, its data, and the techniques by name."""
    cfg = composed([*options, f"max_steps={steps}"], folder)
    with open_dict(cfg):
        set_targets(cfg, [])
    pl.seed_everything(cfg.seed, verbose=False)
    techniques = Composition(parts.build_technique(node) for node in cfg.technique.values()).techniques
    datamodule = parts.prepare_data(cfg.data, parts.instantiate(cfg.tokenizer), folder)
    task = parts.build_task(cfg, **datamodule.parts)
    recipe = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(recipe, dict)
    task.recipe = recipe
    last = folder / "checkpoints" / "last.ckpt"
    trainer = parts.instantiate(
        cfg.trainer, logger=False, enable_progress_bar=False, default_root_dir=str(folder), val_check_interval=steps,
        callbacks=[*techniques, LastCheckpoint(path=last, every_n_steps=steps)],
    )  # fmt: skip
    trainer.fit(task, datamodule=datamodule)
    return parts.load_task(last)[0], datamodule, {each.name: each for each in techniques}


def configurations(heads: list[str], groups: list[list[str]] | None) -> dict[str, list[list[str]]]:
    """Returns for each name the options of its runs; `alone` has one for each head."""
    together = f"heads=[{','.join(heads)}]"
    found = {"joint": [[together, "technique=[ema,affinity]"]], "alone": [[f"heads=[{name}]"] for name in heads]}
    if groups is not None:
        found["grouped"] = [[f"heads={shown(groups)}"]]
    for method in METHODS:
        found[method] = [[together, "technique=[ema,balance]", f"technique.balance.method={method}"]]
    found[LONGER] = [[together]]
    for sharing in SHARED:
        found[sharing] = [[together, f"sharing={sharing}"]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bed", choices=sorted(HEADS))
    parser.add_argument("--scores", type=Path, help="of the bed genres: a folder with a subfolder for each genre")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", default=["joint", "alone", "grouped", LONGER, *METHODS, *SHARED])
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("--floors", action="store_true", help="also the most frequent class and n-grams, with the first run")
    args = parser.parse_args()
    if args.bed == "genres" and args.scores is None:
        parser.error("genres needs --scores DIR")
    heads = HEADS[args.bed]
    data = ["data=composers"] if args.bed == "composers" else ["data=folder", f"data.root={args.scores}"]
    tables = list[np.ndarray]()
    for seed in args.seeds:
        for name in args.only:  # `joint` first, so that its affinities are known
            groups = None
            if tables:
                groups = [[heads[i] for i in group] for group in best_groups(np.mean(tables, axis=0))]
            if name == "grouped" and groups is None:
                parser.error("grouped needs the affinities of joint; add it to --only")
            for more in configurations(heads, groups)[name]:
                with tempfile.TemporaryDirectory() as folder:
                    begin, steps = time.process_time(), args.steps * (len(heads) if name == LONGER else 1)
                    task, datamodule, techniques = trained([*OPTIONS, *data, *more, f"seed={seed}"], Path(folder), steps=steps)
                    spent = round(time.process_time() - begin, 1)
                    own: dict[str, Any] = {"bed": args.bed, "name": name, "options": more, "seed": seed, "steps": steps}
                    if "affinity" in techniques:
                        tables.append(techniques["affinity"].table().numpy())
                        own["affinity"] = np.round(tables[-1], 5).tolist()
                        own |= {"affinity_step": techniques["affinity"].step, "heads": heads}
                    for split in ("val", "test"):
                        floors = args.floors and name == "joint" and seed == args.seeds[0]
                        rows = score_classifier(task=task, datamodule=datamodule, folder=Path(folder), split=split, floors=floors)
                        for row in rows:
                            append_row(args.rows, own | {"split": split, "cpu_s": spent} | row | context())
                    del task, datamodule, techniques
                    gc.collect()


if __name__ == "__main__":
    main()
