"""Training and generation on one CUDA device: share of its peak in bfloat16, what bounds it, and tokens per second.

    python benchmarks/gpu.py [--scores MIDI_FOLDER] [--only step whole generate] [--rows docs/results/rows/gpu.jsonl]

- `step`: forward, backward and fused AdamW of the networks of conf/model on packed pieces of about 1,000 tokens, under bfloat16
  autocast, with and without `model.compiled`, beside a Hugging Face Llama of the same shape on rows of 1,024 tokens (as many
  tokens, nothing padded). Operations are those of `Transformer.flops_per_token`; recomputation is not counted. Medians, by
  CUDA events.
- `whole`: the same inside `python train.py trainer=gpu`, with the reader, the techniques and the optimizer of the defaults.
- `generate`: tokens per second of cached sampling beside Hugging Face `generate`, random weights, no end token.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from peer import append_row, context, llama
from torch import Tensor
from torch.nn import functional as F
from training import ROOT, composed

from etude.core.technique import Composition
from etude.models.symbolic.sampling import generate
from etude.models.symbolic.transformer import Transformer
from etude.run import parts as run

ROWS = ROOT / "docs" / "results" / "rows" / "gpu.jsonl"
DATASHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 operations per second, by the maker
VOCABULARY = 512
BF16 = {"device_type": "cuda", "dtype": torch.bfloat16}


def milliseconds(function: Callable[[], Any], *, rounds: int, warmup: int = 3) -> float:
    """The median time of a call, by CUDA events."""
    times = []
    for number in range(rounds + warmup):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if number >= warmup:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def ceilings() -> dict[str, float]:
    """What the device reaches: operations per second of a large matrix product, and bytes per second of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    x = torch.empty(2**30, device="cuda", dtype=torch.uint8).random_()
    y = torch.empty_like(x)
    product, copy = milliseconds(lambda: a @ b, rounds=20), milliseconds(lambda: y.copy_(x), rounds=20)
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in DATASHEET.items() if key in name), None)
    return {"peak": peak or float("nan"), "product": 2 * 8192**3 / product * 1e3, "copy": 2 * 2**30 / copy * 1e3}


def settings(name: str) -> dict[str, Any]:
    """The arguments of a network of conf/model."""
    values = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    return {key: value for key, value in values.items() if not key.startswith("_")}


