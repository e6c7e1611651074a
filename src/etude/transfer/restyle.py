"""Restyles audio files of any length, sample rate and number of channels with a trained model, in constant memory.

Shapes: c channels, n samples, m mel bands, k linear frequency bins, f frames.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from etude.audio.files import (
    AUDIO_SUFFIXES,
    AudioError,
    AudioInfo,
    AudioWriter,
    LevelMeter,
    inspect_audio,
    mono_mix,
    polarities,
    stream_audio,
)
from etude.audio.limiter import PeakMeter, apply_gains, limiting_gains
from etude.audio.loudness import LoudnessMeter
from etude.audio.resampling import Resampler
from etude.report.files import write_atomically
from etude.transfer.requests import OPENING_SECONDS, asked
from etude.transfer.stereo import check_stereo
from etude.transfer.stream import MelVocoder, StreamRestyler, StyleModel, StyleRequest, device_of, restyle_stream
from etude.wording import counted

BLOCK_SAMPLES = 65_536  # samples that are read at once
PEAK = 0.99  # largest true peak of the output, unless the input has a larger sample
SURE = 1.3  # a guess of the source's style is sure if the second style is farther by this factor
LIFT_LU, LIFTS = 8.0, 4  # largest gain that makes up for limiting; measurements to find it
SOFTER_LU = 0.5  # loudness lost to the limiter that is told


def restyle(
    *,
    task: Any,
    vocoder: Any,
    folder: Path,
    input: str | None,
    output: str | None = None,
    style: str | Mapping[str, float] | None = None,
    source: str | None = None,
    reference: str | None = None,
    intensity: float = 1.0,
    stereo: str = "mid_side",
    overwrite: bool = False,
    block_frames: int = 1024,
) -> list[Path]:
    """Restyles an audio file, or all files of a folder; sample rate, channels, length and loudness are kept.

    The model gets the mono mix at its contract's sample rate. The change that it makes to the log mels, times `intensity`, is
    added to those of the mix, and the result is synthesised from the mix's magnitudes and phases; the side signal of stereo audio
    gets the same gains (see `stereo`). Frequencies above the model's band are kept in the proportion 1 - `intensity`. Audio is
    processed in blocks that overlap by the whole context of model and vocoder, so block boundaries leave no trace. The result
    gets the source's loudness; a limiter lowers the moments whose true peaks would then clip, and those alone. Channels in
    antiphase are inverted for the mono mix, not in the result.

    Args:
        task: a trained model, see `StyleModel`.
        vocoder: see `MelVocoder`.
        folder: the run's folder, where the results are written if `output` is None.
        input: an audio file, or a folder whose audio files are all restyled, subfolders included.
        output: a .wav, .flac, .ogg or .mp3 file, or a folder; a folder if `input` is one. None: `<stem>_<style>.wav` in `folder`.
        style: the target style, or weights that add up to 1, such as {rock: 0.5, jazz: 0.5}.
        source: the style of the input; None takes the nearest style that is not a target, and prints it.
        reference: an audio file whose first 30 s represent the target style, for a model that accepts one (task=stargan); `style`
            then defaults to the nearest style.
        intensity: from 0 (the input itself) to 1.
        stereo: "mid_side": of two channels the mid is restyled, and the side keeps its width relative to the mid, see
            `etude.transfer.stereo`. "channels": each channel gets the mix's change and is synthesised alone, as are other numbers
            of channels than two.
        overwrite: whether existing files are replaced.
        block_frames: mel frames per block; memory grows with it.

    Returns:
        The files written. Files of a folder that could not be restyled are listed with reasons in `quarantine.tsv` there.

    Raises:
        ValueError: a style is unknown, an option is out of its range, the vocoder has another contract, or no file could be
            restyled.
        AudioError: a single input file can't be read, or its output can't be written.

    Source: adding the change in the log-mel domain is our own method; see `GriffinLim` for the synthesis.
    """
    if input is None:
        raise ValueError("in is missing: give an audio file or a folder of them, in=song.mp3")
    if not isinstance(block_frames, int) or block_frames < 1:
        raise ValueError(f"block_frames is {block_frames}, must be a whole number of at least 1; 1024 are 16 s at 16 kHz")
    request = asked(task, vocoder, style=style, source=source, reference=reference, intensity=intensity)
    check_stereo(stereo)
    path = Path(input).expanduser()
    where = Path(output).expanduser() if output is not None else None
    jobs, quarantine = _jobs(path, where, folder, "+".join(request.weights)), None
    if path.is_dir():
        quarantine = (where or folder) / "quarantine.tsv"
        if not jobs:
            raise ValueError(f"in={path}: the folder holds no audio files ({', '.join(sorted(AUDIO_SUFFIXES))})")
    done: list[Path] = []
    faults: list[AudioError] = []
    try:
        for i, (file, out) in enumerate(jobs):
            try:
                title = f"{i + 1}/{len(jobs)} {file.name}"
                _restyle_file(file, out, task, vocoder, request, stereo, overwrite, block_frames, title)
                done.append(out)
                print(out, file=sys.stderr)
            except AudioError as fault:
                if quarantine is None:
                    raise
                faults.append(fault)
                print(f"left out: {fault}", file=sys.stderr)
    finally:  # also after Ctrl-C
        if quarantine is not None and faults:
            rows = [("file", "reason"), *((fault.path, f"{fault.problem}; {fault.remedy}") for fault in faults)]
            write_atomically(quarantine, "".join("\t".join(row) + "\n" for row in rows))
    if quarantine is not None:
        left_out = f", {len(faults)} left out, see {quarantine}" if faults else ""
        print(f"restyled {len(done)} of {counted(len(jobs), 'file')}{left_out}", file=sys.stderr)
        if not done:
            raise ValueError(f"in={path}: none of its {counted(len(jobs), 'file')} could be restyled; {quarantine} says why")
    return done


def _jobs(path: Path, output: Path | None, folder: Path, label: str) -> list[tuple[Path, Path]]:
    """Returns pairs of an input file and its output file."""
    if not path.is_dir():
        if output is None or output.is_dir():
            output = (output or folder) / f"{path.stem}_{label}.wav"
        return [(path, output)]
    if output is not None and output.suffix.lower() in AUDIO_SUFFIXES:
        raise ValueError(f"out={output} is a file's name, but in={path} is a folder; give a folder")
    root = output or folder
    if root.resolve() == path.resolve():
        raise ValueError(f"out={root} is the input folder, its results would mix with the sources; give another folder")
    found = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()]
    inside = path.resolve() in root.resolve().parents  # results of an earlier call must not be restyled again
    found = [file for file in found if not (inside and root.resolve() in file.resolve().parents)]
    found = [file for file in found if not file.name.startswith(".")]
    stems = [file.with_suffix("") for file in found]
    names = [file.stem if stems.count(stem) == 1 else file.name for file, stem in zip(found, stems, strict=True)]
    return [(file, root / file.relative_to(path).parent / f"{name}_{label}.wav") for file, name in zip(found, names, strict=True)]


def _restyle_file(
    path: Path,
    out: Path,
    task: StyleModel,
    vocoder: MelVocoder,
    request: StyleRequest,
    stereo: str,
    overwrite: bool,
    block_frames: int,
    title: str,
) -> None:
    """Restyles one file in two passes: into a temporary file, measuring loudness and peaks, then with one gain and limited."""
    info = inspect_audio(path)
    if out.exists() and out.samefile(path):
        raise AudioError(out, "is the input itself", "give another out")
    with (
        AudioWriter(
            out, sample_rate=info.sample_rate, channels=info.channels, subtype=info.subtype, overwrite=overwrite
        ) as writer,
        TemporaryFile(dir=out.parent) as draft,
        _progress(title, info.num_samples / info.sample_rate) as advance,
    ):
        polarity_c = polarities(path)
        if (polarity_c < 0).any():
            inverted = f"{int((polarity_c < 0).sum())} of {info.channels}"
            print(f"note: {path}: channels in antiphase; the model gets the mix with {inverted} inverted", file=sys.stderr)
        if request.source is None and request.intensity > 0:
            request = _with_nearest_source(path, info, task, request, polarity_c)
        levels, peaks = LevelMeter(), PeakMeter(info.sample_rate)
        meter, new_meter = LoudnessMeter(info.sample_rate), LoudnessMeter(info.sample_rate)

        def read() -> Iterator[Tensor]:
            for block in stream_audio(path, block_samples=BLOCK_SAMPLES):
                levels.push(block)
                meter.push(block)
                advance(block.shape[1] / info.sample_rate)
                yield block

        restyler = StreamRestyler(task, vocoder, request, block_frames, polarity_c=polarity_c, stereo=stereo)
        for block in restyle_stream(read(), info.sample_rate, restyler):
            peaks.push(block)
            new_meter.push(block)
            _write_draft(draft, block, out)
        levels.check(path)
        if request.intensity == 0:
            draft.seek(0)
            for block in _read_draft(draft, info.channels):
                writer.write(block)
            return
        _finish(path, writer, draft, peaks, meter.loudness(), new_meter.loudness(), ceiling=max(PEAK, min(levels.peak, 1.0)))


def _finish(
    path: Path, writer: AudioWriter, draft: IO[bytes], peaks: PeakMeter, wanted_lufs: float, draft_lufs: float, *, ceiling: float
) -> None:
    """Writes the draft with one gain, which gives it the wanted loudness, and with its peaks limited.

    What the limiter takes is made up for by a larger gain, within `LIFT_LU`: else one loud second would leave the rest too soft.
    """
    gain_db = wanted_lufs - draft_lufs if np.isfinite(wanted_lufs - draft_lufs) else 0.0
    most_db = gain_db + LIFT_LU

    softer_lu = 0.0
    for _ in range(LIFTS):
        gain, gains_s = _limiting(gain_db, peaks, ceiling)
        if float(gains_s.min()) == 1:
            break
        meter = LoudnessMeter(writer.sample_rate)
        for block in _limited(draft, writer.channels, gain * gains_s, peaks.segment):
            meter.push(block)
        softer_lu = wanted_lufs - meter.loudness()
        if not softer_lu > 0.1 or gain_db >= most_db:
            break
        gain_db = min(gain_db + softer_lu, most_db)
    gain, gains_s = _limiting(gain_db, peaks, ceiling)
    for block in _limited(draft, writer.channels, gain * gains_s, peaks.segment):
        writer.write(block)
    _tell_limited(path, gains_s, softer_lu=softer_lu)


def _limiting(gain_db: float, peaks: PeakMeter, ceiling: float) -> tuple[float, Tensor]:
    """Returns a gain as a factor, and the gains that limit the peaks after it."""
    gain: float = 10 ** (gain_db / 20)
    return gain, limiting_gains(gain * peaks.peaks(), ceiling=ceiling)


def _limited(draft: IO[bytes], channels: int, gains_s: Tensor, segment: int) -> Iterator[Tensor]:
    start = 0
    draft.seek(0)
    for block in _read_draft(draft, channels):
        yield apply_gains(block, gains_s, start=start, segment=segment)
        start += block.shape[1]


def _tell_limited(path: Path, gains_s: Tensor, *, softer_lu: float) -> None:
    """Tells how much the limiter changed, if it did."""
    if float(gains_s.min()) > 0.999:
        return
    share, deepest = 100 * float((gains_s < 0.999).float().mean()), -20 * np.log10(float(gains_s.min()))
    softer = f"; the result is {softer_lu:.1f} LU softer than the source" if softer_lu > SOFTER_LU else ""
    print(f"note: {path}: so that peaks don't clip, {share:.1f} % is limited, by up to {deepest:.1f} dB{softer}", file=sys.stderr)


def _read_draft(draft: IO[bytes], channels: int) -> Iterator[Tensor]:
    while raw := draft.read(4 * channels * BLOCK_SAMPLES):
        yield torch.frombuffer(bytearray(raw), dtype=torch.float32).view(-1, channels).T


def _write_draft(draft: IO[bytes], samples_cn: Tensor, out: Path) -> None:
    try:
        draft.write(samples_cn.T.contiguous().numpy().astype(np.float32, copy=False).tobytes())
    except OSError as error:
        raise AudioError(out, f"could not be written to the end ({error.strerror})", "make room on the disk") from error


def _with_nearest_source(
    path: Path, info: AudioInfo, task: StyleModel, request: StyleRequest, polarity_c: Tensor
) -> StyleRequest:
    """Returns the request with the source style guessed from the beginning of the file; prints the guess."""
    among = [name for name in task.styles if name not in request.weights] or list(task.styles)
    if len(among) == 1:
        source, why = among[0], "the only other style"
    else:
        resampler, blocks, seconds = Resampler(info.sample_rate, task.contract.sample_rate), [], 0.0
        for block in stream_audio(path, block_samples=BLOCK_SAMPLES):
            blocks.append(resampler.push(mono_mix(block, polarity_c)))
            seconds += block.shape[1] / info.sample_rate
            if seconds >= OPENING_SECONDS:
                break
        opening = torch.cat([*blocks, resampler.flush()], 1).to(device_of(task))
        source, why = _nearest(task.style_distances(task.contract.log_mel(opening)[0]), among)
    print(f"{path}: taken as {source} ({why}); set source= if it has another style", file=sys.stderr)
    return replace(request, source=source)


def _nearest(distances: Mapping[str, float], among: Sequence[str]) -> tuple[str, str]:
    """Returns the nearest of `among`, and what speaks for it, with a warning where that is little."""
    first, second = sorted(among, key=lambda name: distances[name])[:2]
    far = f"{distances[first]:.2f} nats a band from it, {distances[second]:.2f} from {second}"
    if distances[second] < SURE * distances[first]:
        return first, f"unsure: {far}"
    return first, far


@contextmanager
def _progress(title: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """Shows a progress bar on stderr; yields a function that advances it by some seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} s"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=seconds)
        yield lambda done: progress.update(bar, advance=done)
