"""What robust and semi-supervised training of a classifier is worth; rows for docs/results/robustness.md.

    OMP_NUM_THREADS=1 python benchmarks/robustness.py [--seeds 0] [--steps 200] [--only plain trades]

Three beds: a dance classifier is trained on one tune book and tested on the other (data.corpus.held_out=oneills1850), a composer
classifier on works of seven composers, and a style classifier on mels of rendered tunes, tested on other tunes; in one process,
with the options that a user would give to train.py.
Each case is measured on the same test examples: its accuracy on `--clean` of them, and on `--attacked` under the ensemble, under
noise and by randomized smoothing. Nothing is chosen on these.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf, open_dict
from peer import append_row, context
from training import ROOT, composed

from etude.core.technique import Technique
from etude.evaluation.robustness import attacking, certifying
from etude.evaluation.robustness.examples import Victim, attacked, held_out
from etude.run.heads import set_targets
from etude.run.parts import build_task, build_technique, instantiate, prepare_data
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "robustness.jsonl"
BEDS = {
    "dances": [
        "task=classifier", "data.corpus.held_out=oneills1850", "data.max_len=512", "data.batch_size=4", "model=tiny",
        "model.dim=64", "model.num_layers=2", "model.hidden_dim=192", "technique=[]", "logger=[csv]",
    ],
    "composers": [
        "task=classifier", "data=composers", "data.max_len=512", "data.max_eval_len=512", "data.batch_size=4", "model=tiny",
        "model.dim=64", "model.num_layers=2", "model.hidden_dim=192", "technique=[]", "logger=[csv]",
    ],
    "styles": ["task=classifier", "data=arranged", "heads=[style]", "data.batch_size=4", "technique=[]", "logger=[csv]"],
}  # fmt: skip
HEADS = {"dances": "dance", "composers": "composer", "styles": "style"}
ROBUST = {
    "plain": [],
    "adversarial_training": [
        "technique=[adversarial_training]", "technique.adversarial_training.snr_db={train_db}",
        "technique.adversarial_training.steps=3",
    ],
    "trades": ["technique=[trades]", "technique.trades.snr_db={train_db}", "technique.trades.steps=3"],
}  # fmt: skip
MORE = {
    "mixup": ["technique=[mixup]"],
    "cutmix": ["technique=[cutmix]"],
    "randaugment": ["technique=[randaugment]"],
    "randaugment, learned policy": [  # the best of 14 trials on val of composers, seed 0: sweep=tpe space=augmentation
        "technique=[randaugment]",
        "technique.randaugment.num=2",
        "technique.randaugment.magnitude=0.919",
        "technique.randaugment.operations=[swap_bars]",
        "data.transpose=[-2,3]",
        "task.label_smoothing=0.032",
    ],
    "noisy_student": ["technique=[noisy_student]", "technique.noisy_student.teacher={teacher}"],
    "plain, twice the steps": [],
}


def fit(bed: str, options: list[str], folder: Path, steps: int) -> tuple[Any, Any, float]:
    """Trains as train.py with these options; returns the task, its data and the CPU seconds of training."""
    cfg = composed([*BEDS[bed], *options, f"max_steps={steps}"], folder)
    with open_dict(cfg):
        set_targets(cfg, [])
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule = prepare_data(cfg.data, instantiate(cfg.tokenizer) if cfg.tokenizer else None, folder, outputs=str(folder))
    techniques: list[Technique] = [build_technique(node) for node in (cfg.get("technique") or {}).values()]
    task: Any = build_task(cfg, **datamodule.parts)
    task.recipe = {**OmegaConf.to_container(cfg, resolve=True), "overrides": options}  # type: ignore[dict-item]
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=list(techniques),
    )  # fmt: skip
    begin = time.process_time()
    trainer.fit(task, datamodule=datamodule)
    seconds = time.process_time() - begin
    trainer.save_checkpoint(folder / "last.ckpt")
    return task.eval(), datamodule, seconds


def clean_accuracy(task: Any, data: Any, head: str, number: int) -> dict[str, float]:
    """Returns the accuracy on unchanged test examples, its mean over classes, and how many examples they are."""
    right: dict[int, list[bool]] = {}
    with attacked(task):
        for batch in held_out(task, data, split="test", num=number, seed=0):
            victim = Victim(task, batch, head)
            for true, found in zip(victim.true.tolist(), victim.right.tolist(), strict=True):
                right.setdefault(true, []).append(found)
    every = [found for own in right.values() for found in own]
    balanced = statistics.mean(statistics.mean(own) for own in right.values())
    return {"clean": statistics.mean(every), "balanced": balanced, "tunes": len(every)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bed", choices=list(BEDS), default="dances")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", default=[*ROBUST, *MORE])
    parser.add_argument("--train-db", type=float, default=40, help="signal-to-noise ratio of the attacks in training")
    parser.add_argument("--clean", type=int, default=300, help="test tunes without an attack")
    parser.add_argument("--attacked", type=int, default=48, help="test examples under attack; 0 for none")
    parser.add_argument("--ratios", nargs="+", type=float, default=[50, 40, 30, 20, 10], help="dB")
    parser.add_argument("--effort", type=int, default=15, help="steps of each APGD, a quarter of the queries; 0: no attack")
    parser.add_argument("--samples", type=int, default=0, help="noisy copies of each example for certificates; 0: none")
    parser.add_argument("--noise-db", type=float, default=5, help="signal-to-noise ratio of these copies")
    parser.add_argument("--cache", default=str(ROOT / "outputs" / "cache"))
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            for name in args.only:
                folder = Path(scratch) / name.replace(" ", "_").replace(",", "")
                folder.mkdir()
                filled = {"train_db": args.train_db, "teacher": Path(scratch) / "plain" / "last.ckpt"}
                options = [option.format(**filled) for option in {**ROBUST, **MORE}[name]]
                steps = 2 * args.steps if name.endswith("twice the steps") else args.steps
                task, data, seconds = fit(args.bed, [*options, f"seed={seed}", f"cache_dir={args.cache}"], folder, steps)
                shown = {"bed": args.bed, "name": name, "seed": seed, "steps": steps, "train_db": args.train_db}
                row = {**shown, "cpu_s": round(seconds, 1), **clean_accuracy(task, data, HEADS[args.bed], args.clean)}
                if name in ROBUST and args.attacked:
                    given: dict[str, Any] = {"task": task, "datamodule": data, "folder": folder, "num_examples": args.attacked}
                    if args.effort:
                        under = attacking.score_ensemble(
                            **given, snr_db=args.ratios, steps=args.effort, targets=2, queries=4 * args.effort
                        )
                        row["under_ensemble"] = {str(r["snr_db"]): [r[attacking.UNDER], r[attacking.NOISE]] for r in under}
                        row |= {"effort": args.effort, "attacked": under[0]["examples"]}
                        row["clean_of_attacked"] = under[0]["clean accuracy"]
                    if args.samples:
                        noisy = {"samples": args.samples, "noise_db": args.noise_db}
                        sure = certifying.score_smoothing(**given, **noisy, snr_db=args.ratios, selection=20)
                        row |= {"certified": {str(r["snr_db"]): r[certifying.CERTAIN] for r in sure}, **noisy}
                        row |= {"smoothed": sure[0]["accuracy of the smoothed classifier"], "examples": sure[0]["examples"]}
                append_row(args.rows, row | context())


if __name__ == "__main__":
    main()
