"""Evaluate a style-transfer model against baselines: the unchanged source, an affine map, another song and the truth."""

import csv
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.audio.griffin_lim import GriffinLim
from etude.core.audio_protocols import HasAffineBaseline
from etude.core.protocols import Translates
from etude.evaluation.perceptual import Listener, opening
from etude.evaluation.style_comparison import COLUMNS, compare_mels
from etude.metrics.audio.artefacts import squeal_share
from etude.metrics.audio.mel_distances import frechet_distance, may_be_versions, mmd
from etude.metrics.audio.mel_features import segment_features
from etude.metrics.audio.style_classifier import StyleClassifier, train_style_classifier
from etude.report.run_page import begin_report, end_report
from etude.report.style_plots import mel_panels

SEGMENT = 128  # frames that the style classifier sees at once
MAX_SEGMENTS = 600  # for each style, to train the classifier on
ROWS = {
    "copy": "the unchanged source",
    "affine": "the source with each band scaled to the target's mean and deviation, without training",
    "stranger": "the true rendering of another song in the target style: the right style, the wrong notes",
    "model": "the model",
    "oracle": "the true rendering in the target style",
}
Row = dict[str, Any]


def score_styles(
    *,
    task: HasAffineBaseline,
    datamodule: Any,
    folder: Path,
    split: str = "test",
    num_songs: int | None = None,
    classifier_steps: int = 300,
    perceptual_songs: int = 0,
    seed: int = 0,
) -> list[Row]:
    """Evaluates a style-transfer model: writes style_transfer.csv, plots and report.html.

    The table has the rows of `ROWS` for each direction. `squeals` is the share of frames with a band more than 6 dB above all
    training frames of the target style. If the held-out songs are not the same in every style, there is no
    true rendering to compare with: the columns that need it and the rows `stranger` and `oracle` are left out.

    Args:
        task: a trained model.
        datamodule: the data module of its training.
        folder: the run's folder.
        split: val or test.
        num_songs: largest number of songs; None for all.
        classifier_steps: training steps of the style classifier, which is trained here on real training audio.
        perceptual_songs: number of songs that are also compared as sound, see `perceptual.COLUMNS`: notes that a network finds,
            embeddings, clicks; needs the packages of the extra `perceptual`, and about 10 s a song and direction. 0 for none.
        seed: of the style classifier.

    Returns:
        The rows of the table.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split={split} is not held out; choose val or test")
    if num_songs is not None and num_songs < 1:
        raise ValueError(f"num_songs is {num_songs}, must be at least 1, or null for all")
    if perceptual_songs < 0:
        raise ValueError(f"perceptual_songs is {perceptual_songs}, must be at least 0; 0 compares mels only")
    listener = Listener(task.contract) if perceptual_songs else None
    classifier = train_classifier(datamodule, styles=task.styles, steps=classifier_steps, seed=seed)
    report = begin_report(f"Evaluation: style transfer between {', '.join(task.styles)}, {split} split", folder)
    report.text(
        f"Style accuracy is measured by a classifier trained on real audio during this evaluation. On held-out real audio it is "
        f"right in {100 * classifier.held_out_accuracy:.1f} % of segments. It does not measure music: noise can fool it."
    )
    rows: list[Row] = []
    for source, target in itertools.permutations(task.styles, 2):
        print(f"scoring {source} to {target}", file=sys.stderr)
        found, picture = _direction(task, datamodule, classifier, source, target, split, num_songs, listener, perceptual_songs)
        rows += found
        columns = [name for name in found[0] if name not in ("source", "target")]
        report.heading(f"{source} to {target}").table(columns, [[row.get(name) for name in columns] for row in found])
        (folder / f"{source}_to_{target}.png").write_bytes(picture)
        report.image(picture, alt=f"Mels of the first song: {source}, the source, and what was made of it in {target}")
    speed = real_time_factor(task, datamodule, split)
    report.text(f"{speed:.1f} times real time, from samples to samples (mel, model, 8 iterations of Griffin-Lim).")
    for row in rows:
        if row["row"] == "model":
            row["real_time_factor"] = speed
    report.text("\n".join(f"{name}: {meaning}" for name, meaning in ROWS.items()))
    with (folder / "style_transfer.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0] | {"real_time_factor": ""}))
        writer.writeheader()
        writer.writerows(rows)
    end_report(report, folder)
    return rows


def whole_segments(mels: Sequence[Tensor]) -> Tensor:
    """Cuts mels [m, f] into segments [n, m, SEGMENT]; the rest of each mel, and mels that are shorter, are left out."""
    longer = [mel for mel in mels if mel.shape[1] >= SEGMENT]
    cut = [mel[:, : mel.shape[1] // SEGMENT * SEGMENT].reshape(len(mel), -1, SEGMENT).transpose(0, 1) for mel in longer]
    return torch.cat(cut) if cut else torch.zeros(0, len(mels[0]), SEGMENT)


def log_mels(datamodule: Any, split: str, style: str, *, max_pieces: int | None = None) -> list[Tensor]:
    """Returns the natural-log mels [m, f] of the pieces of a style in a split, at most `max_pieces` of them."""
    count = datamodule.num_pieces(split, style)
    return [datamodule.log_mel(split, style, i) for i in range(min(count, max_pieces or count))]


def train_classifier(datamodule: Any, *, styles: Sequence[str], steps: int = 300, seed: int = 0) -> StyleClassifier:
    """Trains a classifier of `styles`, in their order, on the training audio of a `StyleDataModule`.

    Its `held_out_accuracy` is measured on the validation audio, if every style has some.

    Raises:
        ValueError: a style that has no stretch of `SEGMENT` frames.
    """

    def segments_of(split: str, style: str) -> Tensor:
        mels = log_mels(datamodule, split, style)
        found = whole_segments(mels)
        if not len(found):
            seconds = SEGMENT * datamodule.contract.hop_length / datamodule.contract.sample_rate
            raise ValueError(
                f"{style} has no {split} audio of {seconds:.1f} s without a break, "
                "which the style classifier needs; add longer recordings"
            )
        return found[:: -(-len(found) // MAX_SEGMENTS)]

    held_out = [segments_of("val", style) for style in styles] if all(datamodule.num_pieces("val", s) for s in styles) else None
    return train_style_classifier([segments_of("train", s) for s in styles], held_out_per_style=held_out, seed=seed, steps=steps)


def _direction(
    task: HasAffineBaseline,
    datamodule: Any,
    classifier: StyleClassifier,
    source: str,
    target: str,
    split: str,
    num_songs: int | None,
    listener: Listener | None,
    perceptual_songs: int,
) -> tuple[list[Row], bytes]:
    def mels(style: str) -> list[Tensor]:
        found = log_mels(datamodule, split, style, max_pieces=num_songs)
        if not found:
            raise ValueError(f"there is no {split} audio of {style}; add files, or give data.split another share")
        return found

    sources, truths = mels(source), mels(target)
    if datamodule.paired:
        sources, truths = _as_long(sources, truths)
    made = {
        "copy": sources,
        "affine": [task.affine(mel[None], source=source, target=target)[0].cpu() for mel in sources],
        "model": [task.translate(mel[None], source=source, target=target)[0].cpu() for mel in sources],
    }
    panels = {f"{source}, the source": sources[0], "affine": made["affine"][0], f"{target}, made": made["model"][0]}
    if datamodule.paired:
        made |= {"oracle": truths} | ({"stranger": _other_songs(truths)} if len(truths) > 1 else {})
        panels[f"{target}, true"] = truths[0]
    highest_m = datamodule.statistics[datamodule.styles.index(target), 2].numpy()
    heard = {} if listener is None else _listened(listener, datamodule, made, source, target, split, perceptual_songs)
    rows = []
    for name in (name for name in ROWS if name in made):
        row: Row = {"source": source, "target": target, "row": name}
        segments = whole_segments(made[name])
        row["accuracy"] = classifier.accuracy(segments, task.styles.index(target)) if len(segments) else float("nan")
        row |= compare_mels(zip(made[name], truths, strict=True), contract=task.contract) if datamodule.paired else _as_sets(
            made[name], truths
        )  # fmt: skip
        row["squeals"] = sum(squeal_share(mel, highest_m) for mel in made[name]) / len(made[name])
        rows.append(row | heard.get(name, {}))
    seconds = task.contract.hop_length / task.contract.sample_rate
    return rows, mel_panels({name: mel[:, : round(10 / seconds)] for name, mel in panels.items()}, frame_seconds=seconds)


def _as_long(sources: Sequence[Tensor], truths: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Cuts versions of a song that differ much in length to the shorter one, as in validation, and tells it."""
    pairs = list(zip(sources, truths, strict=True))
    uneven = [not may_be_versions(source.shape[1], truth.shape[1]) for source, truth in pairs]
    if any(uneven):
        print(
            f"songs whose versions differ in length by more than 2 %: {sum(uneven)} of {len(pairs)}; they are compared up to the "
            "end of the shorter; if files of the same name are not versions of a song, train with data.corpus.paired=false",
            file=sys.stderr,
        )
    ends = [min(source.shape[1], truth.shape[1]) if cut else None for (source, truth), cut in zip(pairs, uneven, strict=True)]
    cuts = [(source[:, :end], truth[:, :end]) for (source, truth), end in zip(pairs, ends, strict=True)]
    return [source for source, _ in cuts], [truth for _, truth in cuts]


