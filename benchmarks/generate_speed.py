"""Generation speed with a key-value cache against `generate` of a Hugging Face Llama of the same shape.

    python benchmarks/generate_speed.py [--tokens 128] [--rounds 5] [--threads 2] [--json OUT.jsonl]

Both sides sample at temperature 1 from one prompt token, with equal precision of the weights, in turn in one process.
Then the cost of a token along a sequence of --long tokens, Etude only: medians over spans of its steps; 0 leaves it out. For long
sequences on a shared machine see long_context.py, which needs no whole sequence for it and counts CPU time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peer import context, llama, pairs, report

from etude.models.symbolic.sampling import generate
from etude.models.symbolic.transformer import Transformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def milliseconds_along(
    model: Transformer, *, batch: int, length: int, spans: int = 8, now: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median milliseconds of a step in each of `spans` equal parts of a sequence, by the clock `now`."""
    clock = [now()]
    prompt_bt = torch.ones(batch, 1, dtype=torch.int64)
    generate(
        model, prompt_bt, decoder=None, max_new_tokens=length, generator=torch.Generator().manual_seed(0),
        on_step=lambda _: clock.append(now()),
    )  # fmt: skip
    steps = [1000 * (b - a) for a, b in zip(clock, clock[1:], strict=False)]  # noqa: RUF007
    size = len(steps) // spans
    return [statistics.median(steps[i * size : (i + 1) * size]) for i in range(spans)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append the rows to this JSON-lines file")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    for name, default in (
        ("tokens", 128), ("long", 2048), ("rounds", 5), ("threads", 2), ("vocab", 512), ("dim", 256), ("layers", 6),
        ("heads", 4), ("hidden", 704),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = {"vocab_size": args.vocab, "dim": args.dim}
    ours = Transformer(**shape, num_layers=args.layers, num_heads=args.heads, hidden_dim=args.hidden).eval()
    peer = llama(**shape, layers=args.layers, heads=args.heads, hidden=args.hidden, max_len=4096).eval()

    rows = []
    for dtype in args.dtypes:
        ours.to(DTYPES[dtype]), peer.to(DTYPES[dtype])
        for batch in args.batches:
            prompt_bt = torch.ones(batch, 1, dtype=torch.int64)

            def run_ours(i: int, prompt_bt: torch.Tensor = prompt_bt) -> None:
                generator = torch.Generator().manual_seed(i)
                generate(ours, prompt_bt, decoder=None, max_new_tokens=args.tokens, generator=generator)

            def run_peer(i: int, prompt_bt: torch.Tensor = prompt_bt) -> None:
                torch.manual_seed(i)
                peer.generate(
                    prompt_bt, attention_mask=torch.ones_like(prompt_bt), do_sample=True, temperature=1.0, top_k=0,
                    min_new_tokens=args.tokens, max_new_tokens=args.tokens,
                )  # fmt: skip

            timing = pairs(run_ours, run_peer, rounds=args.rounds)
            rows.append({"case": f"batch {batch}, {dtype}", "tokens": batch * args.tokens} | timing)
    report(f"Generation of {args.tokens} tokens", rows, args.json)

    if not args.long:
        return
    print(f"\nMilliseconds a step along {args.long} tokens (medians of eighths)\n")
    for dtype in args.dtypes:
        ours.to(DTYPES[dtype])
        for batch in args.batches:
            spans = milliseconds_along(ours, batch=batch, length=args.long)
            print(f"- batch {batch}, {dtype}: " + " ".join(f"{ms:.2f}" for ms in spans))
            if args.json is not None:
                row = {"case": f"along {args.long}, batch {batch}, {dtype}", "step_ms": spans}
                with args.json.open("a") as file:
                    file.write(json.dumps(context() | row) + "\n")


if __name__ == "__main__":
    main()
