"""Measures the cost of the loggers per training step: two runs alternate step by step, one with and one without them.

    OMP_NUM_THREADS=1 python benchmarks/logger_overhead.py                     # all three loggers, on the chorales
    OMP_NUM_THREADS=1 python benchmarks/logger_overhead.py --loggers csv --steps 200

As in technique_overhead.py both runs are threads that take turns, and a step's time is the CPU time of its thread. The loggers
write every few steps (trainer.log_every_n_steps), so the mean over whole periods is told, not a median of steps. W&B's own
process, which writes its files, is not counted; its CPU time is told beside it.
"""

import argparse
import os
import resource
import statistics
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from peer import append_row, context
from technique_overhead import MethodTime, Timed, Turns
from training import ROOT, composed

from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.run.tracking import build_loggers, showing_callbacks

ROWS = ROOT / "docs" / "results" / "rows" / "logger_overhead.jsonl"


def one(options: list[str], who: int, turns: Turns, folder: Path) -> tuple[Timed, threading.Thread]:
    """Returns the clock and the thread of a run with the loggers that `options` name."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = composed(options, folder)
    datamodule = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), folder)
    pl.seed_everything(0, verbose=False)
    task = run.build_task(cfg, **datamodule.parts)
    task.recipe = OmegaConf.to_container(cfg, resolve=True)
    loggers = build_loggers(cfg, folder, step=None)
    timed = Timed(who, turns, MethodTime([]))
    trainer = run.instantiate(
        cfg.trainer, logger=loggers or False, enable_progress_bar=False, enable_checkpointing=False,
        default_root_dir=str(folder), callbacks=[*showing_callbacks(cfg, folder, loggers), timed],
    )  # fmt: skip

    def fit() -> None:
        try:
            trainer.fit(task, datamodule=datamodule)
        finally:
            turns.leave()

    return timed, threading.Thread(target=fit)


def compare(loggers: str, shared: list[str], folder: Path, *, period: int) -> tuple[float, list[float]]:
    """Returns seconds of a bare step, and for each period after the first the loggers' cost as a share of the bare steps."""
    turns = Turns()
    both = [
        one([*shared, f"logger={chosen}"], who, turns, folder / str(who)) for who, chosen in enumerate(("[]", f"[{loggers}]"))
    ]
    for _, thread in both:
        thread.start()
    for _, thread in both:
        thread.join()
    bare, mine = (timed.seconds for timed, _ in both)
    places = range(period, min(len(bare), len(mine)) - period + 1, period)
    shares = [sum(mine[at : at + period]) / sum(bare[at : at + period]) - 1 for at in places]
    return statistics.mean(bare[period:]), shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loggers", default="csv,wandb,tensorboard")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("outputs/logger_overhead"))
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "offline")
    quiet_lightning()
    torch.set_num_threads(1)
    shared = [f"max_steps={args.steps}", "trainer.limit_val_batches=0", *args.options]
    period = composed(shared, args.folder).trainer.log_every_n_steps
    bare, shares = compare(args.loggers, shared, args.folder, period=period)
    import wandb

    wandb.teardown()  # ends W&B's process, whose time is counted then
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    row: dict[str, Any] = {
        "loggers": args.loggers, "steps": args.steps, "every": period, "bare_s": bare, "share": statistics.mean(shares),
        "median": statistics.median(shares), "shares": shares,
        "own_process_share": (children.ru_utime + children.ru_stime) / (bare * args.steps), **context(),
    }  # fmt: skip
    append_row(args.rows, row)


if __name__ == "__main__":
    main()
