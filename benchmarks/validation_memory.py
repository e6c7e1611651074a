"""How memory and time go over many validations: the smallest language model, one optimizer step and one tiny validation in turn.

    OMP_NUM_THREADS=1 python benchmarks/validation_memory.py --root SONGS [--validations 300] [OPTION ...]
    OMP_NUM_THREADS=1 python benchmarks/validation_memory.py --root SONGS --trace

Prints every 20 validations: resident memory, what of the heaps of glibc is in use and what is free but kept, the seconds
of a step with its validation, and how many objects Python holds; at the end which types of objects have become more.

`--trace` shows the lines of Python that hold more memory than at the second print (slower; run it by itself). `--trim` hands free
memory back to the system at each print: what goes away then was no leak. ONEDNN_PRIMITIVE_CACHE_CAPACITY=8 in front lets oneDNN
keep few of the kernels that it makes for each shape.
"""

import argparse
import ctypes
import gc
import json
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from training import ROOT, composed

from etude.run import parts as run
from etude.run.quiet import quiet_lightning

SMALLEST = [
    "data=folder", "trainer=smoke", "trainer.val_check_interval=1", "trainer.limit_val_batches=1", "model.dim=32",
    "model.num_layers=1", "model.num_heads=2", "model.num_kv_heads=null", "data.max_len=256", "data.max_eval_len=256",
    "data.batch_size=2", "data.prepare_workers=1", "save_every=100000",
]  # fmt: skip

FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo2(ctypes.Structure):
    """What glibc tells about its heaps, in bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def heap() -> tuple[float, float]:
    """MB of glibc's heaps that are in use, and that are free but kept."""
    call = ctypes.CDLL("libc.so.6").mallinfo2
    call.restype = Mallinfo2
    found = call()
    return (found.uordblks + found.hblkhd) / 1e6, found.fordblks / 1e6


class Watch(pl.Callback):
    """Prints a line every `every` validations."""

    def __init__(self, *, every: int, trace: bool, trim: bool) -> None:
        self.every, self.trace, self.trim = every, trace, trim
        self.count, self.rows = 0, list[dict[str, float]]()
        self.since = time.monotonic()
        self.types, self.first = Counter[str](), None

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.count += 1
        if self.count % self.every:
            return
        seconds = (time.monotonic() - self.since) / self.every
        gc.collect()
        if self.trim:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        used, free = heap()
        row = {
            "validations": self.count, "resident_mb": round(resident(), 1), "heap_used_mb": round(used, 1),
            "heap_free_mb": round(free, 1), "seconds": round(seconds, 4), "objects": len(gc.get_objects()),
        }  # fmt: skip
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        now = Counter(type(found).__name__ for found in gc.get_objects())
        if len(self.rows) == 2:  # the first print itself makes objects
            self.types = now
            self.first = tracemalloc.take_snapshot() if self.trace else None
        self.last = now
        self.since = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        more = (self.last - self.types).most_common(8)
        print("more objects than at the second print:", ", ".join(f"{name} {count}" for name, count in more) or "none")
        if self.trace and self.first is not None:
            for found in tracemalloc.take_snapshot().compare_to(self.first, "lineno")[:15]:
                print(f"{found.size_diff / 1e3:10.1f} kB in {found.count_diff:6d} more blocks  {found.traceback}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder of scores")
    parser.add_argument("--validations", type=int, default=300)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--trim", action="store_true")
    parser.add_argument("options", nargs="*", help="further options of train.py")
    chosen = parser.parse_args()
    if chosen.trace:
        tracemalloc.start(8)
    with tempfile.TemporaryDirectory() as folder:
        options = [
            *SMALLEST, f"data.root={chosen.root}", f"cache_dir={ROOT / 'outputs' / 'cache'}", *chosen.options,
            f"trainer.max_steps={chosen.validations}",
        ]  # fmt: skip
        cfg = composed(options, Path(folder))
        quiet_lightning()
        pl.seed_everything(cfg.seed, verbose=False)
        watch: Any = Watch(every=chosen.every, trace=chosen.trace, trim=chosen.trim)
        techniques = [run.build_technique(node) for node in (cfg.get("technique") or {}).values()]
        trainer = run.build_trainer(cfg, Path(folder), [*techniques, watch])
        datamodule = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), Path(folder))
        trainer.fit(run.build_task(cfg, **datamodule.parts), datamodule=datamodule)


if __name__ == "__main__":
    main()
