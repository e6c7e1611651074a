"""Measures the overhead of techniques per training step: two runs alternate step by step, one with and one without them.

    OMP_NUM_THREADS=1 python benchmarks/technique_overhead.py --root Jsb16thSeparated.json
    OMP_NUM_THREADS=1 python benchmarks/technique_overhead.py --root Jsb16thSeparated.json --live

Both runs are threads of one process that take turns, one step at a time, so that other load on the machine affects both. The time
of a step is the CPU time of its thread during its turn, so it contains everything that Lightning and the techniques do between
two batches. Validation is not included, except with `--live`, which measures the cases with live_quality in one long run each.
Two runs without techniques differ by up to 4 %, depending on where their weights are in memory, so each case is repeated
`--builds` times with new runs. In addition, the time in the techniques' own methods is measured: to a hundredth of a percent,
but without the cost of their loss terms in the backward pass.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from peer import append_row, context
from training import ROOT, composed

from etude.core.technique import Composition, Technique
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "technique_overhead.jsonl"
SMALL = ["experiment=baseline", "data=jsb", "trainer.limit_val_batches=0", "logger=[]"]
TWO = "technique.stages.stages=[{name:one,max_steps:1000},{name:two}]"
ADAMW = "technique.switch_optimizer.to={_target_:torch.optim.AdamW,_partial_:true,lr:0.0015,betas:[0.9,0.98],fused:true}"
HALF = (
    "technique.live_quality.every=1+technique.live_quality.budget=0.015"  # of its clock, on which the other run's steps pass, too
)
NINE = "curriculum,stages,musical_domain,switch_optimizer,balance,stability,ema,loss_schedule,early_stopping"
CASES = [
    "technique=[]", "technique=[curriculum]+technique.curriculum.start=1.0", "technique=[bandit]", "technique=[early_stopping]",
    "technique=[switch_optimizer]", "technique=[length_warmup]+technique.length_warmup.start_bars=64",
    "technique=[grow_layers]+technique.grow_layers.start=1.0", f"technique=[stages]+{TWO}", "technique=[finite]",
    "technique=[stability]", "technique=[ema]", "technique=[swa]", "technique=[self_paced]", "technique=[musical_domain]",
    "technique=[loss_schedule,musical_domain]", "technique=[balance,musical_domain]", "optimizer=lion",
    f"technique=[{NINE}]+{TWO}", f"technique=[{NINE}]+{ADAMW}+{TWO}",
]  # fmt: skip
TEN = NINE.replace("stages", "stages,live_quality")
LIVE = [f"technique=[live_quality]+{HALF}", f"technique=[{TEN}]+{HALF}+{TWO}", f"technique=[{TEN}]+{HALF}+{ADAMW}+{TWO}"]
LIVE_OPTIONS = ["trainer.limit_val_batches=1.0", "trainer.val_check_interval=100"]


class Turns:
    """Lets two threads take turns, in alternating order; when one ends, the other continues alone."""

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


HOOKS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad",
         "on_train_batch_end", "extra_losses", "scale_losses", "transform_gradients", "rule", "on_validation_start",
         "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end")  # fmt: skip


class MethodTime:
    """Measures the seconds spent in the methods of techniques; nested calls count once."""

    def __init__(self, techniques: Sequence[Technique]) -> None:
        self.seconds, self._depth = 0.0, 0
        for technique in techniques:
            for name in HOOKS:
                if hasattr(technique, name):
                    setattr(technique, name, self._timed(getattr(technique, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            since, self._depth = time.thread_time(), self._depth + 1
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                self.seconds += (time.thread_time() - since) if self._depth == 0 else 0.0

        return timed


class Timed(pl.Callback):
    """Measures the seconds of each step, from the beginning of its turn to its end."""

    def __init__(self, who: int, turns: Turns, own: MethodTime) -> None:
        self.who, self.turns, self.own, self.seconds, self.inside = who, turns, own, list[float](), list[float]()
        self._since = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.turns.wait(self.who)
        self._since = time.thread_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.thread_time() - self._since)
        self.inside.append(self.own.seconds)
        self.own.seconds = 0.0
        self.turns.done()
        self.turns.wait(self.who)
        self._since = time.thread_time()


def one(options: list[str], who: int, turns: Turns, folder: Path) -> Timed:
    cfg = composed(options, folder)
    tokenizer = run.instantiate(cfg.tokenizer)
    datamodule = run.prepare_data(cfg.data, tokenizer, folder)
    pl.seed_everything(0, verbose=False)
    task = run.build_task(cfg, **datamodule.parts)
    task.recipe = OmegaConf.to_container(cfg, resolve=True)
    techniques = Composition(run.build_technique(node) for node in (cfg.get("technique") or {}).values()).techniques
    timed = Timed(who, turns, MethodTime(techniques))
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


def compare(options: list[str], shared: list[str], folder: Path, *, skip: int) -> tuple[float, float, float]:
    """Returns seconds of a bare step, the ratio of the technique's to it, and the share of it spent in its methods: medians
    over pairs of steps of the same number, but the share, a mean over all steps, as some do their work seldom."""
    turns = Turns()
    both = [one([*shared, *chosen], who, turns, folder) for who, chosen in enumerate((["technique=[]"], options))]
    for timed in both:
        timed.thread.start()  # type: ignore[attr-defined]
    for timed in both:
        timed.thread.join()  # type: ignore[attr-defined]
    pairs = list(zip(both[0].seconds, both[1].seconds, strict=False))[skip:-1]
    bare = statistics.median(bare for bare, _ in pairs)
    ratio = statistics.median(mine / bare for bare, mine in pairs)
    return bare, ratio, statistics.mean(both[1].inside[skip:-1]) / bare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the JSB file")
    parser.add_argument("--live", action="store_true", help="the cases with live_quality, 800 steps, validation included")
    parser.add_argument("--steps", type=int, default=None, help="60, with --live 800")
    parser.add_argument("--builds", type=int, default=None, help="times that both runs are built anew: 3, with --live 1")
    parser.add_argument("--skip", type=int, default=10, help="steps of warming up")
    parser.add_argument("--cases", nargs="+", default=None, help="options of a case, such as technique=[ema]; + between several")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    quiet_lightning()
    torch.set_num_threads(1)
    steps, builds = args.steps or (800 if args.live else 60), args.builds or (1 if args.live else 3)
    for case in args.cases or (LIVE if args.live else CASES):
        live = LIVE_OPTIONS if args.live else []
        shared = [*SMALL, f"data.root={args.root}", f"max_steps={steps}", *live, *args.options]
        found = [compare(case.split("+"), shared, Path("outputs"), skip=args.skip) for _ in range(builds)]
        bare, ratios, own = (list(values) for values in zip(*found, strict=True))
        row = {
            "case": case, "steps": steps - args.skip - 1, "builds": builds, "bare_s": statistics.median(bare),
            "ratios": ratios, "own": statistics.median(own), **context(),
        }  # fmt: skip
        append_row(args.rows, row)


if __name__ == "__main__":
    main()
