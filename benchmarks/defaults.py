"""The default of language models against the former one, on the same data in the same run; rows for docs/results/defaults.md.

    OMP_NUM_THREADS=1 python benchmarks/defaults.py --data chorales unseen --seeds 0 1 2
    OMP_NUM_THREADS=1 python benchmarks/defaults.py --data genres=FOLDER --seeds 0 1

`unseen` is a folder of scores that no choice was made on. It is made, where it isn't there, from files of music21's wheel
that no corpus of Etude uses (`UNSEEN` is the rule); nothing is downloaded. Rows that are there are not run again.
"""

import argparse
import importlib.util
import json
import math
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peer import context
from symusic import Score
from techniques import done, fit
from training import ROOT

from etude.evaluation.scores import score_model
from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.tonality import out_of_key_share
from etude.music.score import num_notes
from etude.music.theory import Key, estimate_key
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "defaults.jsonl"
FORMER = ["optimizer=adamw", "scheduler=cosine", "technique=[ema]", "ema_decay=0.999"]
CASES: dict[str, tuple[int, list[str]]] = {  # steps and options; both stand here, so that a row says what ran
    "new": (800, []),
    "former": (1200, FORMER),
    "new, 500 steps": (500, []),
    "new, 1200 steps": (1200, []),
    "Muon's shared settings": (  # of benchmarks/optimizers.py
        800,
        ["optimizer.lr=0.0069", "optimizer.adamw_lr=0.0073", "optimizer.weight_decay=0.16", "scheduler.warmup=0.11"],
    ),
    "memory": (800, ["model.memory=true"]),  # of chorales
    "memory and R-Drop": (800, ["model.memory=true", "technique=level/little_data"]),
}
CHECK_EVERY = 100  # steps between two validations
KEYS = ("G major", "D minor")  # asked of 12 samples each
UNCONDITIONAL = 24  # samples with nothing asked


class Part(NamedTuple):
    """Files of music21's corpus that become one genre of the unseen folder: each `every`-th piece, up to `most_bytes` a file."""

    genre: str
    patterns: tuple[str, ...]
    every: int = 1
    most_bytes: int = 60_000


UNSEEN = (
    Part("classical", ("beethoven/**/*.mxl", "haydn/**/*.mxl", "mozart/**/*.mxl", "schumann_*/**/*.mxl")),
    Part("german", ("essenFolksong/*.abc",), every=150, most_bytes=1_000_000),
    Part("british", ("miscFolk/northumbrian*.abc",), every=2),
)


def make_unseen(folder: Path) -> Path:
    """Fills `folder`, where it is not there, with the pieces that `UNSEEN` chooses; a tune book is cut into its tunes."""
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec("music21")
    assert spec is not None and spec.origin is not None, "music21 is installed with Etude"
    corpus = Path(spec.origin).parent / "corpus"
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for part in UNSEEN:
            place = Path(scratch, "made", part.genre)
            place.mkdir(parents=True)
            files = sorted(path for pattern in part.patterns for path in corpus.glob(pattern))
            pieces = [piece for path in files if path.stat().st_size <= part.most_bytes for piece in _pieces(path, corpus)]
            for name, content in pieces[:: part.every]:
                (place / name).write_bytes(content)
        shutil.move(Path(scratch, "made"), folder)
    return folder


def _pieces(path: Path, corpus: Path) -> Iterable[tuple[str, bytes]]:
    """(name, content) of each tune of a tune book, or of the one piece of another file."""
    stem = "_".join(path.relative_to(corpus).with_suffix("").parts)
    if path.suffix != ".abc":
        yield f"{stem}{path.suffix}", path.read_bytes()
        return
    for number, tune in enumerate(re.split(rb"(?m)^(?=X:)", path.read_bytes())[1:], start=1):
        yield f"{stem}_{number:03d}.abc", tune


def in_scale(scores: Sequence[Score]) -> float:
    """The mean share of a piece's notes that lie in the scale of the key that is estimated for it; NaN without pieces."""
    shares = [1 - out_of_key_share(NoteArray.from_score(score), key=estimate_key(score)) for score in scores if num_notes(score)]
    shares = [share for share in shares if math.isfinite(share)]
    return statistics.mean(shares) if shares else math.nan


def in_key(task: Any, key: str) -> int:
    """How many of 12 samples that are asked for `key` have it, by estimate, before any is transposed."""
    samples = task.sample(num_samples=12, labels={"key": key}, num_bars=8, max_new_tokens=1024, seed=1, transpose_to_key=False)
    return sum(estimate_key(score) == Key.parse(key) for score in samples if num_notes(score))


def measured(task: Any, datamodule: Any, folder: Path) -> dict[str, float | int]:
    """What the best checkpoint is worth: test likelihood and the tonality of samples, beside that of held-out pieces."""
    (test,) = score_model(task=task, datamodule=datamodule, folder=folder, splits=["test"], num_samples=0)["likelihood"]
    real = [datamodule.score("val", row) for row in range(min(32, len(datamodule.manifest("val"))))]
    samples = task.sample(num_samples=UNCONDITIONAL, num_bars=8, max_new_tokens=1024, seed=0)
    return {
        "test": test["nats_per_token"], "test_frame": test["nats_per_frame"], "test_pieces": test["pieces"],
        "in_scale": in_scale(samples), "in_scale_real": in_scale(real), "in_key": sum(in_key(task, key) for key in KEYS),
        "asked": 12 * len(KEYS),
    }  # fmt: skip


def options_of(data: str) -> tuple[str, list[str]]:
    """The name of a set of data on the command line and the options that choose it."""
    name, _, root = data.partition("=")
    if name == "chorales":
        return name, ["data=chorales"]
    place = make_unseen(ROOT / "outputs" / "unseen") if name == "unseen" else Path(root)
    return name, ["data=folder", f"data.root={place}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["unseen", "chorales"], help="chorales, unseen, NAME=FOLDER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["new", "former"])
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    parser.add_argument("--unseen", type=Path, help="make the unseen folder here, and train nothing")
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    if args.unseen:
        print(make_unseen(args.unseen))
        return
    quiet_lightning()
    for seed in args.seeds:
        for place in args.data:
            data, chosen = options_of(place)
            for name in args.cases:
                if (data, name, seed) in done(args.rows):
                    continue
                steps, options = CASES[name]
                mine = [*chosen, *options, f"max_steps={steps}", f"seed={seed}", *args.options]
                with tempfile.TemporaryDirectory() as scratch:
                    task, datamodule, found = fit(mine, Path(scratch), checks=max(1, steps // CHECK_EVERY))
                    found["best_step"] = min(found["curve"], key=lambda point: point[2])[0]
                    found |= measured(task, datamodule, Path(scratch))
                shown = " ".join(option.replace(str(ROOT) + "/", "") for option in mine)
                row = {"data": data, "name": name, "seed": seed, "options": shown, **found, **context()}
                args.rows.parent.mkdir(parents=True, exist_ok=True)
                with args.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({key: value for key, value in row.items() if key not in ("curve", "options")}, flush=True)


if __name__ == "__main__":
    main()