def _listened(
    listener: Listener, datamodule: Any, made: Mapping[str, Sequence[Tensor]], source: str, target: str, split: str, songs: int
) -> dict[str, dict[str, float]]:
    """Returns the values of `perceptual.COLUMNS` of each row but `stranger`, of the openings of the first songs."""
    count, hop = min(songs, len(made["copy"])), listener.contract.hop_length
    sources = [opening(datamodule, split, source, i) for i in range(count)]
    truths = [opening(datamodule, split, target, i) for i in range(count)] if datamodule.paired else None
    if truths is not None:  # the versions of a song may end at different times
        ends = [min(map(len, pair)) // hop * hop for pair in zip(sources, truths, strict=True)]
        sources, truths = ([song[:end] for song, end in zip(side, ends, strict=True)] for side in (sources, truths))
    sounds: dict[str, Sequence[Tensor]] = {"copy": sources}
    for name in ("affine", "model"):
        pairs = zip(made[name], sources, strict=False)
        sounds[name] = [listener.sound(mel[:, : listener.contract.num_frames(len(song))], song) for mel, song in pairs]
    if truths is not None:
        sounds["oracle"] = truths
    reference = listener.reference(datamodule, target)
    return {
        name: listener.compare(fakes, sources=sources, truths=truths, reference_pd=reference) for name, fakes in sounds.items()
    }


def _other_songs(truths: list[Tensor]) -> list[Tensor]:
    """Returns for each song the next song, repeated or cut to the same length."""
    others = [*truths[1:], *truths[:1]]
    return [
        other.repeat(1, -(-truth.shape[1] // other.shape[1]))[:, : truth.shape[1]]
        for truth, other in zip(truths, others, strict=True)
    ]


def _as_sets(fakes: list[Tensor], truths: list[Tensor]) -> Mapping[str, float]:
    frames = [torch.cat(mels, dim=1).numpy() for mels in (fakes, truths)]
    features = [torch.cat([torch.as_tensor(segment_features(mel.numpy())) for mel in mels]).numpy() for mels in (fakes, truths)]
    nothing = dict.fromkeys(COLUMNS, float("nan"))
    return nothing | {
        "frechet_bel2": frechet_distance(*frames),
        "mmd": mmd(*features) if min(map(len, features)) > 1 else float("nan"),
    }


def real_time_factor(task: Translates, datamodule: Any, split: str, *, seconds: float = 60.0) -> float:
    """Returns the seconds of audio that are restyled in one second, from samples to samples, on this machine."""
    contract, (source, target) = task.contract, task.styles[:2]
    pieces = [datamodule.samples(split, source, i) for i in range(datamodule.num_pieces(split, source))]
    samples = torch.cat(pieces)[: round(seconds * contract.sample_rate)][None]
    vocoder = GriffinLim(contract)
    start = time.perf_counter()
    spectrum = contract.spectrum(samples)
    mel = contract.bands(spectrum.abs()).clamp(min=contract.floor).log()
    vocoder(task.translate(mel, source=source, target=target).cpu(), source=spectrum)
    duration: float = samples.shape[-1] / contract.sample_rate
    return duration / (time.perf_counter() - start)
