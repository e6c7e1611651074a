"""Cost of a generated token and memory of the cache behind 1,024, 4,096 and 16,384 tokens, with and without a window.

    OMP_NUM_THREADS=1 python benchmarks/long_context.py [--along 16384] [--rows OUT.jsonl]

Before timing at a length, the cache is filled with constants, since the cost does not depend on its values. All cases take turns,
one step each; CPU time of a step of model and draw, medians. Then a piece of --along tokens is really generated with the window:
medians over eighths of its steps.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from generate_speed import milliseconds_along
from peer import append_row, context
from training import ROOT

from etude.models.symbolic.kv_cache import KVCache
from etude.models.symbolic.sampling import distribution, draw
from etude.models.symbolic.transformer import Transformer

ROWS = ROOT / "docs" / "results" / "rows" / "long_context.jsonl"


def filled(model: Transformer, batch: int, length: int, steps: int) -> KVCache:
    """A cache behind `length` tokens, with room for `steps` more."""
    cache = model.new_cache(batch, length + steps)
    for buffer in (*cache.keys, *cache.values):
        buffer.fill_(0.01)
    cache.length = length
    return cache


def seconds(model: Transformer, cache: KVCache) -> float:
    begin = time.process_time()
    logits_bv = model(torch.ones(cache.batch, 1, dtype=torch.int64), cache=cache)[:, -1]
    draw(distribution(logits_bv), torch.full((cache.batch,), 0.5))
    return time.process_time() - begin


@torch.inference_mode()
def compare(models: dict[str, Transformer], lengths: list[int], batch: int, steps: int) -> list[dict[str, object]]:
    rows = []
    for length in lengths:
        caches = {name: filled(model, batch, length, steps + 1) for name, model in models.items()}
        spent: dict[str, list[float]] = {name: [] for name in models}
        for step in range(steps + 1):
            for name, model in models.items():
                found = seconds(model, caches[name])
                if step:  # the first one makes copies of the weights
                    spent[name].append(found)
        for name, model in models.items():
            rows.append({
                "case": name, "window": model.windows[0], "batch": batch, "length": length, "steps": steps,
                "cpu_ms": 1000 * statistics.median(spent[name]), "cache_bytes": caches[name].num_bytes,
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 4096, 16384])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each case")
    parser.add_argument("--along", type=int, default=16384, help="tokens of the generated piece; 0 for none")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "dim": 256, "num_layers": 6, "num_heads": 4, "hidden_dim": 704}
    models = {
        "no window": Transformer(**shape).eval(), "one key-value head": Transformer(**shape, num_kv_heads=1).eval(),
        f"window of {args.window}": Transformer(**shape, window=args.window).eval(),
    }  # fmt: skip
    for batch in args.batches:
        for row in compare(models, args.lengths, batch, args.steps):
            append_row(args.rows, {**row, **context()})
    if args.along:
        name, model = list(models.items())[-1]
        steps = milliseconds_along(model, batch=1, length=args.along, now=time.process_time)
        row = {"case": name, "window": args.window, "batch": 1, "along": args.along, "step_cpu_ms": steps}
        append_row(args.rows, {**row, **context()})


if __name__ == "__main__":
    main()
