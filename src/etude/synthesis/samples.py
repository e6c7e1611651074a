"""Writes samples of a synthesis model on held-out scores: WAV files, pictures of notes and mels, training curves, a report."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from etude.audio.griffin_lim import GriffinLim
from etude.core.score_protocols import PlaysScores
from etude.metrics.audio.mel_distances import log_mel_l1
from etude.metrics.audio.mel_features import chroma_correlation
from etude.report.media import Sample, few, write_table
from etude.report.reports import Report
from etude.report.roll_plots import roll_above_mels
from etude.report.run_page import add_configuration, begin_report
from etude.report.style_plots import training_curves
from etude.synthesis.sound import write_wave


@few(num_songs=1, seconds=5.0)
def write_performances(
    *, task: PlaysScores, datamodule: Any, folder: Path, num_songs: int = 2, seconds: float = 10.0, num_iters: int = 32
) -> list[Path]:
    """Writes samples/<truth, rebuilt or predicted>_<style>_<i>.wav, and <style>_<i>.png with the notes above the mels.

    truth is the recording by way of its mel, rebuilt what the model makes of the notes with the latents of the recording,
    predicted what it makes of the notes alone; all three become sound by Griffin-Lim. samples/samples.csv lists them with
    measurements, report.html shows them.

    Args:
        task: a trained model.
        datamodule: data with held-out scores and their sound.
        folder: the run's folder; the curves of its metrics.csv are drawn.
        num_songs: maximal number of songs of each style; 0 for none.
        seconds: maximal length of each sample.
        num_iters: iterations of Griffin-Lim.

    Returns:
        The WAV files.
    """
    if num_songs < 0 or not seconds > 0:
        raise ValueError(f"sampling.num_songs is {num_songs}, must be at least 0, and sampling.seconds={seconds} above 0")
    out = folder / "samples"
    out.mkdir(parents=True, exist_ok=True)
    voice = GriffinLim(task.contract, num_iters=num_iters)
    report = begin_report("Synthesis of scores", folder)
    samples: list[Sample] = []
    try:
        _draw_curves(report, folder)
        for style in datamodule.styles:
            split = next(split for split in ("test", "val", "train") if datamodule.num_pieces(split, style))
            for song in range(min(num_songs, datamodule.num_pieces(split, style))):
                report.heading(f"{style} {song}: {datamodule.piece(split, style, song).song}")
                samples += _song(task, datamodule, voice, (split, style, song), seconds, out, report)
    finally:  # also after Ctrl-C
        write_table(out, samples)
        add_configuration(report, folder).write(folder / "report.html")
    return [sample.sound for sample in samples if sample.sound is not None]


def _draw_curves(report: Report, folder: Path) -> None:
    metrics = folder / "metrics.csv"
    curves = training_curves(metrics) if metrics.is_file() else None
    if curves is not None:
        (folder / "curves.png").write_bytes(curves)
        caption = "losses by step; val/mel_l1, the error of the prediction from the notes alone, picks the best checkpoint"
        alt = "Each loss of training and measure of validation over the optimizer steps, a panel each"
        report.heading("Training").image(curves, caption=caption, alt=alt)


def _song(
    task: PlaysScores, datamodule: Any, voice: Callable[..., Tensor], place: tuple[str, str, int], seconds: float, out: Path,
    report: Report,
) -> list[Sample]:  # fmt: skip
    contract, (_, style, song) = task.contract, place
    frame_seconds = contract.hop_length / contract.sample_rate
    frames = round(seconds / frame_seconds)
    roll, truth = datamodule.roll(*place)[..., :frames], datamodule.log_mel(*place)[:, :frames]
    mels = {"truth": truth, "rebuilt": task.reconstruct(roll, truth), "predicted": task.play_roll(roll)}
    picture = out / f"{style}_{song}.png"
    drawn = roll_above_mels(roll[1].numpy(), {name: mel.numpy() for name, mel in mels.items()}, frame_seconds=frame_seconds)
    picture.write_bytes(drawn)
    report.image(drawn, caption=picture.stem, alt=f"Notes of {style} {song}, and below them the mels: {', '.join(mels)}")
    made = []
    for name, mel in mels.items():
        path = out / f"{name}_{style}_{song}.wav"
        write_wave(voice(mel[None]), path, contract.sample_rate, report=report)
        print(path, file=sys.stderr)
        values: dict[str, object] = {"style": style, "song": song}
        if name != "truth":
            values["L1 to the true one, nats"] = round(log_mel_l1(mel, truth), 4)
            values["chroma correlation with it"] = round(chroma_correlation(mel, truth, contract=contract), 4)
        made.append(Sample(path.stem, picture if name == "predicted" else None, path, values=values))
    return made
