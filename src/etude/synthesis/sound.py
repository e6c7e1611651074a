"""Scores to sound with a trained synthesis model and a vocoder."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from symusic import Score
from torch import Tensor

from etude.audio.files import WRITTEN_SUFFIXES
from etude.core.score_protocols import PlaysScores
from etude.music.roll import instrument_name, note_table, piano_roll, played_by
from etude.music.score import read_score
from etude.render.scores import MAX_RENDER_SECONDS, PEAK, write_audio
from etude.report.reports import Report
from etude.report.roll_plots import roll_above_mels

SHOWN_SECONDS = 20.0  # of the picture


def synthesise(
    *, task: PlaysScores, vocoder: Callable[..., Tensor], folder: Path, score: str | None, output: str | None = None,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Plays a score file with a trained model; writes the sound, and a picture of notes and mel to the run's folder.

    Args:
        task: a trained model of task=synthesis.
        vocoder: turns log mels into waveforms, for the task's mel contract.
        folder: the run's folder.
        score: a MIDI, MusicXML, ABC or Humdrum file; of one with several pieces the first.
        output: a .wav, .flac, .ogg or .mp3 file; None: `<stem>.wav` in `folder`.
        overwrite: whether an existing file is replaced.

    Returns:
        The file written.

    Raises:
        ValueError: no score or an unusable one, or an output that can't be written.
    """
    if score is None:
        raise ValueError("score is missing: give a score, score=my.mid")
    path = Path(score).expanduser()
    out = checked_output(output, folder / f"{path.stem}.wav", overwrite=overwrite)
    return play_score(task, vocoder, read_score(path), out, folder=folder)


def checked_output(output: str | None, default: Path, *, overwrite: bool) -> Path:
    """Returns the path of the sound file to write. Raises: ValueError if it can't be written there."""
    out = default if output is None else Path(output).expanduser()
    if out.suffix.lower() not in WRITTEN_SUFFIXES:
        raise ValueError(f"out={out}: the suffix must be one of {', '.join(WRITTEN_SUFFIXES)}; give one of these")
    if out.exists() and not overwrite:
        raise ValueError(f"out={out} exists; give another name, or overwrite=true")
    if not out.parent.is_dir():
        raise ValueError(f"out={out}: there is no folder {out.parent}; make it, or give another")
    return out


def play_score(task: PlaysScores, vocoder: Callable[..., Tensor], score: Score, out: Path, *, folder: Path) -> Path:
    """Writes the sound of a score to `out`, and `<stem>.png`, its notes above the predicted mel, to `folder`.

    Prints what is played by other instruments than the score's.

    Raises: ValueError if the score has no notes, none that the model can play, or is too long.
    """
    table = note_table(score)
    if (seconds := float(table[:, 1].max())) > MAX_RENDER_SECONDS:
        raise ValueError(f"the score lasts {seconds:.0f} s, must be at most {MAX_RENDER_SECONDS}; trim it first")
    notes, changed = played_by(table, task.instruments)
    if changed:
        known = ", ".join(map(instrument_name, task.instruments))
        print(f"note: {'; '.join(changed)}: the model was trained on {known}", file=sys.stderr)
    mel = task.play(table)
    contract = task.contract
    frame_seconds = contract.hop_length / contract.sample_rate
    write_wave(vocoder(mel[None]), out, contract.sample_rate)
    frames = min(mel.shape[1], round(SHOWN_SECONDS / frame_seconds))
    roll = piano_roll(notes, task.instruments, start=0, num_frames=frames, frame_seconds=frame_seconds)
    picture = roll_above_mels(roll[1], {"predicted mel": mel[:, :frames].numpy()}, frame_seconds=frame_seconds)
    (folder / f"{out.stem}.png").write_bytes(picture)
    print(out, file=sys.stderr)
    return out


def write_wave(samples_cn: Tensor, path: Path, sample_rate: int, *, report: Report | None = None) -> None:
    """Writes samples [c, n] with their peak scaled to `PEAK`, and adds them to a report as MP3."""
    samples: Any = samples_cn.detach().cpu().numpy().astype(np.float32)
    samples = samples * (PEAK / max(float(np.abs(samples).max(initial=0.0)), 1e-4))
    write_audio(path, samples, sample_rate)
    if report is not None:
        listen = path.with_suffix(".mp3")
        write_audio(listen, samples, sample_rate)
        report.audio(listen, caption=path.stem).links([(f"samples/{path.name}", path.name)])
        listen.unlink()  # the report contains its data
