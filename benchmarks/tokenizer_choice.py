"""Every tokenizer for folders of scores with the same small Transformer and the same CPU time; rows for results/tokenizers.md.

    OMP_NUM_THREADS=1 python benchmarks/tokenizer_choice.py --root FOLDER [--seconds 30] [--cases remi tsd ...] [--seeds 0]

All cases train one Transformer from random weights with the defaults of train.py (Muon, augmentation, averaging) on the same
pieces, but, as the time is short, of half the width and depth of model=tiny (`SMALL`), with one row of 512 tokens a step and a
faster average (`SHORT`). The budget is CPU-seconds of training, not steps, so a tokenizer pays for its longer sequences; the
schedule follows the time.

Likelihood is that of evaluate.py: every token of a held-out piece counts, except the one that ends it. No labels are told
(data.controls=[]), so nothing that a tokenizer writes is known beforehand; only the case `remi, defaults` is told them.

`kept` is what is left of the held-out pieces after encoding and decoding, since bits per note of a tokenizer that leaves
something out are not comparable. The peer is a Llama of transformers, see tokenizer_peer.py. Existing rows are not run again.
"""

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from peer import append_row, context
from symusic import Score
from tokenizer_peer import LLAMA, ROW, fit_llama, tuned_rate
from torch.optim.lr_scheduler import LambdaLR
from training import ROOT, composed

from etude.core.checkpoints import LastCheckpoint
from etude.core.measuring import measured_batches
from etude.core.technique import Composition
from etude.evaluation.likelihood import likelihood, sixteenths
from etude.optim.muon import iteration_dtype
from etude.run import parts as run
from etude.run import recipes
from etude.run.quiet import quiet_lightning
from etude.tokens.classes import CLASSES, token_classes

ROWS = ROOT / "docs" / "results" / "rows" / "tokenizers.jsonl"
UNTOLD = ["data.controls=[]"]
NO_HOLES = ["tokenizer.infill=false", "data.infill=0"]
CASES: dict[str, list[str]] = {
    "remi": ["tokenizer=remi", *UNTOLD, *NO_HOLES],
    "remi, one part": ["tokenizer=remi", "tokenizer.parts=1", *UNTOLD, *NO_HOLES],
    "tsd": ["tokenizer=tsd", *UNTOLD],
    "midilike": ["tokenizer=midilike", *UNTOLD],
    "octuple": ["tokenizer=octuple", *UNTOLD],
    "remi_bpe": ["tokenizer=remi_bpe", *UNTOLD],
    "remi, defaults": ["tokenizer=remi"],
}
PEER_TOKENS = "remi, one part"  # MidiTok's REMI without an addition of Etude
STEPS = 1000  # resolution of the schedule
GRID = 12  # positions of a beat, as of the tokenizers
VELOCITY_STEP = 8  # of the tokenizers' 16 bins
SMALL = ["model.dim=64", "model.num_layers=2", "model.num_heads=2", "model.num_kv_heads=2", "model.hidden_dim=192"]
SHORT = ["data.batch_size=1", f"data.max_len={ROW}", f"data.max_eval_len={ROW}", "data.eval_overlap=0.25", "ema_decay=0.9"]


