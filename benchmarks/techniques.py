"""Compares each technique with a run without it, on the same data and with the same steps; rows for docs/results/techniques.md.

    OMP_NUM_THREADS=1 python benchmarks/techniques.py --data jsb=Jsb16thSeparated.json genres=FOLDER --seeds 0 1 2
    OMP_NUM_THREADS=1 python benchmarks/techniques.py --data distillation=Jsb16thSeparated.json --keep outputs/teachers
    OMP_NUM_THREADS=1 python benchmarks/techniques.py --data augmented_few=FOLDER augmented=FOLDER --keep outputs/teachers

A row contains the curve of the validation likelihood over steps and CPU-seconds, which shows when the bare run's final value was
reached, and the similarity of 16 samples to held-out music. Existing rows are not measured again.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from peer import context
from training import ROOT, Curve, composed

from etude.core.best_checkpoints import BestCheckpoint
from etude.core.checkpoints import LastCheckpoint
from etude.core.technique import Composition
from etude.metrics.scores.tables import compare_scores
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "techniques.jsonl"
SMALL = {  # data and model of about a million parameters: 0.1 s a step on one core
    "jsb": ["data=jsb", "model.dim=96", "model.num_layers=3", "model.decoder_dim=96", "model.decoder_layers=1", "max_steps=400"],
    "genres": ["data=folder", "data.max_len=512", "model.dim=96", "model.num_layers=3", "model.hidden_dim=256", "max_steps=400"],
}
GENRES, CHORALES = SMALL["genres"], SMALL["jsb"]
SMALL |= {  # for what augments data: an optimizer near its best; "few" trains on a tenth of the pieces, which are repeated often
    "augmented": [*GENRES, "optimizer=muon"],
    "augmented_few": [*GENRES, "optimizer=muon", "data.split=[0.1,0.1,0.8]"],
    "augmented_jsb": [*CHORALES, "optimizer=muon"],
}
SMALL |= {f"{data}_muon": [*options, "optimizer=muon"] for data, options in (("jsb", CHORALES), ("genres", GENRES))}
STUDENT = ["data=jsb", "model.dim=80", "model.num_layers=3", "model.decoder_dim=64", "model.decoder_layers=1", "max_steps=800"]
FREE = ["optimizer.lr=0.006", "model.dropout=0.0"]  # small models need a higher learning rate, and do not overfit
FIRST = "{name:pretrain,max_steps:250}"
SECOND = "{name:finetune,lr:0.5,layer_decay:0.8,warmup:0.05,max_steps:150}"
BASELINE = "experiment=baseline"  # AdamW, a cosine, no technique, whatever train.py's defaults are
NO, C = "technique=[]", "technique=[curriculum]"
CASES: dict[str, list[str]] = {
    "bare": [NO],
    "ema": ["technique=[ema]", "technique.ema.decay=0.99"],
    "curriculum": [C],
    "level basic": ["level=basic"],
    "level enhanced": ["level=enhanced"],
    "level enhanced, with AdamW": ["level=enhanced", "optimizer=adamw"],
    "level experimental": ["level=experimental"],
    "fast_convergence": ["convergence=fast"],
    "fast_convergence, with a curriculum": ["convergence=fast", "technique=[ema,curriculum]", "technique.ema.decay=0.99"],
    "musical_domain": ["technique=[musical_domain]"],
    "musical_domain, equivariance": ["technique=[musical_domain]", "technique.musical_domain.equivariance=0.05"],
    "stability": ["technique=[stability]"],
    "swa": ["technique=[swa]"],
    "self_paced": ["technique=[self_paced]"],
    "muon": [NO, "optimizer=muon"],
    "soap": [NO, "optimizer=soap"],
    "lion": [NO, "optimizer=lion"],
    "schedule_free": ["optimizer=schedule_free"],
    "adafactor": [NO, "optimizer=adafactor"],
    "sophia": [NO, "optimizer=sophia"],
    "lookahead_adamw": [NO, "optimizer=lookahead_adamw"],
    "switch_optimizer": ["technique=[switch_optimizer]"],
    "balance": ["technique=[balance,musical_domain]", "technique.musical_domain.equivariance=0.05"],
    "early_stopping": ["technique=[early_stopping]"],
    "adamw, four times the rate": [NO, "optimizer.lr=0.006"],
    "bandit": ["technique=[bandit]"],
    "length_warmup": ["technique=[length_warmup]"],
    "grow_layers": ["technique=[grow_layers]"],
    "loss_schedule": ["technique=[loss_schedule,musical_domain]", "technique.musical_domain.equivariance=0.05"],
    "stages": ["technique=[stages]", f"technique.stages.stages=[{FIRST},{SECOND}]"],
    "stability, at four times the rate": ["technique=[stability]", "optimizer.lr=0.006"],
    "curriculum, linear": [C, "technique.curriculum.pacing=linear"],
    "curriculum, exponential": [C, "technique.curriculum.pacing=exponential"],
    "curriculum, musical": [C, "technique.curriculum.pacing=musical"],
    "curriculum, short": [C, "technique.curriculum.difficulty=bars", "technique.curriculum.by_genre=true"],
    "curriculum, own loss": [C, "technique.curriculum.difficulty=loss"],
    "curriculum, adaptive": [C, "technique.curriculum.adaptive=true"],
    "curriculum, hard first": [C, "technique.curriculum.reverse=true"],
}
WITH_MUON = (  # what is measured on an optimizer that tuning left nearly as it was, see optimizers.py
    "bare", "ema", "swa", "stability", "curriculum", "curriculum, linear", "self_paced", "bandit", "length_warmup", "grow_layers",
    "stages", "musical_domain",
)  # fmt: skip
D = ["technique=[distillation]", "technique.distillation.teacher=TEACHER"]
DD = ["technique=[distillation]", "technique.distillation.teacher=TEACHER_DEFAULT"]
DISTILLATION: dict[str, list[str]] = {  # in this order: TEACHER is the checkpoint of the case of that name and this seed
    "teacher": ["data=jsb", "max_steps=800", "optimizer.lr=0.004", NO],
    "student alone": [*STUDENT, *FREE, NO],
    "student distilled": [*STUDENT, *FREE, *D],
    "teacher, default rate": ["data=jsb", "max_steps=800", NO],
    "student alone, default rate and dropout": [*STUDENT, NO],
    "student distilled, default rate and dropout": [*STUDENT, *DD],
}


N = ["technique=[noisy_student]", "technique.noisy_student.teacher=TEACHER", "technique.noisy_student.threshold=0.7"]
NO_EMBEDDINGS = ("mixup",)  # the network of the chorales takes notes, which have no mean
AUGMENTED: dict[str, list[str]] = {  # in this order: TEACHER is the checkpoint of the bare run of this seed
    "bare": [NO],
    "randaugment": ["technique=[randaugment]"],
    "cutmix": ["technique=[cutmix]"],
    "mixup": ["technique=[mixup]"],
    "noisy_student": N,
    "bare, twice the steps": [NO, "max_steps=800"],
}


def music(task: Any, datamodule: Any) -> dict[str, float]:
    """Compares 16 samples of 8 bars with held-out music: mean overlapping area of all metrics, 1 if they are alike."""
    real = [datamodule.score("val", row) for row in range(min(32, len(datamodule.manifest("val"))))]
    samples = task.sample(num_samples=16, num_bars=8, max_new_tokens=640, seed=0)
    areas = [row["samples OA"] for row in compare_scores({"real": real, "samples": samples})]
    areas = [area for area in areas if isinstance(area, float) and math.isfinite(area)]
    return {"overlap": statistics.mean(areas)}


def fit(options: list[str], folder: Path, *, checks: int) -> tuple[Any, Any, dict[str, Any]]:
    """Trains as train.py does and returns (task with the weights of its last checkpoint, data, what was measured)."""
    cfg = composed(options, folder)
    cfg.trainer.val_check_interval = max(1, cfg.max_steps // checks)
    pl.seed_everything(cfg.seed, verbose=False)
    tokenizer = run.instantiate(cfg.tokenizer) if cfg.get("tokenizer") is not None else None
    datamodule = run.prepare_data(cfg.data, tokenizer, folder)
    task = run.build_task(cfg, **datamodule.parts)
    task.recipe = OmegaConf.to_container(cfg, resolve=True)
    techniques = Composition(run.build_technique(node) for node in (cfg.get("technique") or {}).values()).techniques
    curve, path = Curve(cfg.monitor), folder / "checkpoints"
    best = BestCheckpoint(path, "best", monitor=cfg.monitor, mode=cfg.monitor_mode, enable_version_counter=False)
    trainer = run.instantiate(
        cfg.trainer, logger=False, enable_progress_bar=False, default_root_dir=str(folder),
        callbacks=[*techniques, curve, best, LastCheckpoint(path=path / "last.ckpt", every_n_steps=cfg.max_steps)],
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(task, datamodule=datamodule)
    values = [value for _, _, value in curve.points]
    found = {
        "steps": trainer.global_step, "cpu_s": round(curve.seconds, 1), "wall_s": round(time.perf_counter() - started, 1),
        "parameters": sum(p.numel() for p in task.parameters()), "best": min(values), "final": values[-1], "curve": curve.points,
    }  # fmt: skip
    return run.load_task(path / "best.ckpt")[0], datamodule, found


def taught(option: str, keep: Path | None, seed: int, data: str) -> str:
    """Replaces TEACHER in an option by the path of the teacher's checkpoint."""
    teacher = f"{data}_bare" if data.startswith("augmented") else "teacher"
    for word, name in (("TEACHER_DEFAULT", "teacher, default rate"), ("TEACHER", teacher)):
        if option.endswith(f"={word}") and keep is not None:
            return option.removesuffix(word) + f"'{keep / f'{name}_{seed}' / 'checkpoints' / 'best.ckpt'}'"
    return option


