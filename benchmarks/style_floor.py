"""The noise floor of style transfer: how much renderings of the same scores differ between soundfonts or synthesizers.

    OMP_NUM_THREADS=1 python benchmarks/style_floor.py --soundfont FluidR3_GM.sf2 --rows docs/results/rows/style_floor.jsonl
    OMP_NUM_THREADS=1 python benchmarks/style_floor.py --synthesizer fluidsynth --rows docs/results/rows/style_floor.jsonl

A row for each style: the paired test tunes as the options render them, against the default soundfont by tinysoundfont, the
truth of docs/results/style_transfer.md. The style classifier is trained on the default rendering.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from peer import context
from training import composed

from etude.evaluation.style_comparison import compare_mels
from etude.evaluation.styles import log_mels, train_classifier, whole_segments
from etude.render.synthesizers import SYNTHESIZERS, default_soundfont, synthesizer_version
from etude.run import parts as run

TRUTH = "tinysoundfont"


def rendered(options: list[str], cache: Path) -> Any:
    """The prepared data of `train.py task=style_transfer` with these options."""
    with tempfile.TemporaryDirectory() as scratch:
        cfg = composed(["task=style_transfer", f"cache_dir={cache}", *options], Path(scratch))
        return run.prepare_data(cfg.data, None, Path(scratch))


def floor(soundfont: Path | None, synthesizer: str, cache: Path) -> list[dict[str, Any]]:
    """Returns a row of results for each style."""
    truth = rendered([], cache)
    given = [f"data.corpus.synthesizer={synthesizer}", "data.corpus.songs_per_style=1"]  # held-out tunes stay the same
    other = rendered([*given, *([f"data.corpus.soundfont={soundfont}"] if soundfont else [])], cache)
    classifier = train_classifier(truth, styles=truth.styles)
    about = {
        "soundfont": (soundfont or default_soundfont()).name, "synthesizer": synthesizer,
        "version": synthesizer_version(synthesizer), "truth": f"{default_soundfont().name} by {TRUTH}",
        "truth_version": synthesizer_version(TRUTH), "judge_held_out": classifier.held_out_accuracy,
    }  # fmt: skip
    found = []
    for number, style in enumerate(truth.styles):
        songs = [[data.piece("test", style, i).song for i in range(data.num_pieces("test", style))] for data in (truth, other)]
        assert songs[0] == songs[1], f"the test tunes of {style} differ; delete the cache and start again"
        fakes, truths = log_mels(other, "test", style), log_mels(truth, "test", style)
        accuracy = classifier.accuracy(whole_segments(fakes), number)
        compared = compare_mels(zip(fakes, truths, strict=True), contract=truth.contract)
        found.append({**about, "style": style, "songs": len(songs[0]), "accuracy": accuracy, **compared})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soundfont", type=Path, default=None, help="an .sf2 file; the default one without it")
    parser.add_argument("--synthesizer", choices=SYNTHESIZERS, default=TRUTH)
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"))
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines to append to")
    args = parser.parse_args()
    if args.soundfont is None and args.synthesizer == TRUTH:
        parser.error("nothing differs from the truth; give --soundfont, --synthesizer or both")
    for row in floor(args.soundfont, args.synthesizer, args.cache):
        print(" ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
        if args.rows is not None:
            args.rows.parent.mkdir(parents=True, exist_ok=True)
            with args.rows.open("a") as file:
                file.write(json.dumps({**context(), **row}) + "\n")


if __name__ == "__main__":
    main()
