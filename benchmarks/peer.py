"""Shared by the speed benchmarks: a Hugging Face Llama of the same shape, paired timing, tables and rows."""

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is built from a configuration; nothing is downloaded


def llama(*, vocab_size: int, dim: int, layers: int, heads: int, hidden: int, max_len: int) -> torch.nn.Module:
    """transformers' LlamaForCausalLM with tied embeddings and its SDPA attention, random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=max_len,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa")


def pairs(ours: Callable[[int], Any], peer: Callable[[int], Any], *, rounds: int, warmup: int = 1) -> dict[str, Any]:
    """Time both in turn, the first of each pair alternating, on the same round number.

    Wall time is what a user waits for; CPU time (all threads) is steadier where other programs share the machine.
    `ratio` is peer time over ours, the median over pairs, with its quartiles.
    """
    for i in range(warmup):
        ours(i), peer(i)
    wall: list[tuple[float, float]] = []
    cpu: list[tuple[float, float]] = []
    for i in range(rounds):
        spent: dict[Callable[[int], Any], tuple[float, float]] = {}
        for run in (ours, peer) if i % 2 == 0 else (peer, ours):
            start, start_cpu = time.perf_counter(), time.process_time()
            run(i)
            spent[run] = time.perf_counter() - start, time.process_time() - start_cpu
        wall.append((spent[ours][0], spent[peer][0]))
        cpu.append((spent[ours][1], spent[peer][1]))
    ratios = sorted(b / a for a, b in wall)
    return {
        "rounds": rounds,
        "ours_s": statistics.median(a for a, _ in wall),
        "peer_s": statistics.median(b for _, b in wall),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[rounds // 4], ratios[-1 - rounds // 4]],
        "cpu_ratio": statistics.median(b / a for a, b in cpu),
    }


def report(title: str, rows: list[dict[str, Any]], path: Path | None) -> None:
    """Print a Markdown table of the rows; append them to a JSON-lines file where one is given."""
    print(f"\n{title}\n")
    print("| case | tokens | Etude tokens/s | peer tokens/s | ratio (quartiles) | CPU-time ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"| {row['case']} | {row['tokens']:.0f} | {row['tokens'] / row['ours_s']:,.0f} "
            f"| {row['tokens'] / row['peer_s']:,.0f} | {row['ratio']:.2f} ({low:.2f}-{high:.2f}) "
            f"| {row['cpu_ratio']:.2f} |"
        )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(context() | row) + "\n" for row in rows)


def _without_folders(argument: str) -> str:
    """Returns only the file name of an absolute path, since folders differ between machines; other arguments unchanged."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def context() -> dict[str, Any]:
    """Returns command, commit, date, hardware, load and torch version for a row of results."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_folders, sys.argv[1:])]),
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Appends a row to a file of JSON lines, and prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)
