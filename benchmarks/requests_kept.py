"""How many samples have what was asked of them, measured on their notes; rows for docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/requests_kept.py --ckpt bundled --samples 48

Each condition is asked for alone, then all together. The key is estimated from the pitches (Krumhansl and Kessler 1982), metre,
tempo, bars and programs are read from the score that was decoded. `model alone` is the same without transposition, so that it
tells how far the model itself keeps to a key.

Chords, registers, simultaneous notes and notes in a bar are held to by decoding. Each is asked for once, and measured on the same
number of samples that were not asked for it, too. What it costs is read off the model's own likelihood of the notes, given the
same other labels, and off the share of notes in the best scale.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from peer import append_row, context
from symusic import Score
from training import ROOT

from etude.core.checkpoint_search import find_checkpoint
from etude.generation.heard import heard_rows, portion
from etude.generation.requests import asked_and_got
from etude.metrics.scores.tables import piece_metrics
from etude.music.score import num_notes
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

ROWS = ROOT / "docs" / "results" / "rows" / "requests.jsonl"
CONDITIONS: dict[str, dict[str, Any]] = {
    "key": {"key": "D major"}, "minor key": {"key": "A minor"}, "metre": {"metre": "3/4"}, "tempo": {"tempo_bpm": 77},
    "programs": {"programs": [40, 42]}, "bars": {},
    "all": {"key": "D major", "metre": "6/8", "tempo_bpm": 77, "programs": [40, 42]},
}  # fmt: skip
BARS = 8
PARTS = {"genre": "chorales", "programs": [0, 0, 0, 0], "metre": "4/4"}
NOTES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # labels that both sides have, and what is asked of the notes
    "chords, a tune": ({"genre": "folk", "metre": "4/4"}, {"chords": "G C | D7 G | Em C | D7 G"}),
    "chords, a tune in 6/8": ({"genre": "folk", "metre": "6/8"}, {"chords": "Am E7 Am % Dm Am E7 Am"}),
    "chords, a tune, jazz": ({"genre": "folk", "metre": "4/4"}, {"chords": "Dm7 G7 Cmaj7 %"}),
    "chords, four parts": (PARTS, {"chords": "C Am | F G | C/E F | G C"}),
    "chords, four parts in 3/4": ({**PARTS, "metre": "3/4"}, {"chords": "Am Dm E7 Am"}),
    "chords, four parts, strict": (PARTS, {"chords": "C Am | F G | C/E F | G C", "chords_strict": True}),
    "register": (PARTS, {"register": {1: [60, 79], 4: [36, 57]}}),
    "polyphony": (PARTS, {"polyphony": 3}),
    "density, a tune": ({"genre": "folk", "metre": "4/4"}, {"density": [6, 8]}),
    "density, four parts": (PARTS, {"density": [12, 20]}),
    "all of them, four parts": (
        PARTS, {"chords": "C Am | F G | C/E F | G C", "register": [36, 81], "polyphony": 4, "density": [8, 20]},
    ),
}  # fmt: skip


def kept(task: Any, labels: dict[str, Any], *, samples: int, transpose_to_key: bool) -> dict[str, str]:
    """Returns the share of samples that have each of the labels."""
    drawn = task.sample(
        num_samples=samples, labels=labels, num_bars=BARS, max_new_tokens=800, top_p=0.98, min_p=0.02, seed=0,
        transpose_to_key=transpose_to_key,
    )  # fmt: skip
    return {label: share for label, _, _, share in asked_and_got({**labels, "num_bars": BARS}, drawn)}


def drawn(task: Any, labels: dict[str, Any], wishes: dict[str, Any], *, samples: int) -> tuple[list[Score], dict[str, Any]]:
    """Returns samples that have notes, and their length and quality."""
    found = task.sample(
        num_samples=samples, labels={**labels, **wishes}, num_bars=BARS, max_new_tokens=1400, top_p=0.98, min_p=0.02, seed=0
    )
    found = [score for score in found if num_notes(score)]
    return found, {
        "bars": asked_and_got({"num_bars": BARS}, found)[0][-1],
        "nats per token": float(np.mean(task.nats_per_token(found, labels=labels, num_bars=BARS))),
        "pitches": float(np.mean([piece_metrics(score)["pitches used"] for score in found])),
        "in scale": float(np.nanmean([piece_metrics(score)["scale consistency"] for score in found])),
    }


def measure_notes(task: Any, args: argparse.Namespace) -> None:
    """Appends a row for each condition of `NOTES`: what samples have of it, with and without asking, and what it costs."""
    without: dict[str, tuple[list[Score], dict[str, Any]]] = {}
    for name, (labels, wishes) in NOTES.items():
        if args.match not in name:
            continue
        if str(labels) not in without:
            without[str(labels)] = drawn(task, labels, {}, samples=args.samples)
        sides = {"asked": drawn(task, labels, wishes, samples=args.samples), "not asked": without[str(labels)]}
        row: dict[str, Any] = {"model": args.ckpt, "condition": name, "samples": args.samples, "labels": labels, "wishes": wishes}
        for side, (scores, quality) in sides.items():
            pieces = [portion(score, num_bars=BARS, programs=labels.get("programs")) for score in scores]
            row[side] = {"heard": [list(line) for line in heard_rows(wishes, pieces)], **quality}
        append_row(args.rows.with_name("wishes.jsonl"), {**row, **context()})


def measure_guidance(task: Any, args: argparse.Namespace) -> None:
    """Appends a row for each weight: how many samples are in the key that the model alone is asked for, and what it costs."""
    labels = {"key": "D major", "genre": "folk"}
    for weight in (0.0, 0.5, 1.5, 3.0):
        found = task.sample(
            num_samples=args.samples, labels=labels, num_bars=BARS, max_new_tokens=800, top_p=0.98, min_p=0.02, seed=0,
            transpose_to_key=False, guidance=weight,
        )  # fmt: skip
        nats = float(np.mean(task.nats_per_token(found, labels=labels, num_bars=BARS)))
        pitches = float(np.nanmean([piece_metrics(score)["pitches used"] for score in found]))
        row = {"model": args.ckpt, "guidance": weight, "samples": args.samples, "labels": labels, "nats per token": nats}
        row |= {"kept": {label: share for label, _, _, share in asked_and_got(labels, found)}, "pitches": pitches}
        append_row(args.rows.with_name("guidance.jsonl"), {**row, **context()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="bundled")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to; others are beside it")
    parser.add_argument("--only", choices=["labels", "notes", "guidance"], help="a part of it")
    parser.add_argument("--match", default="", help="only what is asked of notes under a name that contains this")
    args = parser.parse_args()
    quiet_lightning()
    task: Any = run.load_task(find_checkpoint(args.ckpt, "outputs", best=True))[0]
    if args.only in (None, "notes"):
        measure_notes(task, args)
    if args.only in (None, "guidance"):
        measure_guidance(task, args)
    for name, labels in CONDITIONS.items() if args.only in (None, "labels") else ():
        for enforced in (True, False) if "key" in labels else (True,):
            shares = kept(task, labels, samples=args.samples, transpose_to_key=enforced)
            shown = name if enforced else f"{name}, model alone"
            append_row(args.rows, {"model": args.ckpt, "condition": shown, "asked": labels, "kept": shares, **context()})


if __name__ == "__main__":
    main()
