"""Evaluate a language model or a folder of scores: likelihood, musical metrics against controls, copying."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from symusic import Score

from etude.core.batch import Batch
from etude.core.measuring import Condition, Measured, Measures, measured_batches
from etude.core.phase_protocols import GrowsInPhases
from etude.core.protocols import Composes
from etude.data.scores.reading import read_guarded
from etude.evaluation.controls import shuffled_control
from etude.evaluation.copying import NgramIndex, copying_rows
from etude.evaluation.likelihood import likelihood, sixteenths
from etude.evaluation.progress import progress
from etude.metrics.scores.tables import HISTOGRAMS, compare_histograms, compare_scores
from etude.music.score import SUFFIXES, printable
from etude.report.files import write_atomically
from etude.report.plots import histogram_panels, metric_bars
from etude.report.reports import Report
from etude.report.run_page import begin_report, end_report
from etude.wording import counted

Row = Mapping[str, object]


class Scored(Composes, Measures, Protocol):
    """A task that composes scores and is measured on held-out tokens by `nll`, in nats a token."""


def score_model(
    *,
    task: Scored,
    datamodule: Any,
    folder: Path,
    splits: Sequence[str] = ("val", "test"),
    num_samples: int = 32,
    num_real: int = 64,
    num_bars: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_new_tokens: int = 2048,
    copying: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates a language model: writes likelihood.csv, metrics.csv, histograms.csv, copying.csv, plots and report.html.

    Args:
        task: a trained model.
        datamodule: the data module of its training.
        folder: the run's folder.
        splits: the splits on which the likelihood is measured.
        num_samples: number of pieces to sample; 0 measures the likelihood alone.
        num_real: largest number of held-out pieces that are compared with the samples.
        num_bars, temperature, top_k, top_p, min_p, max_new_tokens, seed: how to sample, see `LanguageModel.sample`.
        copying: whether to search the samples for passages of the training set.

    Returns:
        {"likelihood": rows, "metrics": rows, "copying": rows}.
    """
    if unknown := set(splits) - {"val", "test"}:
        raise ValueError(f"splits={list(splits)}: {sorted(unknown)[0]!r} is not held out; choose from [val, test]")
    made = f", {num_samples} samples beside held-out music" if num_samples else ""
    report = begin_report(f"Evaluation: likelihood of {' and '.join(splits)}{made}", folder)
    results: dict[str, Any] = {"likelihood": [split_likelihood(task, datamodule, split) for split in splits]}
    add_table(report, "Likelihood", results["likelihood"], folder / "likelihood.csv")
    report.text("Nats per frame (a sixteenth) and bits per note compare across tokenizers; nats per token do not.")
    if num_samples:
        real = [datamodule.score("test", row) for row in _rows(datamodule, "test")[:num_real]]
        samples: list[Score] = []
        (folder / "samples").mkdir(exist_ok=True)
        while len(samples) < num_samples:
            written = len(samples)  # not the number of files: the folder may hold those of an earlier evaluation
            samples += task.sample(
                num_samples=min(16, num_samples - len(samples)), num_bars=num_bars, max_new_tokens=max_new_tokens,
                temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed + len(samples),
            )  # fmt: skip
            for number in range(written, len(samples)):
                samples[number].dump_midi(folder / "samples" / f"{number:03d}.mid")
            print(f"sampled {len(samples)}/{num_samples}", file=sys.stderr)
        groups = {"samples": samples, "real": real, "shuffled real": shuffled_control(real, seed=seed)}
        results["metrics"] = _compare(report, groups, folder)
        if copying:
            results["copying"] = _copying(report, samples, real, datamodule, folder)
        report.heading("Samples").links([(f"samples/{n:03d}.mid", f"{n:03d}.mid") for n in range(len(samples))])
    end_report(report, folder)
    return results


def split_likelihood(task: Scored, datamodule: Any, split: str, *, condition: Condition | None = None) -> Row:
    """Returns {"split", "pieces", "tokens"} and the rates of `etude.evaluation.likelihood` of a split's pieces.

    A network that has grown from genre to genre reads each piece as it did when its genre was trained.

    Raises: ValueError if the split has no pieces.
    """
    rows = datamodule.manifest(split).to_pylist()
    pieces = len(rows)
    if pieces == 0:
        raise ValueError(f"there is no {split} piece; add files, give data.split another share, or leave it out of splits")
    nats, tokens = torch.zeros(pieces, dtype=torch.float64), torch.zeros(pieces, dtype=torch.float64)
    for batch, found in _measured(task, datamodule, split, [str(row["genre"]) for row in rows], condition=condition):
        nll, counted = found["nll"].values, found["nll"].counted
        assert nll is not None and counted is not None
        nats.index_add_(0, batch["piece"][counted].cpu(), nll[counted].double().cpu())
        tokens.index_add_(0, batch["piece"][counted].cpu(), torch.ones(int(counted.sum()), dtype=torch.float64))
    seen = tokens > 0
    chosen = [rows[i] for i in torch.nonzero(seen).flatten().tolist()]
    rates = likelihood(
        nats[seen].tolist(),
        tokens_p=tokens[seen].long().tolist(),
        frames_p=[sixteenths(row["duration_beats"]) for row in chosen],
        notes_p=[row["notes"] for row in chosen],
    )
    return {"split": split, "pieces": len(chosen), "tokens": int(tokens.sum()), **rates}


