"""New tune families from a few tunes of each, beside floors; rows for docs/results/few_shot.md.

    OMP_NUM_THREADS=1 python benchmarks/few_shot.py [--algorithms prototypical ...] [--seeds 0 1 2] [--steps 200] [--splits test]

Each algorithm trains an encoder on episodes of the training families by the command that a user would type, and `evaluate.py`
asks about families of the split, which no training has seen. Choose on --split val; the tables show both. --regions also
asks about regions of other tunes of the collection, without training on any. --options are
passed on to train.py and kept in the row. --all-others instead tells what the labels allow: how often the nearest of all other
tunes of five families, by an alignment before any training, is of the right one.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
from peer import append_row, context
from representation import call
from training import ROOT, composed

from etude.evaluation.few_shot import of_beginnings
from etude.run.parts import build_task, instantiate, prepare_data

ROWS = ROOT / "docs" / "results" / "rows" / "few_shot.jsonl"
MODEL = [
    "model.dim=64", "model.num_layers=2", "model.hidden_dim=128", "data.max_len=256", "data.max_eval_len=256",
    "data.val_episodes=30", "logger=[csv]",
]  # fmt: skip
ALL_OTHERS, EPISODES_OF_ALL = "the nearest of all other tunes", 1500
EPISODES = {  # of training; those of inner loops need the ways of the test
    "alignment": ["data.ways=10", "data.queries=2", "data.batch_size=1"],
    "prototypical": ["data.ways=10", "data.queries=2", "data.batch_size=1"],
    "matching": ["data.ways=10", "data.queries=2", "data.batch_size=1"],
    "maml": ["data.batch_size=1"],
    "fomaml": ["data.batch_size=1"],
    "reptile": ["data.batch_size=1"],
}
ADAPTING = ("maml", "fomaml", "reptile")
REGIONS = [
    "+data.corpus._target_=etude.data.scores.essen.UnseenRegions", "+data.targets=[region]", "+data.ways=2",
]  # fmt: skip  # of the data that the encoder is asked about


def all_others(args: argparse.Namespace) -> None:
    """Appends a row for each split: the accuracy where all other tunes of the five families of an episode are known."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed(["task=few_shot", *args.options], Path(folder))
        data = prepare_data(cfg.data, instantiate(cfg.tokenizer), Path(folder))
        task = build_task(cfg, **data.parts).eval()
        for split in args.splits:
            beginnings = of_beginnings(task, task.melodies, data.evaluation_loader(split))
            row_of = data.view(split).table["row"]
            families = data.members(split, ways=5, shots=1, queries=1)["family"].values()
            tunes = [int(row_of[place]) for places in families for place in places]
            family = np.repeat(np.arange(len(families)), [len(places) for places in families])
            melodies = torch.stack([beginnings[tune] for tune in tunes])
            near = np.full((len(tunes), len(tunes)), -np.inf)
            one, other = np.triu_indices(len(tunes), 1)
            with torch.inference_mode():
                for start in range(0, len(one), 512):
                    i, j = one[start : start + 512], other[start : start + 512]
                    near[i, j] = near[j, i] = task.algorithm.alignment(melodies[i], melodies[j]).numpy()
            draws, right = np.random.default_rng(0), list[bool]()
            for _ in range(EPISODES_OF_ALL):
                ways = draws.permutation(len(families))[:5]
                known = np.isin(family, ways)
                for way in ways:
                    tune = draws.choice(np.flatnonzero(family == way))
                    right.append(bool(family[np.where(known, near[tune], -np.inf).argmax()] == way))
            row = {"data": "families", "split": split, "method": ALL_OTHERS, "families": len(families), "tunes": len(tunes)}
            row |= {"episodes": EPISODES_OF_ALL, "accuracy": float(np.mean(right)), "options": args.options}
            append_row(args.rows, row | context())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=list(EPISODES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--splits", nargs="+", default=["val", "test"])
    parser.add_argument("--regions", action="store_true")
    parser.add_argument("--tuned", type=int, default=0, help="episodes of fine-tuning on the shots")
    parser.add_argument("--adapted", type=int, default=60, help="episodes of algorithms that adapt a network to each")
    parser.add_argument("--options", nargs="*", default=[], help="of train.py")
    parser.add_argument("--run", type=Path, help="ask about this run of one algorithm and seed, instead of training")
    parser.add_argument("--all-others", action="store_true", help="measure what the labels allow instead")
    parser.add_argument(
        "--as-it-stands", action="store_true", help="train by task=few_shot and a seed alone, for the default path"
    )
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    if args.all_others:
        all_others(args)
        return
    for seed in args.seeds:
        for name in args.algorithms:
            with tempfile.TemporaryDirectory() as folder:
                run = args.run or Path(folder) / name
                own = [f"seed={seed}", f"outputs={folder}", f"hydra.run.dir={run}", *args.options]
                if not args.as_it_stands:
                    length = [f"max_steps={args.steps}", f"trainer.val_check_interval={max(1, args.steps // 4)}"]
                    own = [f"algorithm={name}", *EPISODES[name], *MODEL, *length, *own]
                command = ["train.py", "task=few_shot", *own]
                seconds = call(*command) if args.run is None else None
                asked = [(split, "families", []) for split in args.splits]
                asked += [("test", "regions", REGIONS)] if args.regions else []
                for split, data, options in asked:
                    at = Path(folder) / f"{data}_{split}"
                    few = [f"task.tuned_episodes={args.tuned}", f"task.split={split}"]
                    few += [f"task.adapted_episodes={args.adapted}"] if name in ADAPTING else []
                    call(
                        "evaluate.py", f"ckpt={run}", "task=few_shot", f"outputs={folder}", f"hydra.run.dir={at}", *few, *options
                    )
                    with (at / "few_shot.csv").open() as file:
                        for row in csv.DictReader(file):
                            shown = {"algorithm": name, "data": data, "seed": seed, "steps": args.steps, "options": args.options}
                            shown |= {"as_it_stands": True} if args.as_it_stands else {}
                            append_row(args.rows, shown | dict(row) | {"wall_s": seconds and round(seconds[0], 1)} | context())


if __name__ == "__main__":
    main()
