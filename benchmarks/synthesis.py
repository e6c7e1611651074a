"""Measures task=synthesis on one thread; writes rows for docs/results/synthesis.md.

    OMP_NUM_THREADS=1 python benchmarks/synthesis.py --rows docs/results/rows/synthesis.jsonl --pictures docs/results

The default is trained and evaluated on held-out tunes beside its floors. Then level=basic and level=enhanced train on equally
many batches: how soon does enhanced reach the error with which basic ends? Their runs of 200 and 500 epochs would take days
here, so the batches are few and small (--batches, data.batch_size=1), and the warm-up is a share of the run (--warmup, for
enhanced three quarters of it, as 1,500 steps are of 2,000). All other settings are the levels' own.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from peer import append_row, context
from training import composed

from etude.core.checkpoints import LastCheckpoint
from etude.core.technique import Composition
from etude.evaluation.synthesis import score_synthesis
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

METRIC = "val/mel_l1"


class Progress(pl.Callback):
    """Records [batches, optimizer steps, CPU-seconds of training, metric] at each validation."""

    def __init__(self) -> None:
        self.points, self.seconds, self._since = list[list[float]](), 0.0, 0.0

    def on_train_start(self, *_: Any) -> None:
        self._since = time.process_time()

    def on_validation_start(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._since

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        value, batches = float(trainer.callback_metrics[METRIC]), int(task.batches_trained)  # type: ignore[arg-type]
        self.points.append([batches, trainer.global_step, round(self.seconds, 1), round(value, 5)])
        self._since = time.process_time()


def fit(options: list[str], folder: Path) -> tuple[Any, Any, Progress]:
    """Trains as train.py does; returns (task with the weights of last.ckpt, data, curve)."""
    cfg = composed(options, folder)
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule = run.prepare_data(cfg.data, None, folder)
    task = run.build_task(cfg, **datamodule.parts)
    task.recipe = OmegaConf.to_container(cfg, resolve=True)
    techniques = Composition(run.instantiate(node) for node in (cfg.get("technique") or {}).values()).techniques
    curve, last = Progress(), folder / "checkpoints" / "last.ckpt"
    trainer = run.instantiate(
        cfg.trainer, logger=False, enable_progress_bar=False, default_root_dir=str(folder),
        callbacks=[*techniques, curve, LastCheckpoint(path=last, every_n_steps=1_000_000)],
    )  # fmt: skip
    trainer.fit(task, datamodule=datamodule)
    return run.load_task(last)[0], datamodule, curve


def default(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Trains the default and evaluates it; returns the rows of its table."""
    options = ["task=synthesis", f"seed={seed}", f"cache_dir={args.cache}", "trainer.limit_val_batches=16", *args.options]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        task, datamodule, curve = fit(options, folder)
        rows = score_synthesis(task=task, datamodule=datamodule, folder=folder, num_songs=args.songs, perceptual_songs=args.heard)
        if args.pictures is not None and seed == args.seeds[0]:
            for picture in folder.glob("*.png"):
                (args.pictures / f"synthesis_{picture.name}").write_bytes(picture.read_bytes())
    shared = {"case": "default", "options": _public(options), "seed": seed, "cpu_s": curve.seconds, "curve": curve.points}
    return [{**shared, **row} for row in rows]


def level(args: argparse.Namespace, name: str, seed: int) -> list[dict[str, Any]]:
    """Trains a level on `args.batches` batches; returns one row with its curve."""
    accumulated, warmup = (16, args.warmup) if name == "basic" else (2, 0.75 * args.warmup)
    options = [
        "task=synthesis", f"level={name}", f"seed={seed}", f"cache_dir={args.cache}", "data.batch_size=1",
        f"max_steps={args.batches // accumulated}", f"scheduler.warmup={warmup}", f"trainer.val_check_interval={args.every}",
        "trainer.limit_val_batches=24", *args.options,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        _, _, curve = fit(options, Path(scratch))
    shared = {"case": "level", "level": name, "options": _public(options), "seed": seed, "accumulated": accumulated}
    return [{**shared, "cpu_s": curve.seconds, "curve": curve.points}]


def _public(options: list[str]) -> str:
    return " ".join(option for option in options if not option.startswith("cache_dir="))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["default", "basic", "enhanced"], choices=["default", "basic", "enhanced"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=1920, help="batches that a level is trained on")
    parser.add_argument("--every", type=int, default=64, help="batches between two validations of a level")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the run that is level=basic's warm-up")
    parser.add_argument("--songs", type=int, default=None, help="held-out pieces of each style; all without it")
    parser.add_argument("--heard", type=int, default=0, help="held-out pieces of each style that are made sound and listened to")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"))
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines to append to")
    parser.add_argument("--pictures", type=Path, default=None, help="folder for the first seed's synthesis_<style>.png")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    quiet_lightning()
    for seed in args.seeds:
        for case in args.cases:
            for row in default(args, seed) if case == "default" else level(args, case, seed):
                if args.rows is not None:
                    append_row(args.rows, {**context(), **row})
                else:
                    shown = {key: value for key, value in row.items() if key not in ("options", "curve")}
                    print(shown, row["curve"][-1], flush=True)


if __name__ == "__main__":
    main()
