"""Writes samples of a style-transfer model on held-out audio: WAV files, pictures of mels, training curves, a report."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from etude.audio.griffin_lim import GriffinLim
from etude.core.protocols import Translates
from etude.metrics.audio.mel_distances import log_mel_l1
from etude.metrics.audio.mel_features import chroma_correlation
from etude.render.scores import PEAK, write_audio
from etude.report.media import Sample, few, write_table
from etude.report.reports import Report
from etude.report.run_page import add_configuration, begin_report, standing_still
from etude.report.style_plots import mel_panels, training_curves


@few(num_songs=1, seconds=5.0)
def write_transfers(
    *, task: Translates, datamodule: Any, folder: Path, num_songs: int = 2, seconds: float = 10.0, num_iters: int = 8
) -> list[Path]:
    """Writes samples/real_<style>_<i>.wav, fake_<to>_from_<from>_<i>.wav and .png for every direction.

    samples/samples.csv lists them with measurements, report.html shows them.

    Args:
        task: a trained model.
        datamodule: data whose held-out audio is restyled; if its songs are paired, the true rendering is shown, too.
        folder: the run's folder; the curves of its metrics.csv are drawn.
        num_songs: maximal number of songs of each style; 0 for none.
        seconds: maximal length of each sample.
        num_iters: iterations of Griffin-Lim, which starts from the source's phases.

    Returns:
        The WAV files.
    """
    if num_songs < 0 or not seconds > 0:
        raise ValueError(f"sampling.num_songs is {num_songs}, must be at least 0, and sampling.seconds={seconds} above 0")
    contract, out = task.contract, folder / "samples"
    out.mkdir(parents=True, exist_ok=True)
    vocoder = GriffinLim(contract, num_iters=num_iters)
    report = begin_report(f"Style transfer between {', '.join(task.styles)}", folder)
    samples: list[Sample] = []
    try:
        metrics = folder / "metrics.csv"
        curves = training_curves(metrics) if metrics.is_file() else None
        if curves is not None:
            (folder / "curves.png").write_bytes(curves)
            report.heading("Training").image(
                curves,
                caption="losses by step; val/frechet picks the best checkpoint",
                alt="Each loss of training and measure of validation over the optimizer steps, a panel each",
            )
            if still := standing_still(metrics, monitor="val/frechet", mode="min"):
                report.text(still)
        for source in task.styles:
            split = _split(datamodule, source)
            for song in range(min(num_songs, datamodule.num_pieces(split, source))):
                report.heading(f"{source} {song}: {datamodule.piece(split, source, song).song}")
                samples += _song(task, datamodule, vocoder, source, split, song, seconds, out, report)
    finally:  # also after Ctrl-C
        write_table(out, samples)
        add_configuration(report, folder).write(folder / "report.html")
    return [sample.sound for sample in samples if sample.sound is not None]


def _split(datamodule: Any, style: str) -> str:
    """Returns the first of test, val and train that has audio of a style."""
    return next(split for split in ("test", "val", "train") if datamodule.num_pieces(split, style))


def _song(
    task: Translates, datamodule: Any, vocoder: GriffinLim, source: str, split: str, song: int, seconds: float,
    out: Path, report: Report,
) -> list[Sample]:  # fmt: skip
    contract = task.contract
    frames = round(seconds * contract.sample_rate / contract.hop_length)
    samples = datamodule.samples(split, source, song)[: frames * contract.hop_length]
    spectrum, mel = contract.spectrum(samples[None]), contract.log_mel(samples[None])
    real = _written(samples[None], out / f"real_{source}_{song}.wav", contract.sample_rate, report)
    made = [Sample(real.stem, sound=real, values={"from": source, "song": song})]
    for target in task.styles:
        if target == source:
            continue
        fake = task.translate(mel, source=source, target=target).cpu()
        path = out / f"fake_{target}_from_{source}_{song}.wav"
        _written(vocoder(fake, source=spectrum), path, contract.sample_rate, report)
        panels = {f"{source}, the source": mel[0], f"{target}, generated": fake[0]}
        values: dict[str, object] = {"from": source, "to": target, "song": song}
        values["chroma correlation with the source"] = round(chroma_correlation(mel[0], fake[0], contract=contract), 4)
        if datamodule.paired and split != "train":
            true = panels[f"{target}, true"] = datamodule.log_mel(split, target, song)[:, : mel.shape[-1]]
            values["L1 to the true one, nats"] = round(log_mel_l1(fake[0], true), 4)
        picture = mel_panels(panels, frame_seconds=contract.hop_length / contract.sample_rate)
        path.with_suffix(".png").write_bytes(picture)
        report.image(picture, caption=path.stem, alt=f"Mels of {source} {song}: {', '.join(panels)}")
        made.append(Sample(path.stem, path.with_suffix(".png"), path, values=values))
    return made


def _written(samples_cn: Tensor, path: Path, sample_rate: int, report: Report) -> Path:
    """Writes a WAV file with its peak scaled to `PEAK`, and adds it to the report as MP3."""
    samples = samples_cn.numpy().astype(np.float32)
    samples = samples * (PEAK / max(float(np.abs(samples).max()), 1e-4))
    write_audio(path, samples, sample_rate)
    listen = path.with_suffix(".mp3")
    write_audio(listen, samples, sample_rate)
    report.audio(listen, caption=path.stem).links([(f"samples/{path.name}", path.name)])
    listen.unlink()  # the report contains its data
    print(path, file=sys.stderr)
    return path
