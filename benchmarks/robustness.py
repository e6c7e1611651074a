"""What robust and semi-supervised training of a classifier is worth; rows for docs/results/robustness.md.

    OMP_NUM_THREADS=1 python benchmarks/robustness.py [--seeds 0] [--steps 200] [--only plain trades]

Four beds: a dance classifier is trained on one tune book and tested on the other (data.corpus.held_out=oneills1850), a composer
classifier on works of seven composers, a style classifier on mels of rendered tunes, tested on other tunes, and the grader, which
decides for each segment which defects it has; in one process, with the options that a user would give to train.py.
Each case is measured on the same test examples: its accuracy on `--clean` of them, and on `--attacked` under the ensemble, under
noise, by randomized smoothing and by interval bounds; the mean over heads where there are several. Nothing is chosen on these.

The grader takes minutes to learn anything, so its cases go on from a run of benchmarks/grader.py --keep FOLDER:

    OMP_NUM_THREADS=1 python benchmarks/robustness.py --bed defects --start FOLDER/grader_0 --train-db 20 --ratios 40 30 20
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
from etude.run.recipes import load_weights

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
    "defects": ["task=grader", "technique=[]", "logger=[csv]"],
}  # fmt: skip
HEADS = {"dances": ["dance"], "composers": ["composer"], "styles": ["style"], "defects": ["hum", "hiss", "wow"]}
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


def fit(bed: str, options: list[str], folder: Path, steps: int, start: Path | None = None) -> tuple[Any, Any, float]:
    """Trains as train.py with these options, and the weights of the run `start`; returns task, data and CPU seconds."""
    cfg = composed([*BEDS[bed], *options, f"max_steps={steps}"], folder)
    with open_dict(cfg):
        set_targets(cfg, [])
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule = prepare_data(cfg.data, instantiate(cfg.tokenizer) if cfg.get("tokenizer") else None, folder, outputs=str(folder))
    techniques: list[Technique] = [build_technique(node) for node in (cfg.get("technique") or {}).values()]
    task: Any = build_task(cfg, **datamodule.parts)
    task.recipe = {**OmegaConf.to_container(cfg, resolve=True), "overrides": options}  # type: ignore[dict-item]
    if start is not None:
        load_weights(task, start / "checkpoints" / "last.ckpt")
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=list(techniques),
    )  # fmt: skip
    begin = time.process_time()
    if steps:  # without, `start` is measured as it is
        trainer.fit(task, datamodule=datamodule)
        trainer.save_checkpoint(folder / "last.ckpt")
    seconds = time.process_time() - begin
    return task.eval(), datamodule, seconds


def clean_accuracy(task: Any, data: Any, heads: list[str], number: int) -> dict[str, float]:
    """Returns the accuracy on unchanged test examples, its mean over classes, and how many examples they are."""
    accuracies, balanced, tunes = list[float](), list[float](), 0
    with attacked(task):
        batches = held_out(task, data, split="test", num=number, seed=0)
        for head in heads:
            right: dict[int, list[bool]] = {}
            for victim in (Victim(task, batch, head) for batch in batches):
                for true, found in zip(victim.true.tolist(), victim.right.tolist(), strict=True):
                    right.setdefault(true, []).append(found)
            every = [found for own in right.values() for found in own]
            accuracies.append(statistics.mean(every))
            balanced.append(statistics.mean(statistics.mean(own) for own in right.values()))
            tunes = len(every)
    return {"clean": statistics.mean(accuracies), "balanced": statistics.mean(balanced), "tunes": tunes}


def over_heads(found: list[dict[str, Any]], *columns: str) -> dict[str, list[float]]:
    """Returns for each signal-to-noise ratio the columns' means over heads."""
    ratios = dict.fromkeys(row["snr_db"] for row in found)
    here = {ratio: [row for row in found if row["snr_db"] == ratio] for ratio in ratios}
    return {str(ratio): [statistics.mean(row[name] for row in here[ratio]) for name in columns] for ratio in ratios}


def withstood(args: argparse.Namespace, task: Any, data: Any, folder: Path) -> dict[str, Any]:
    """Returns what withstands the attacks that are asked for, and what is certain; means over heads."""
    row = dict[str, Any]()
    given: dict[str, Any] = {"task": task, "datamodule": data, "folder": folder, "num_examples": args.attacked}
    given |= {"snr_db": args.ratios, "heads": HEADS[args.bed]}
    if args.effort:
        under = attacking.score_ensemble(**given, steps=args.effort, targets=2, queries=4 * args.effort)
        row["under_ensemble"] = over_heads(under, attacking.UNDER, attacking.NOISE, attacking.BALANCED)
        row |= {"effort": args.effort, "attacked": under[0]["examples"]}
        row["clean_of_attacked"] = statistics.mean(each["clean accuracy"] for each in under)
        row["balanced_of_attacked"] = statistics.mean(each[attacking.CLEAN_BALANCED] for each in under)
    if args.samples:
        noisy = {"samples": args.samples, "noise_db": args.noise_db}
        sure = certifying.score_smoothing(**given, **noisy, selection=20)
        row["certified"] = {ratio: own[0] for ratio, own in over_heads(sure, certifying.CERTAIN).items()}
        row["smoothed"] = statistics.mean(each["accuracy of the smoothed classifier"] for each in sure)
        row |= {"examples": sure[0]["examples"], **noisy}
    if args.bounds:
        held = certifying.score_ibp(**given, steps=args.bounds)
        row["bounds"] = over_heads(held, certifying.CERTAIN, certifying.ATTACKED)
        row["clean_of_bounded"] = statistics.mean(each["clean accuracy"] for each in held)
    return row


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
    parser.add_argument("--bounds", type=int, default=0, help="interval bounds, too, beside PGD of so many steps; 0: none")
    parser.add_argument("--start", type=Path, help="a run whose weights all cases start with")
    parser.add_argument("--options", nargs="*", default=[], help="further options of train.py, such as model=grader_plain")
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
                own = [*options, *args.options, f"seed={seed}", f"cache_dir={args.cache}"]
                task, data, seconds = fit(args.bed, own, folder, steps, args.start)
                shown = {"bed": args.bed, "name": name, "seed": seed, "steps": steps, "train_db": args.train_db}
                shown |= {"options": args.options} if args.options else {}
                row = {**shown, "cpu_s": round(seconds, 1), **clean_accuracy(task, data, HEADS[args.bed], args.clean)}
                if name in ROBUST and args.attacked:
                    row |= withstood(args, task, data, folder)
                append_row(args.rows, row | context())


if __name__ == "__main__":
    main()
