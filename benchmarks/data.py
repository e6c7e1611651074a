"""Compares the speed of Etude's data loading with MidiTok's and muspy's: reading files, and drawing batches.

    python benchmarks/data.py FOLDER [--rounds 3] [--max-len 1024] [--rows 4] [--workers 2] [--json OUT.jsonl]

All sides read the MIDI files of FOLDER (filled up with transposed copies to --files) in turn, in one run; Etude and
MidiTok with one and the same REMI tokenizer, muspy with its event representation. `into`: everything from files to
what batches are drawn from; Etude's part includes checking, key estimation, duplicate search and an fsync, and is
given once with one process and once with --workers. `out`: batches of --rows rows of --max-len tokens; Etude's are
packed and augmented, MidiTok's and muspy's are padded, so tokens that are not padding are counted too. `share`: what
the loader takes of a training step of a small model (bf16, forward and backward) on the same batches. Medians.
"""

import argparse
import functools
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from peer import context
from symusic import Score
from torch import Tensor

from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.tokens.miditok import MidiTokTokenizer

Files = list[Path]


def gather(folder: Path, target: Path, count: int) -> Files:
    """Copies `count` MIDI files of `folder` that can be tokenized, adding transposed copies if there are too few."""
    target.mkdir(parents=True)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".mid", ".midi"))
    tokenizer, files = MidiTokTokenizer(genres=["unknown"]), []
    for shift, path in itertools.product(range(12), found):
        if len(files) == count:
            break
        try:
            score = Score(str(path)).shift_pitch(shift, inplace=False)
            tokenizer.encode(score)
        except (ValueError, RuntimeError):
            continue
        files.append(target / f"{len(files):05d}.mid")
        score.dump_midi(files[-1])
    return files


def etude(root: Path, cache: Path, args: argparse.Namespace, workers: int) -> MusicDataModule:
    """Etude's data module over `root`, prepared."""
    data = MusicDataModule(
        corpus=Folder(root=str(root)), tokenizer=MidiTokTokenizer, cache_dir=str(cache), max_len=args.max_len,
        batch_size=args.rows, prepare_workers=workers, split=[1.0, 0.0, 0.0], transpose=[-5, 6],
        tempo_scale=[0.9, 1.1], velocity_shift=1,
    )  # fmt: skip
    data.prepare()
    return data


def miditok(files: Files, args: argparse.Namespace) -> Iterable[Any]:
    """MidiTok's dataset, tokenised beforehand, in a loader with MidiTok's collator."""
    from miditok.pytorch_data import DataCollator, DatasetMIDI

    tokenizer = MidiTokTokenizer()._miditok
    data = DatasetMIDI(files, tokenizer, max_seq_len=args.max_len, pre_tokenize=True, parallel_workers_size=args.workers)
    collate = DataCollator(pad_token_id=0, copy_inputs_as_labels=True, shift_labels=True)
    return torch.utils.data.DataLoader(data, batch_size=args.rows, shuffle=True, collate_fn=collate)


def muspy(root: Path, target: Path, args: argparse.Namespace) -> Iterable[Any]:
    """muspy's folder dataset, converted to its JSON, as event tokens; muspy has no collator, so a plain one pads."""
    import muspy as library

    class Midi(library.FolderDataset):  # type: ignore[misc]
        _extension = "mid"

        def read(self, filename: str) -> Any:
            return library.read(filename)

    shutil.copytree(root, target)
    data = Midi(target, convert=True, n_jobs=args.workers).to_pytorch_dataset(representation="event")

    def collate(pieces: list[Any]) -> dict[str, Tensor]:
        rows = [torch.as_tensor(piece).flatten()[: args.max_len].long() for piece in pieces]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        return {"input_ids": ids, "attention_mask": ids >= 0}

    return torch.utils.data.DataLoader(data, batch_size=args.rows, shuffle=True, collate_fn=collate)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the duration of `work()` and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def real_tokens(batch: Any) -> int:
    """Tokens of a batch that are not padding."""
    if "documents" in batch:
        return int((batch["documents"] >= 0).sum())
    return int(batch["attention_mask"].sum())


def rate(loader: Iterable[Any], batches: int) -> tuple[float, float, float]:
    """Batches a second, real tokens a second, and the share of padding, over `batches` batches."""
    stream = itertools.chain.from_iterable(itertools.repeat(loader))
    next(stream)
    spent, taken = seconds(lambda: list(itertools.islice(stream, batches)))
    tokens = sum(map(real_tokens, taken))
    cells = sum(batch["tokens" if "tokens" in batch else "input_ids"].numel() for batch in taken)
    return batches / spent, tokens / spent, 1 - tokens / cells