def _measured(
    task: Scored, datamodule: Any, split: str, genres: Sequence[str], *, condition: Condition | None
) -> Iterator[tuple[Batch, Mapping[str, Measured]]]:
    """Yields the batches of a split with what `measured_batches` says of them. genres: of each piece of the manifest."""
    groups = task.by_genre(sorted(set(genres))) if isinstance(task, GrowsInPhases) else []
    if len(groups) < 2:
        loader = datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()
        with groups[0][0] if groups else nullcontext():
            yield from measured_batches(task, progress(loader, f"likelihood, {split}"), condition=condition)
        return
    usable = datamodule.held_out(split)["tokens"] > 0
    for reading, own in groups:
        chosen = usable & np.isin(genres, sorted(own))
        if chosen.any():
            loader = datamodule.loader_of(split, chosen)
            with reading:
                what = f"likelihood, {split}: {', '.join(sorted(own))}"
                yield from measured_batches(task, progress(loader, what), condition=condition)


def _rows(datamodule: Any, split: str) -> list[int]:
    """Returns the rows of the split's manifest that the tokenizer can represent."""
    rows: list[int] = datamodule.view(split).table["row"].tolist()
    return rows


def _copying(report: Report, samples: Sequence[Score], real: Sequence[Score], datamodule: Any, folder: Path) -> Sequence[Row]:
    rows_of_training, every = _rows(datamodule, "train"), datamodule.manifest("train")["name"].to_pylist()
    training = (datamodule.score("train", row) for row in rows_of_training)
    index = NgramIndex(progress(training, "copying", total=len(rows_of_training)), names=[every[row] for row in rows_of_training])
    rows = copying_rows({"samples": samples, "held-out real": real}, index=index)
    add_table(report, "Copying from the training set", rows, folder / "copying.csv")
    report.text(
        "Share of note n-grams (intervals and onset ratios, so transposition and tempo do not hide a copy) that occur "
        "in the training set. Compare with held-out real music: a share far above its share means that the model copies."
    )
    return rows


def score_files(*, files: str, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Evaluates a folder of scores: writes metrics.csv, histograms.csv, plots, quarantine.tsv and report.html.

    Args:
        files: a folder, searched with its subfolders, or one file.
        folder: the run's folder.
        seed: of the control with shuffled onsets.

    Raises:
        ValueError: the folder is missing, or holds no readable score.
    """
    root = Path(files).expanduser()
    if not root.exists():
        raise ValueError(f"files={files}: no such folder; give one with {', '.join(sorted(SUFFIXES))} files")
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"files={files}: there is no score in it; give a folder with {', '.join(sorted(SUFFIXES))} files")
    guarded = read_guarded(paths, num_workers=os.cpu_count() or 1)
    read = sorted(progress(guarded, "reading", total=len(paths)), key=lambda row: row[0])
    scores = [score for _, pieces, _ in read for _, score in pieces]
    quarantine = [f"{printable(path)}\t{problem}" for path, _, problem in read if problem]
    if quarantine:
        write_atomically(folder / "quarantine.tsv", "\n".join(["file\treason", *quarantine, ""]))
        print(
            f"{counted(len(quarantine), 'file')} can't be read completely; the reasons are in {folder / 'quarantine.tsv'}",
            file=sys.stderr,
        )
    if not scores:
        raise ValueError(f"files={files}: none of its {counted(len(paths), 'score file')} could be read; see quarantine.tsv")
    report = begin_report(f"Musical metrics of {counted(len(scores), 'piece')} of {printable(root)}", folder)
    groups = {"pieces": scores, "shuffled": shuffled_control(scores, seed=seed)}
    results = {"metrics": _compare(report, groups, folder, reference="pieces")}
    end_report(report, folder)
    return results


def _compare(report: Report, groups: Mapping[str, Sequence[Score]], folder: Path, *, reference: str = "real") -> Sequence[Row]:
    rows = compare_scores(groups, reference=reference)
    add_table(report, "Musical metrics", rows, folder / "metrics.csv")
    report.text(
        "OA: overlapping area of the distances within and between the sets (Yang and Lerch 2020), 1 if they are "
        f"alike. The shuffled control has the notes of '{reference}' at random onsets."
    )
    picture = metric_bars(rows, groups=list(groups), title="mean and standard deviation over pieces")
    (folder / "metrics.png").write_bytes(picture)
    report.image(picture, alt=f"Bars: mean and standard deviation of each musical metric for {', '.join(groups)}")
    distances, pooled = compare_histograms(groups, reference=reference)
    add_table(report, "Distributions", distances, folder / "histograms.csv")
    picture = histogram_panels(pooled, labels={name: labels for name, (_, labels) in HISTOGRAMS.items()})
    (folder / "histograms.png").write_bytes(picture)
    report.image(picture, alt=f"Histograms of {', '.join(HISTOGRAMS)} for {', '.join(groups)}, side by side")
    return rows


def add_table(report: Report, heading: str, rows: Sequence[Row], path: Path) -> None:
    """Adds a section with a table to a report, and writes its rows as a CSV file."""
    columns = list(rows[0])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    report.heading(heading).table(columns, [[row[column] for column in columns] for row in rows])
