"""Styles given by a clip, not by name: measures a model of task=stargan; writes rows for docs/results/style_transfer.md.

    OMP_NUM_THREADS=1 python benchmarks/style_clips.py --ckpt outputs/DATE/RUN --rows docs/results/rows/style_clips.jsonl

Known styles: the held-out tunes are restyled by name, by clips of training tunes in the target style, and, as a control, with
the name of the target style and clips of another one. An unknown style: a brass band, which plays the same held-out tunes by an
arrangement of its own. Its clips are validation tunes; every known style is restyled to it from the name of the style
that is nearest to the clip, with that style's band statistics or the clip's own. Values are means over the clips.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peer import context
from torch import Tensor
from training import composed

from etude.core.checkpoint_files import load_checkpoint
from etude.core.checkpoint_search import find_checkpoint
from etude.data.scores.build import load_score
from etude.evaluation.style_comparison import compare_mels
from etude.evaluation.styles import log_mels, train_classifier, whole_segments
from etude.music.arrangement import Arrangement, arrange
from etude.music.score import duration_seconds
from etude.render.scores import render
from etude.run import parts as run

BRASS = Arrangement(melody=56, chords=61, bass=58, octave=0, comping="offbeat", walking=False, drums="straight", swing=0.5)
QUIET_SHARE = 0.01  # as of `data.audio.statistics`


def unknown(datamodule: Any, split: str, count: int) -> list[Tensor]:
    """Returns the log mels [m, f] of the first held-out tunes, played by a brass band."""
    corpus, contract = datamodule.corpus, datamodule.contract
    recordings, _ = corpus.recordings(["folk"], cache_dir=Path(datamodule.cache_dir), num_workers=1)
    by_song = {recording.song: recording for recording in recordings if recording.split == split}
    found = []
    for index in range(count):
        recording = by_song[datamodule.piece(split, "folk", index).song]
        score = arrange(load_score(recording.scores, recording.row), BRASS, max_seconds=recording.max_seconds)
        sound = render(score, sample_rate=contract.sample_rate, soundfont=recording.soundfont, synthesizer=recording.synthesizer)
        samples = torch.from_numpy(sound.mean(axis=0)[: round(duration_seconds(score) * contract.sample_rate)])
        found.append(contract.log_mel(samples[None])[0])
    return found


def statistics_of(clip_mf: Tensor) -> Tensor:
    """Returns mean, deviation, maximum and quiet level of each band [4, m], as `data.audio.statistics` has them of a style."""
    level_f = clip_mf.mean(0)
    quiet_mf = clip_mf[:, level_f <= level_f.quantile(QUIET_SHARE)]
    return torch.stack([clip_mf.mean(1), clip_mf.std(1).clamp(min=0.1), clip_mf.amax(1), quiet_mf.mean(1)])


@contextmanager
def bands_of(task: Any, style: str, clip_mf: Tensor) -> Iterator[None]:
    """Gives a style the band statistics of a clip for a while."""
    index, kept = task.styles.index(style), task.bands.statistics.clone()
    task.bands.statistics[index] = statistics_of(clip_mf).to(kept)
    try:
        yield
    finally:
        task.bands.statistics.copy_(kept)


def restyled(task: Any, mels: list[Tensor], source: str, target: str, clip: Tensor | None = None) -> list[Tensor]:
    """Returns the log mels in the style that a name, or a name and a clip, tell."""
    return [task.translate(mel[None], source=source, target=target, reference=clip)[0] for mel in mels]


def mean_row(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def known_styles(task: Any, datamodule: Any, classifier: Any, count: int, num_clips: int) -> Iterator[dict[str, Any]]:
    """Yields rows of every direction between the styles that the model was trained on."""
    for source, target in itertools.permutations(task.styles, 2):
        mels, truths = (log_mels(datamodule, "test", style, max_pieces=count) for style in (source, target))
        other = next(style for style in task.styles if style not in (source, target))
        own, others = ([datamodule.log_mel("train", style, i) for i in range(num_clips)] for style in (target, other))
        made = {
            "affine": [[task.affine(mel[None], source=source, target=target)[0] for mel in mels]],
            "by name": [restyled(task, mels, source, target)],
            "by a clip": [restyled(task, mels, source, target, clip) for clip in own],
            "by name, clip of another style": [restyled(task, mels, source, target, clip) for clip in others],
        }
        for row, tries in made.items():
            found = []
            for fakes in tries:
                accuracy = classifier.accuracy(whole_segments(fakes), task.styles.index(target))
                same = compare_mels(zip(fakes, truths, strict=True), contract=task.contract)
                found.append({"accuracy": accuracy, **same})
            yield {"source": source, "target": target, "row": row, **mean_row(found)}


def unknown_style(task: Any, datamodule: Any, count: int, num_clips: int) -> Iterator[dict[str, Any]]:
    """Yields rows of every known style restyled to one that the model never heard."""
    clips, truths = unknown(datamodule, "val", num_clips), unknown(datamodule, "test", count)
    for source in task.styles:
        mels = log_mels(datamodule, "test", source, max_pieces=count)
        found: dict[str, list[dict[str, float]]] = {}
        for clip in clips:
            distances = task.style_distances(clip)
            near = min((style for style in task.styles if style != source), key=lambda style: distances[style])
            made = {"copy": mels}
            made["affine to the nearest style"] = [task.affine(mel[None], source=source, target=near)[0] for mel in mels]
            made["nearest style by name"] = restyled(task, mels, source, near)
            made["by a clip"] = restyled(task, mels, source, near, clip)
            with bands_of(task, near, clip):
                made["affine to the clip"] = [task.affine(mel[None], source=source, target=near)[0] for mel in mels]
                made["nearest style by name, bands of the clip"] = restyled(task, mels, source, near)
                made["by a clip, bands of the clip"] = restyled(task, mels, source, near, clip)
            for row, fakes in made.items():
                same = compare_mels(zip(fakes, truths, strict=True), contract=task.contract)
                found.setdefault(row, []).append(same)
        for row, values in found.items():
            yield {"source": source, "target": "brass (unknown)", "row": row, **mean_row(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="last", help="a run of task=stargan, or bundled")
    parser.add_argument("--name", default="shared", help="what the table calls this model")
    parser.add_argument("--songs", type=int, default=40, help="held-out songs")
    parser.add_argument("--clips", type=int, default=3, help="clips of each style")
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines to append to")
    args = parser.parse_args()
    path = find_checkpoint(args.ckpt, "outputs", kind="style_transfer", best=True)
    task: Any = run.load_task(path)[0]
    if task.encoder is None:
        parser.error(f"--ckpt {args.ckpt} knows styles only by name; give a run of task=stargan")
    with tempfile.TemporaryDirectory() as scratch:
        cfg = composed(["task=stargan", f"styles=[{','.join(task.styles)}]"], Path(scratch))
        datamodule = run.prepare_data(cfg.data, None, Path(scratch))
    classifier = train_classifier(datamodule, styles=task.styles)
    about = {
        "model": args.name, "songs": args.songs, "clips": args.clips, "steps": load_checkpoint(path)["global_step"],
        "parameters": sum(p.numel() for p in task.generators.parameters()),
    }  # fmt: skip
    with torch.inference_mode():
        for row in itertools.chain(
            known_styles(task, datamodule, classifier, args.songs, args.clips),
            unknown_style(task, datamodule, args.songs, args.clips),
        ):
            print(" ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
            if args.rows is not None:
                args.rows.parent.mkdir(parents=True, exist_ok=True)
                with args.rows.open("a") as file:
                    file.write(json.dumps({**context(), **about, **row}) + "\n")


if __name__ == "__main__":
    main()