def step_seconds(data: MusicDataModule, steps: int) -> tuple[float, float]:
    """Median seconds of a training step of a small model, and of drawing its batch."""
    from etude.models.symbolic.transformer import Transformer

    torch.manual_seed(0)
    sizes = dict(data.tokenizer.feature_sizes)
    model = Transformer(vocab_size=len(data.tokenizer), dim=256, num_layers=6, num_heads=4, feature_sizes=sizes)
    stream = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))
    next(stream)
    drawing, training = [], []
    for _ in range(steps):
        spent, batch = seconds(functools.partial(next, stream))
        drawing.append(spent)
        training.append(seconds(functools.partial(_step, model, batch))[0])
    return statistics.median(training), statistics.median(drawing)


def _step(model: torch.nn.Module, batch: dict[str, Tensor]) -> None:
    features = {name.removeprefix("feature_"): batch[name] for name in batch if name.startswith("feature_")}
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch["tokens"], documents_bt=batch["documents"], positions_bt=batch["positions"], features=features)
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten())
    loss.backward()
    model.zero_grad()


def measure(base: Path, root: Path, files: Files, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each side and round."""
    rows = []
    for number in range(args.rounds):
        makers: dict[str, Callable[[], Any]] = {
            "Etude, 1 process": lambda n=number: etude(root, base / f"one{n}", args, 1),
            f"Etude, {args.workers} processes": lambda n=number: etude(root, base / f"more{n}", args, args.workers),
            f"MidiTok, {args.workers} processes": lambda: miditok(files, args),
            f"muspy, {args.workers} processes": lambda n=number: muspy(root, base / f"muspy{n}", args),
        }
        for name in list(makers) if number % 2 == 0 else list(makers)[::-1]:
            spent, made = seconds(makers[name])
            loader = made.train_dataloader() if isinstance(made, MusicDataModule) else made
            batches = args.batches if "muspy" not in name else max(1, args.batches // 20)
            per_second, tokens, padding = rate(loader, batches)
            rows.append({"side": name, "pieces_per_s": len(files) / spent, "batches_per_s": per_second,
                         "tokens_per_s": tokens, "padding": padding})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="append the rows to this JSON-lines file")
    for name, default in (
        ("files", 200), ("rounds", 3), ("max-len", 1024), ("rows", 4), ("workers", 2), ("batches", 200), ("steps", 20),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        files = gather(args.folder, base / "scores", args.files)
        if not files:
            sys.exit(f"{args.folder} holds no MIDI file that REMI can hold; give a folder of .mid files")
        rounds = measure(base, base / "scores", files, args)
        step, draw = step_seconds(etude(base / "scores", base / "one0", args, 1), args.steps)
    report(rounds, step, draw, len(files), args)


def report(rounds: list[dict[str, Any]], step: float, draw: float, num_files: int, args: argparse.Namespace) -> None:
    """Prints the medians as a Markdown table; appends them to --json."""
    import json

    print(f"\n{num_files} MIDI files, rows of {args.max_len} tokens, {args.rows} rows a batch\n")
    print("| side | pieces/s into | batches/s out | real tokens/s out | padding |")
    print("|---|---:|---:|---:|---:|")
    lines: list[dict[str, Any]] = []
    for side in dict.fromkeys(row["side"] for row in rounds):
        names = ("pieces_per_s", "batches_per_s", "tokens_per_s", "padding")
        line = {name: statistics.median(row[name] for row in rounds if row["side"] == side) for name in names}
        lines.append({"case": side, "files": num_files, "rounds": args.rounds, **line})
        print(
            f"| {side} | {line['pieces_per_s']:,.1f} | {line['batches_per_s']:,.1f} | {line['tokens_per_s']:,.0f} "
            f"| {100 * line['padding']:.1f} % |"
        )
    print(
        f"\nloader share of a training step: {1000 * draw:.2f} ms of {1000 * step:.0f} ms, {100 * draw / step:.2f} % "
        "(6 layers, 256 wide, bf16)"
    )
    lines.append({"case": "loader share", "step_s": step, "draw_s": draw, "share": draw / step})
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        with args.json.open("a") as file:
            file.writelines(json.dumps(context() | line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