class CpuBudget(pl.Callback):
    """Ends training after so many CPU-seconds; `share` is the part of them that is spent."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.spent, self.tokens, self._start = seconds, 0.0, 0, 0.0

    @property
    def share(self) -> float:
        return min(1.0, self.spent / self.seconds)

    def on_train_start(self, *_: Any) -> None:
        self._start = time.process_time()

    def on_before_zero_grad(self, *_: Any) -> None:  # before the schedule's step
        self.spent = time.process_time() - self._start

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.spent = time.process_time() - self._start
        self.tokens += int((batch["targets"] != -100).sum())
        trainer.should_stop = self.spent >= self.seconds


def over_time(shape: Callable[..., LambdaLR], share: Callable[[], float]) -> Callable[..., LambdaLR]:
    """The schedule `shape` as a function of the share of the time that is spent, instead of the step."""
    factor = shape(torch.optim.SGD([torch.zeros(1)], lr=1.0), total_steps=STEPS).lr_lambdas[0]
    return lambda optimizer, total_steps: LambdaLR(optimizer, lambda step: factor(int(STEPS * share())))


def train(
    options: list[str], folder: Path, seconds: float, *, start: Path | None = None
) -> tuple[Any, Any, dict[str, Any]]:  # fmt: skip
    """Trains as train.py does for so many CPU-seconds; returns (task, data, what was measured).

    start: the checkpoint whose weights training starts from; None for random ones.
    """
    cfg = composed(options, folder)
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), folder)
    budget = CpuBudget(seconds)
    made = {name: run.instantiate(cfg[name]) for name in ("model", "optimizer")}
    schedule = over_time(run.instantiate(cfg.scheduler), lambda: budget.share)
    parts = {**datamodule.parts, "trained_labels": datamodule.trained_labels()}
    task = run.build_with(cfg.task, **made, scheduler=schedule, **parts)
    task.recipe = OmegaConf.to_container(cfg, resolve=True)
    techniques = Composition(run.build_technique(node) for node in (cfg.get("technique") or {}).values()).techniques
    if start is not None:
        recipes.start_from(task, start, techniques)
    last = folder / "last.ckpt"
    trainer = run.instantiate(
        cfg.trainer, logger=False, enable_progress_bar=False, default_root_dir=str(folder), limit_val_batches=0,
        callbacks=[*techniques, budget, LastCheckpoint(path=last, every_n_steps=10**9)],
    )  # fmt: skip
    trainer.fit(task, datamodule=datamodule)
    found = {
        "iteration": str(iteration_dtype(torch.device("cpu"))).removeprefix("torch."),  # of Muon
        "parameters": sum(p.numel() for p in task.parameters()), "vocabulary": len(datamodule.tokenizer),
        "steps": trainer.global_step, "cpu_s": round(budget.spent, 1), "trained_tokens": budget.tokens,
        "epochs": budget.tokens / datamodule.view("train").num_tokens if cfg.tokenizer.bpe_vocab_size is None else None,
    }  # fmt: skip
    return run.load_task(last)[0], datamodule, found


def nats_of_pieces(task: Any, datamodule: Any, split: str) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Returns the nats and the counted tokens of each piece of a split [n], and the nats of each class of tokens."""
    size = len(datamodule.manifest(split))
    nats, tokens = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    kinds = torch.from_numpy(token_classes(datamodule.tokenizer).kind).long()
    by_class = torch.zeros(len(CLASSES), dtype=torch.float64)
    loader = datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()
    for batch, found in measured_batches(task, loader):
        counted = found["nll"].counted
        values = found["nll"].values[counted].double()
        nats.index_add_(0, batch["piece"][counted], values)
        tokens.index_add_(0, batch["piece"][counted], torch.ones_like(values))
        by_class.index_add_(0, kinds[batch["targets"][counted]], values)
    return nats.numpy(), tokens.numpy(), dict(zip(CLASSES, by_class.tolist(), strict=True))


