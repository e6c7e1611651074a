"""How much likelier the true notes of a passage are when the model sees what follows; rows for docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/infilling.py --ckpt bundled --data corpus_free folder=DIR --passages 200

For held-out pieces, passages of four bars are taken at random places, with bars before and after them. The likelihood of the
true notes is that of one model: once it continues what comes before (the ordinary order of tokens), once it fills the passage
in, seeing eight bars behind it as well. Both are nats per note of the passage: all tokens that write it, so bars and positions
count, too. Tempo changes are in neither.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import append_row, context
from training import ROOT, composed

from etude.core.checkpoint_search import find_checkpoint
from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.tasks.language_model import LanguageModel
from etude.tasks.remi_infilling import AHEAD_BARS
from etude.tokens.grammar import BOS, CONT
from etude.tokens.infilling import Bars, Hole, opening, reordered
from etude.tokens.miditok_vocabulary import PITCH, PITCH_DRUM, TEMPO

ROWS = ROOT / "docs" / "results" / "rows" / "infilling.jsonl"
LENGTH, MOST = 4, 640  # bars of a passage; tokens before its notes


def nats(task: LanguageModel, start: int, prefix: np.ndarray, target: np.ndarray, positions: np.ndarray) -> float:
    """The negative log-likelihood of the target tokens after the prefix, in nats; changes of tempo are not counted."""
    tokenizer: Any = task.tokenizer
    body = np.concatenate([prefix, target])
    features = {name: np.concatenate([[0], values]) for name, values in tokenizer.features(body).items()}
    ids = torch.tensor([[start, *body.tolist()]])
    zeros = torch.zeros(1, ids.shape[1] - 1, dtype=torch.int64)
    logits = task.model(
        ids[:, :-1], documents_bt=zeros, positions_bt=torch.tensor([0, *(1 + positions).tolist()])[None, :-1],
        features={name: torch.tensor(values[:-1])[None] for name, values in features.items()},
    )  # fmt: skip
    losses = torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:], reduction="none")[len(prefix) :]
    counted = torch.tensor(tokenizer.table.kind[target] != TEMPO)
    return float(losses[counted].double().sum())


def compared(task: LanguageModel, ids: np.ndarray, start: int) -> tuple[float, float, int] | None:
    """Nats of a passage from the left alone and as a hole, and its notes; None if it has none or too many tokens."""
    tokenizer: Any = task.tokenizer
    bars = Bars(ids, tokenizer.table)
    hole = Hole(start, start + LENGTH, min(start + LENGTH + AHEAD_BARS, len(bars)))
    before, inside = opening(bars, hole, program_changes=tokenizer.program_changes, most_tokens=MOST)
    filled = reordered(bars, [hole], program_changes=tokenizer.program_changes).ids
    at = int(np.flatnonzero(tokenizer.uncounted(filled))[-1]) + 1  # behind Back and its programs
    rest = reordered(Bars(ids[bars.starts[hole.ahead] :], tokenizer.table), [], program_changes=True).ids
    target = filled[at : len(filled) - len(rest)]
    kinds = tokenizer.table.kind[target]
    notes = int(np.isin(kinds, (PITCH, PITCH_DRUM)).sum())
    if not notes or len(before.ids) + len(target) > 2 * MOST:
        return None
    first = start
    while first and bars.size(first - 1, start) < MOST:
        first -= 1
    left, plain = ids[bars.starts[first] : bars.starts[start]], ids[bars.starts[start] : bars.starts[start + LENGTH]]
    alone = nats(task, CONT if first else BOS, left, plain, np.arange(len(left) + len(plain)))
    positions = np.concatenate([before.positions, before.positions[-1] + 1 + np.arange(len(target))])
    return alone, nats(task, CONT if inside else BOS, before.ids, target, positions), notes


def measured(task: LanguageModel, name: str, passages: int, folder: Path) -> dict[str, Any]:
    """Means over random passages of the test pieces of a data set."""
    data, _, root = name.partition("=")
    cfg = composed([f"data={data}", *([f"data.root={root}"] if root else [])], folder)
    datamodule = run.prepare_data(cfg.data, run.instantiate(cfg.tokenizer), folder)
    view, random = datamodule.view("test"), np.random.default_rng(0)
    numbers = {word: i for i, word in enumerate(task.tokenizer.vocab)}  # type: ignore[attr-defined]
    found: list[tuple[float, float, int]] = []
    for _ in range(20 * passages):
        words = [datamodule.tokenizer.vocab[i] for i in view.body(int(random.integers(len(view)))).tolist()]
        ids = np.array([numbers[word] for word in words], dtype=np.int64)  # the genres differ, and so do the ids
        count = len(Bars(ids, task.tokenizer.table))  # type: ignore[attr-defined]
        if count < 3 * LENGTH:
            continue
        one = compared(task, ids, int(random.integers(LENGTH, count - LENGTH)))
        found += [one] if one is not None else []
        if len(found) >= passages:
            break
    left, filled, notes = (np.array(values, float) for values in zip(*found, strict=True))
    draws = [random.integers(len(notes), size=len(notes)) for _ in range(1000)]
    ratios = sorted(float(filled[d].sum() / left[d].sum()) for d in draws)
    return {
        "passages": len(found), "notes": int(notes.sum()), "left": left.sum() / notes.sum(),
        "infilled": filled.sum() / notes.sum(),
        "ratio": filled.sum() / left.sum(), "ratio_interval": [ratios[25], ratios[975]], "better": float((filled < left).mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="bundled")
    parser.add_argument("--data", nargs="+", default=["corpus_free"], help="choices of data=, or folder=DIR")
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    task: Any = run.load_task(find_checkpoint(args.ckpt, "outputs", best=True))[0]
    for name in args.data:
        with torch.inference_mode():
            row = measured(task, name, args.passages, Path("outputs"))
        append_row(args.rows, {"model": args.ckpt, "data": name.partition("=")[0], **row, **context()})


if __name__ == "__main__":
    main()
