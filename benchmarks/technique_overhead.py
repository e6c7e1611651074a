"""What each technique costs a training step: two runs take turns step by step, one bare, one with the technique.

    OMP_NUM_THREADS=1 python benchmarks/technique_overhead.py --root Jsb16thSeparated.json

Both runs live in one process, each in its own thread; a baton lets one step at a time, so that what disturbs the machine
disturbs both. The time of a step is the CPU time of its thread from baton to baton: everything that Lightning and the
techniques do between two batches is in it, validation is not. A row holds the median ratio over pairs of steps.
"""

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from peer import context
from training import ROOT, composed

from etude import run
from etude.core.technique import Composition

ROWS = ROOT / "docs" / "results" / "rows" / "technique_overhead.jsonl"
SMALL = ["data=jsb", "trainer.limit_val_batches=0", "logger=[]"]


class Turns:
    """Lets two threads take turns; the first of each pair alternates, a thread that ends leaves the other alone."""

    def __init__(self) -> None:
        self.condition, self.turn, self.alone = threading.Condition(), 0, False
        self.order, self.count = [0, 1, 1, 0], 0

    def wait(self, who: int) -> None:
        with self.condition:
            self.condition.wait_for(lambda: self.alone or self.order[self.count % 4] == who)

    def done(self) -> None:
        with self.condition:
            self.count += 1
            self.condition.notify_all()

    def leave(self) -> None:
        with self.condition:
            self.alone = True
            self.condition.notify_all()


class Timed(pl.Callback):
    """Seconds of each step: from the baton's coming, which is the end of the step before, to the end of this one."""

    def __init__(self, who: int, turns: Turns) -> None:
        self.who, self.turns, self.seconds = who, turns, list[float]()
        self._since = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.turns.wait(self.who)
        self._since = time.thread_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.thread_time() - self._since)
        self.turns.done()
        self.turns.wait(self.who)
        self._since = time.thread_time()


def one(options: list[str], who: int, turns: Turns, folder: Path) -> Timed:
    cfg = composed(options, folder)
    tokenizer = run.instantiate(cfg.tokenizer)
    datamodule = run.prepare_data(cfg.data, tokenizer, folder)
    pl.seed_everything(0, verbose=False)
    task = run.build_task(cfg, **datamodule.parts)
    task.recipe = run.OmegaConf.to_container(cfg, resolve=True)
    techniques = Composition(run.build_technique(node) for node in (cfg.get("technique") or {}).values()).techniques
    timed = Timed(who, turns)
    trainer = run.instantiate(
        cfg.trainer, logger=False, enable_progress_bar=False, enable_checkpointing=False, default_root_dir=str(folder),
        callbacks=[*techniques, timed],
    )  # fmt: skip

    def fit() -> None:
        try:
            trainer.fit(task, datamodule=datamodule)
        finally:
            turns.leave()

    timed.thread = threading.Thread(target=fit)  # type: ignore[attr-defined]
    return timed


def compare(options: list[str], shared: list[str], folder: Path, *, skip: int) -> dict[str, Any]:
    """Median over pairs of steps of (technique / bare), of the same step number."""
    turns = Turns()
    both = [one([*shared, *chosen], who, turns, folder) for who, chosen in enumerate((["technique=[]"], options))]
    for timed in both:
        timed.thread.start()  # type: ignore[attr-defined]
    for timed in both:
        timed.thread.join()  # type: ignore[attr-defined]
    pairs = list(zip(both[0].seconds, both[1].seconds, strict=False))[skip:-1]
    ratios = sorted(mine / bare for bare, mine in pairs)
    count = len(ratios)
    return {
        "pairs": count, "bare_s": statistics.median(bare for bare, _ in pairs), "ratio": statistics.median(ratios),
        "ratio_of_sums": sum(mine for _, mine in pairs) / sum(bare for bare, _ in pairs),
        "ratio_quartiles": [ratios[count // 4], ratios[-1 - count // 4]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the JSB file")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--skip", type=int, default=10, help="steps of warming up")
    parser.add_argument("--cases", nargs="+", required=True, help="options of a case, such as technique=[ema]; + between several")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    run.quiet_lightning()
    torch.set_num_threads(1)
    for case in args.cases:
        shared = [*SMALL, f"data.root={args.root}", f"max_steps={args.steps}", *args.options]
        found = compare(case.split("+"), shared, Path("outputs"), skip=args.skip)
        row = {"case": case, **found, **context()}
        args.rows.parent.mkdir(parents=True, exist_ok=True)
        with args.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