def packed(rows: int, time: int) -> Tensor:
    """Documents [rows, time] of pieces of 300 to 2,000 tokens, 1,000 on average."""
    draw = torch.Generator().manual_seed(0)
    documents_bt = torch.empty(rows, time, dtype=torch.int64)
    for row in documents_bt:
        lengths = (torch.randn(time // 100, generator=draw) * 0.4 + 6.8).exp().clamp(300, 2000).long()
        row[:] = torch.arange(len(lengths)).repeat_interleave(lengths)[:time]
    return documents_bt


def step_of(model: torch.nn.Module, logits: Callable[[], Tensor], targets_bt: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(**BF16):
            loss = F.cross_entropy(logits().flatten(0, 1), targets_bt.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def kernels(step: Callable[[], None]) -> dict[str, Any]:
    """The share of a step's time on the device by kind of kernel, and of the ten kernels that take most among the rest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    found, others = {"matrix products": 0.0, "attention": 0.0, "the rest": 0.0}, dict[str, float]()
    for event in profile.key_averages():
        name = event.key.lower()
        products = any(part in name for part in ("gemm", "nvjet", "cutlass", "cublas"))
        kind = "attention" if "flash" in name or "fmha" in name else "matrix products" if products else "the rest"
        found[kind] += event.self_device_time_total
        if kind == "the rest":
            others[event.key[:90]] = event.self_device_time_total
    whole = sum(found.values())
    largest = dict(sorted(others.items(), key=lambda item: -item[1])[:10])
    shares = {name: round(value / whole, 3) for name, value in (found | largest).items()} if whole else {}
    return {kind: shares.pop(kind) for kind in found} | {"largest of the rest": shares} if shares else {}


def measured(name: str, case: str, step: Callable[[], None], *, tokens: int, operations: float, top: dict[str, float]) -> Any:
    """The row of a training step."""
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first, spent = time.perf_counter() - began, milliseconds(step, rounds=10)
    rate = tokens * operations / spent * 1e3
    return {
        "what": "step", "model": name, "case": case, "tokens": tokens, "ms": round(spent, 2), "first_s": round(first, 1),
        "tokens_per_s": round(tokens / spent * 1e3), "tflops": round(rate / 1e12, 1), "of_peak": round(rate / top["peak"], 3),
        "of_product": round(rate / top["product"], 3), "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "kernels": kernels(step),
    }  # fmt: skip


def seen_on_average(documents_bt: Tensor) -> int:
    """The length for which `flops_per_token` counts the tokens that a token of these pieces sees on average."""
    lengths = torch.unique_consecutive(documents_bt + 1000 * torch.arange(len(documents_bt))[:, None], return_counts=True)[1]
    return round(float((lengths.double() ** 2).sum() / lengths.sum()))


def steps(top: dict[str, float], write: Callable[[dict[str, Any]], None]) -> None:
    for name, rows, time_, variants in (
        ("base", 16, 4096, [
            {"compiled": False}, {"compiled": True}, {"compiled": True, "num_heads": 6, "num_kv_heads": 6},
        ]),
        ("large", 8, 4096, [
            {"compiled": False}, {"compiled": True}, {"compiled": True, "checkpoint_activations": False},
        ]),
    ):  # fmt: skip
        documents_bt = packed(rows, time_)
        length, documents_bt = seen_on_average(documents_bt), documents_bt.cuda()
        tokens_bt, targets_bt = (torch.randint(0, VOCABULARY, (rows, time_), device="cuda") for _ in range(2))
        for variant in variants:
            torch.manual_seed(0)
            model = Transformer(vocab_size=VOCABULARY, **{**settings(name), **variant}).cuda().train()
            step = step_of(model, lambda m=model, t=tokens_bt, d=documents_bt: m(t, documents_bt=d), targets_bt)
            case = ", ".join(f"{key}={str(value).lower()}" for key, value in variant.items())
            operations = model.flops_per_token(length)
            write(measured(name, case, step, tokens=rows * time_, operations=operations, top=top))
            del model, step
            torch.cuda.empty_cache()
        if name != "base":
            continue
        own = settings(name)
        peer = llama(
            vocab_size=VOCABULARY, dim=own["dim"], layers=own["num_layers"], heads=own["num_heads"], hidden=own["hidden_dim"],
            max_len=own["max_len"],
        ).cuda().train()  # fmt: skip
        reference = Transformer(vocab_size=VOCABULARY, **own)
        short_bt, short_targets_bt = (x.view(-1, 1024) for x in (tokens_bt, targets_bt))
        for case, call in (("Llama, torch.compile", torch.compile(peer)),):
            step = step_of(peer, lambda call=call, t=short_bt: call(input_ids=t, use_cache=False).logits, short_targets_bt)
            write(measured(name, case, step, tokens=rows * time_, operations=reference.flops_per_token(1024), top=top))
        del peer, step
        torch.cuda.empty_cache()


class Clock(pl.Callback):
    """The time between the ends of two steps."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.times = first, last, list[float]()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in (self.first, self.last):
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())


def whole(scores: Path, top: dict[str, float], write: Callable[[dict[str, Any]], None]) -> None:
    long = ["data.batch_size=16", "data.max_len=4096", "data.num_workers=8"]
    for name, case, options in (
        ("base", "defaults", long), ("base", "AdamW, no technique", [*long, "optimizer=adamw", "technique=[]"]),
        ("large", "checkpoint_activations=false", [*long, "data.batch_size=8", "model.checkpoint_activations=false"]),
        ("tiny", "defaults", []),
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            cfg = composed([
                "data=folder", f"data.root={scores}", f"model={name}", "trainer=gpu", "max_steps=40",
                "data.batches_per_epoch=1000", f"cache_dir={Path(tempfile.gettempdir()) / 'etude_gpu_cache'}", *options,
            ], Path(folder))  # fmt: skip
            pl.seed_everything(0, verbose=False)
            data = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), Path(folder))
            task = run.build_task(cfg, **data.parts)
            techniques = Composition(run.build_technique(node) for node in (cfg.get("technique") or {}).values()).techniques
            clock = Clock(15, 40)
            trainer = run.instantiate(
                cfg.trainer, logger=False, enable_progress_bar=False, enable_checkpointing=False, limit_val_batches=0,
                default_root_dir=folder, callbacks=[*techniques, clock],
            )  # fmt: skip
            trainer.fit(task, datamodule=data)
        seconds = (clock.times[1] - clock.times[0]) / (clock.last - clock.first)
        tokens = cfg.data.batch_size * cfg.data.max_len
        rate = tokens / seconds * task.model.flops_per_token(1000)
        write({
            "what": "whole", "model": name, "case": case, "tokens": tokens, "ms": round(1000 * seconds, 2),
            "tokens_per_s": round(tokens / seconds), "tflops": round(rate / 1e12, 1), "of_peak": round(rate / top["peak"], 3),
        })  # fmt: skip
        del task, trainer, data
        torch.cuda.empty_cache()


def sample(write: Callable[[dict[str, Any]], None], *, tokens: int = 128) -> None:
    for name in ("tiny", "base"):
        own = settings(name)
        model = Transformer(vocab_size=VOCABULARY, **own).cuda().eval().bfloat16()
        peer = llama(
            vocab_size=VOCABULARY, dim=own["dim"], layers=own["num_layers"], heads=own["num_heads"],
            hidden=own["hidden_dim"] or -(-8 * own["dim"] // 192) * 64, max_len=own["max_len"],
        ).cuda().eval().bfloat16()  # fmt: skip
        for batch in (1, 16):
            prompt_bt = torch.ones(batch, 1, dtype=torch.int64)
            there_bt = prompt_bt.cuda()

            def ours(prompt_bt: Tensor = prompt_bt, model: Transformer = model) -> None:
                generate(model, prompt_bt, decoder=None, max_new_tokens=tokens, generator=torch.Generator().manual_seed(0))

            def theirs(prompt_bt: Tensor = there_bt, peer: Any = peer) -> None:
                peer.generate(
                    prompt_bt, attention_mask=torch.ones_like(prompt_bt), do_sample=True, temperature=1.0, top_k=0,
                    min_new_tokens=tokens, max_new_tokens=tokens,
                )  # fmt: skip

            spent = [milliseconds(call, rounds=2, warmup=1) for call in (ours, theirs)]
            rates = [round(batch * tokens / ms * 1e3) for ms in spent]
            write({
                "what": "generate", "model": name, "batch": batch, "tokens": tokens, "tokens_per_s": rates[0],
                "peer_tokens_per_s": rates[1], "ratio": round(spent[1] / spent[0], 2),
            })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, help="folder of MIDI files, for `whole`")
    parser.add_argument("--only", nargs="+", default=["step", "whole", "generate"])
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device; the other benchmarks run on a CPU")
    top = ceilings()
    about = context() | {"device": torch.cuda.get_device_name(), **{f"device_{key}": value for key, value in top.items()}}

    def write(row: dict[str, Any]) -> None:
        append_row(args.rows, about | row)

    if "step" in args.only:
        steps(top, write)
    if "whole" in args.only and args.scores is not None:
        whole(args.scores.resolve(), top, write)
    if "generate" in args.only:
        sample(write)


if __name__ == "__main__":
    main()