def rates(table: Sequence[dict[str, Any]], nats: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Bits per note and the like of a split. Raises: ValueError if a piece has no token, so that cases would differ in pieces."""
    if not (tokens > 0).all():
        raise ValueError(f"{int((tokens == 0).sum())} pieces were refused; leave them out of the folder to compare")
    notes, frames = [row["notes"] for row in table], [sixteenths(row["duration_beats"]) for row in table]
    found = likelihood(nats.tolist(), tokens_p=tokens.tolist(), frames_p=frames, notes_p=notes)
    bits = nats / math.log(2)
    residuals = bits - found["bits_per_note"] * np.array(notes)
    error = math.sqrt((residuals**2).sum() / (len(bits) - 1) * len(bits)) / sum(notes)  # of a ratio, over pieces
    return {
        "pieces": len(table), "notes": sum(notes), "tokens_per_note": float(tokens.sum()) / sum(notes),
        "bits_per_note": found["bits_per_note"], "bits_per_note_stderr": error, "nats_per_token": found["nats_per_token"],
    }  # fmt: skip


def facts(score: Score) -> dict[str, list[Any]]:
    """What a score says, in lists that can be compared: times in twelfths of a quarter note."""
    unit = score.ticks_per_quarter / GRID
    found: dict[str, list[Any]] = {"onset": [], "duration": [], "velocity": [], "program": [], "part": []}
    parts: dict[tuple[int, bool], int] = {}
    for track in sorted(score.tracks, key=lambda track: (track.is_drum, track.program)):
        key = (track.program, track.is_drum)
        parts[key] = parts.get(key, -1) + 1
        for note in track.notes:
            mark = (round(note.time / unit), note.pitch, track.is_drum)
            found["onset"].append(mark)
            found["duration"].append((*mark, round(note.duration / unit)))
            found["velocity"].append((*mark, note.velocity))
            found["program"].append((*mark, track.program))
            found["part"].append((*mark, track.program, parts[key]))
    found["metre"] = [(round(m.time / unit), m.numerator, m.denominator) for m in score.time_signatures]
    found["tempo"] = [(round(t.time / unit), round(12 * math.log2(t.qpm))) for t in score.tempos]
    return found


def kept(datamodule: Any, splits: Iterable[str]) -> dict[str, float]:
    """The share of what pieces say that encoding and decoding leaves, over all pieces; 1 for everything."""
    tokenizer, same, total = datamodule.tokenizer, dict[str, int](), dict[str, int]()
    for split in splits:
        view = datamodule.view(split)
        for number, row in enumerate(view.table["row"].tolist()):
            before, after = facts(datamodule.score(split, row)), facts(tokenizer.decode(view.body(number)))
            for name, marks in before.items():
                rest = list(after[name])
                total[name] = total.get(name, 0) + len(marks)
                alike = _alike_velocities if name == "velocity" else _common
                same[name] = same.get(name, 0) + alike(marks, rest)
    return {name: same[name] / total[name] for name in total if total[name]}


def _common(one: list[Any], other: list[Any]) -> int:
    return (Counter(one) & Counter(other)).total()


def _alike_velocities(one: list[Any], other: list[Any]) -> int:
    """Notes of `one` that `other` has with a velocity in the same bin, that is, at most VELOCITY_STEP / 2 away."""
    found: dict[Any, list[int]] = {}
    for *mark, velocity in sorted(other):
        found.setdefault(tuple(mark), []).append(velocity)
    pairs = ((velocity, found[tuple(mark)].pop(0)) for *mark, velocity in sorted(one) if found.get(tuple(mark)))
    return sum(abs(before - after) <= VELOCITY_STEP / 2 for before, after in pairs)


def measured(name: str, options: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Trains and measures one case."""
    task, datamodule, found = train(options, folder, seconds)
    found["kept"] = kept(datamodule, ("val", "test"))
    for split in ("val", "test"):
        nats, tokens, by_class = nats_of_pieces(task, datamodule, split)
        table = datamodule.manifest(split).to_pylist()
        found[split] = rates(table, nats, tokens)
        if "bpe" not in name:
            found[split]["bits_by_class"] = {k: v / math.log(2) / found[split]["notes"] for k, v in by_class.items()}
    return found


def measured_peer(options: list[str], seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Tunes, trains and measures the peer on the tokens of PEER_TOKENS."""
    cfg = composed([*options, *CASES[PEER_TOKENS]], folder)
    datamodule = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), folder)
    bodies = {
        split: [datamodule.view(split).body(n).astype(np.int64) for n in range(len(datamodule.view(split)))]
        for split in ("train", "val", "test")
    }
    size = len(datamodule.tokenizer)
    rate, tried = tuned_rate(bodies["train"], vocab_size=size, seconds=seconds / 3, seed=seed)
    model, found = fit_llama(bodies["train"], vocab_size=size, seconds=seconds, lr=rate, seed=seed)
    found |= {"vocabulary": size, "lr": rate, "tried": tried, "kept": kept(datamodule, ("val", "test"))}
    for split in ("val", "test"):
        nats, tokens = model.nats_of_pieces(bodies[split])
        table = datamodule.manifest(split).to_pylist()
        order = datamodule.view(split).table["row"].tolist()
        found[split] = rates([table[row] for row in order], nats, tokens)
    return found


def done(rows: Path) -> set[tuple[str, float, int]]:
    """Case, seconds and seed of the rows that are already in the file."""
    lines = rows.read_text().splitlines() if rows.is_file() else []
    return {(row["case"], row["seconds"], row["seed"]) for row in map(json.loads, lines)}


def arguments(doc: str | None, cases: Sequence[str], rows: Path) -> argparse.Namespace:
    """The command line of a benchmark that trains each case for the same CPU time."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="a folder of scores; its subfolders are the genres")
    parser.add_argument("--seconds", type=float, default=30.0, help="CPU-seconds of training of each case")
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=Path, default=rows, help="JSON lines to append to")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    return parser.parse_args()


def main() -> None:
    args = arguments(__doc__, [*CASES, LLAMA], ROWS)
    quiet_lightning()
    for seed in args.seeds:
        for name in args.cases:
            if (name, args.seconds, seed) in done(args.rows):
                continue
            options = [
                "data=folder",
                f"data.root={args.root}",
                "max_steps=1000000",
                *SMALL,
                *SHORT,
                f"seed={seed}",
                *args.options,
            ]
            with tempfile.TemporaryDirectory() as scratch:
                if name == LLAMA:
                    found = measured_peer(options, args.seconds, seed, Path(scratch))
                else:
                    found = measured(name, [*options, *CASES[name]], args.seconds, Path(scratch))
            shown = {"options": " ".join(CASES.get(name, CASES[PEER_TOKENS]))}
            append_row(args.rows, {"case": name, "seconds": args.seconds, "seed": seed, **shown, **found, **context()})


if __name__ == "__main__":
    main()
