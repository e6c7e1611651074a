"""Writes a sample: MIDI, audio and a piano roll, its section of the report, and its row of the table."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from symusic import Score

from etude.generation.forms import plan_values
from etude.generation.heard import Portion, heard_values
from etude.generation.ranking import Kept, Ranking, shown
from etude.generation.requests import COMPUTED, bars_begun, property_of
from etude.metrics.scores.tables import piece_metrics
from etude.music.score import num_notes
from etude.music.theory import estimate_key
from etude.render.scores import piano_roll, write_audio
from etude.report.media import Sample
from etude.report.reports import Report
from etude.wording import counted


def write_sample(score: Score, path: Path, report: Report, play: Callable[[Score], np.ndarray] | None) -> Path:
    """Writes a sample to `path` and beside it, adds it to the report, and returns the path; play: renders it, or None."""
    score.dump_midi(path)
    if num_notes(score) == 0:  # of a model that has learnt next to nothing yet
        report.heading(f"{path.stem}: no notes")
        report.text("The model wrote rests and ends only; train it longer, or raise the temperature.")
        print(f"{path}: no notes", file=sys.stderr)
        return path
    title = f"{path.stem}: {counted(bars_begun(score), 'bar')}, {counted(num_notes(score), 'note')}, {estimate_key(score)}"
    piano_roll(score, path.with_suffix(".png"), title=title)
    report.heading(title)
    if play is not None:
        samples = play(score)
        write_audio(path.with_suffix(".wav"), samples, 44_100)
        listen = path.with_suffix(".mp3")
        write_audio(listen, samples, 44_100)
        report.audio(listen)
        listen.unlink()  # it lives in the report
    report.image(path.with_suffix(".png"), alt=f"Piano roll of sample {title}")
    files = [path] if play is None else [path, path.with_suffix(".wav")]
    report.links([(f"samples/{file.name}", file.name) for file in files])
    print(path, file=sys.stderr)
    return path


def described(
    kept: Kept, path: Path, asked: Mapping[str, object], ranked: Ranking | None, piece: Portion | None = None
) -> Sample:
    """Returns the row of a sample in the table: its files, what was asked and came out, its rank, and its metrics.

    piece: what was written of it, to tell what it has of what was asked of the notes.
    """
    score = kept.score
    files = {
        kind: file if (file := path.with_suffix(suffix)).is_file() else None
        for kind, suffix in (("picture", ".png"), ("sound", ".wav"), ("score", ".mid"))
    }
    values: dict[str, object] = {"notes": num_notes(score)}
    for label in (*asked, *(label for label in ("num_bars", "key", "tempo_bpm") if label not in asked)):
        if label in asked:
            values[f"asked {label}"] = str(asked[label])
        if label in COMPUTED and num_notes(score):
            values[f"got {label}"] = property_of(label, score)
    if piece is not None:
        values |= heard_values(asked, piece)
    values |= plan_values(asked, score)
    if ranked is not None:
        values |= {"candidate kept": kept.place, f"kept {ranked.metric}": kept.value, "of the others": shown(kept.others)}
    metrics = piece_metrics(score) if num_notes(score) else {}
    values |= {name: round(value, 4) for name, value in metrics.items() if value == value}  # NaN: not defined for this piece
    return Sample(path.stem, **files, values=values)
