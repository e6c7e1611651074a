"""The same model with and without a plan of its bars, trained for the same CPU time; rows for generation.md.

    OMP_NUM_THREADS=1 python benchmarks/form.py --root FOLDER [--seconds 90] [--samples 16] [--form AABB]

Both start from the bundled model and see no holes (data.infill=0). Likelihood is that of held-out pieces, validation and test
together, per note: of everything, and with a plan also of the notes alone, given plan and letters, and of these by themselves.
Samples have 32 bars and the sampling of generate.py. *Recurrence*: see `recurrence` of `etude.metrics.scores.similarity`.
*Kept*: pairs of bars with the same letter in the plan that are alike in the notes; *strayed*: those with different letters that
are. Samples of the model without a plan are compared with the form, too: what comes by itself.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import append_row, context
from structure import cut, means
from symusic import Score
from tokenizer_choice import train
from training import ROOT

from etude.core import bundled
from etude.core.measuring import measured_batches
from etude.generation.forms import form_got
from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.plans import Agreement, agreement, bar_similarities
from etude.music.form import Form, bar_letters, marked_plan, parse_form
from etude.music.score import num_notes
from etude.run.quiet import quiet_lightning
from etude.tokens.miditok_vocabulary import FORM

ROWS = ROOT / "docs" / "results" / "rows" / "form.jsonl"
BARS = 32
COMMON = [
    "data=folder", "max_steps=1000000", "data.infill=0", "data.split=[0.7,0.15,0.15]",
    "data.max_len=2048", "data.batch_size=1", "ema_decay=0.9",  # whole pieces behind their plans, many steps in a short time
]  # fmt: skip
SAMPLING = {"temperature": 0.9, "top_p": 0.98, "min_p": 0.02, "max_new_tokens": 2048}
CASES = {"no plan": [], "plan": ["tokenizer.form=true"]}


def nats_per_note(task: Any, datamodule: Any) -> dict[str, float]:
    """Nats of held-out pieces per note: all, those of a plan and of the letters at the bars, and the rest."""
    kinds = torch.from_numpy(datamodule.tokenizer.table.kind)
    total = letters = 0.0
    for loader in (datamodule.val_dataloader(), datamodule.test_dataloader()):
        for batch, found in measured_batches(task, loader):
            counted = found["nll"].counted
            values = found["nll"].values[counted].double()
            total += float(values.sum())
            letters += float(values[kinds[batch["targets"][counted]] == FORM].sum())
    notes = sum(sum(datamodule.manifest(split)["notes"].to_pylist()) for split in ("val", "test"))
    return {"all": total / notes, "letters": letters / notes, "notes": (total - letters) / notes}


def compared(scores: list[Score], plan_of: Any) -> dict[str, float]:
    """Agreement of samples with plans: over all pairs of bars of all samples."""
    found = []
    for score in scores:
        plan = plan_of(score)
        found.append(agreement(plan, bar_similarities(NoteArray.from_score(score), num_bars=len(plan))))
    total = Agreement(*(sum(column) for column in zip(*found, strict=True)))
    return {"kept": total.kept, "strayed": total.strayed, "rand_index": total.rand_index}


def asked(scores: list[Score], form: Form) -> dict[str, Any]:
    """What samples have of a form: the share whose sections have it, and pairs of bars against it."""
    plan = tuple(1 + form.source(bar) for bar in range(form.num_bars))
    return {"form": str(form), "has_form": float(np.mean([form_got(score, form) == form.sections for score in scores])),
            **compared(scores, lambda _: plan)}  # fmt: skip


def sampled(task: Any, count: int, **labels: Any) -> list[Score]:
    with torch.inference_mode():
        found = task.sample(num_samples=count, num_bars=BARS, labels=labels, seed=0, **SAMPLING)
    return [score for score in found if num_notes(score)]


def measured(task: Any, datamodule: Any, found: dict[str, Any], *, samples: int, form: Form) -> dict[str, Any]:
    found = {**found, "nats_per_note": nats_per_note(task, datamodule)}
    free = sampled(task, samples)
    found |= {"samples": len(free), "recurrence": means(cut(free)), "by_itself": asked(free, form)}
    if task.tokenizer.can_plan:
        told = sampled(task, samples, form=form.sections, form_bars=form.bars)
        found |= {"own_plan": compared(free, marked_plan), "asked": {**asked(told, form), "plan": compared(told, marked_plan)}}
        found |= {"recurrence_asked": means(cut(told))}
    return found


def real(datamodule: Any, form: Form) -> dict[str, Any]:
    """The first bars of held-out pieces that are so long."""
    pieces = []
    for split in ("val", "test"):
        view = datamodule.view(split)
        pieces += [datamodule.tokenizer.decode(view.body(i)) for i in range(len(view))]
    whole = [(score, len(NoteArray.from_score(score).bar_starts) - 1) for score in pieces]
    letters = [len(set(bar_letters(bar_similarities(NoteArray.from_score(s), num_bars=BARS)))) for s, n in whole if n >= BARS]
    long = [score for score, bars in whole if bars >= BARS]
    return {
        "samples": len(long),
        "recurrence": means(cut(long)),
        "by_itself": asked(long, form),
        "letters": float(np.mean(letters)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="a folder of scores")
    parser.add_argument("--seconds", type=float, default=90.0, help="CPU-seconds of training of each case")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--form", default="AABB", help="that is asked for, in 32 bars")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    form = parse_form(args.form, num_bars=BARS)
    for name, options in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            own = [*COMMON, f"data.root={args.root}", f"data.cache_dir={scratch}/cache", *options]
            task, datamodule, found = train(own, Path(scratch), args.seconds, start=bundled.PATH)
            found = measured(task, datamodule, found, samples=args.samples, form=form)
            if name == "no plan":
                append_row(args.rows, {"case": "real", **real(datamodule, form), **context()})
            append_row(args.rows, {"case": name, "seconds": args.seconds, **found, **context()})


if __name__ == "__main__":
    main()