def cases_of(data: str) -> dict[str, list[str]]:
    """Returns the options of each case of a data set, by name."""
    if data.startswith("augmented"):
        return {name: options for name, options in AUGMENTED.items() if data != "augmented_jsb" or name not in NO_EMBEDDINGS}
    if data.endswith("_muon"):
        return {name: CASES[name] for name in WITH_MUON}
    return DISTILLATION if data == "distillation" else CASES


def done(rows: Path) -> set[tuple[str, str, int]]:
    """Returns data set, name and seed of the rows that are already in the file."""
    if not rows.is_file():
        return set()
    return {(row["data"], row["name"], row["seed"]) for row in map(json.loads, rows.read_text().splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", required=True,
        help="jsb=FILE, genres=FOLDER, jsb_muon=FILE and genres_muon=FOLDER, distillation=FILE (of JSB, with --keep), "
        "augmented=FOLDER, augmented_few=FOLDER and augmented_jsb=FILE (with --keep)",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=None, help="names of cases; all without it")
    parser.add_argument("--checks", type=int, default=12, help="validations on the way")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("--keep", type=Path, default=None, help="folder for checkpoints, such as the teachers")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    if args.keep is None and any(place.startswith(("augmented", "distillation")) for place in args.data):
        parser.error("augmented and distillation need --keep FOLDER, for the teachers")
    quiet_lightning()
    for place in args.data:
        data, _, root = place.partition("=")
        for name, options in cases_of(data).items():
            for seed in args.seeds:
                if (args.only and name not in args.only) or (data, name, seed) in done(args.rows):
                    continue
                with tempfile.TemporaryDirectory() as scratch:
                    kept = args.keep / f"{name}_{seed}" if args.keep and name.startswith("teacher") else None
                    if args.keep and name == "bare" and data.startswith("augmented"):
                        kept = args.keep / f"{data}_bare_{seed}"
                    mine = [BASELINE, *SMALL.get(data, []), f"data.root={root}", *options, f"seed={seed}"]
                    full = [taught(option, args.keep, seed, data) for option in [*mine, *args.options]]
                    task, datamodule, found = fit(full, kept or Path(scratch), checks=args.checks)
                    found |= music(task, datamodule)
                shown = " ".join(option.replace(root, Path(root).name) for option in mine)
                row = {"data": data, "name": name, "seed": seed, "options": shown, **found, **context()}
                args.rows.parent.mkdir(parents=True, exist_ok=True)
                with args.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({key: value for key, value in row.items() if key not in ("curve", "options")}, flush=True)


if __name__ == "__main__":
    main()
