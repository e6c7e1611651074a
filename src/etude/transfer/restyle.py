"""Restyles sound files of any length, rate and channel count with a trained style task, in constant memory.

Shapes: c channels, n samples, m mel bands, k linear frequency bins, f frames.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
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
    read_audio,
    stream_audio,
)
from etude.audio.loudness import LoudnessMeter
from etude.audio.resampling import Resampler
from etude.core.protocols import FollowsClips
from etude.report.files import write_atomically
from etude.transfer.stream import Change, MelVocoder, StyleTask, Wish, device_of, restyled

BLOCK_SAMPLES = 65_536  # read at once
OPENING_SECONDS = 30  # of a file whose style has to be guessed
PEAK = 0.99  # what the output may reach, unless the input itself stands higher


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
    overwrite: bool = False,
    block_frames: int = 1024,
) -> list[Path]:
    """Writes a file, or every file of a folder, in another style; rate, channels, length and loudness stay.

    The model hears the mono mix at its contract's rate. What it changes of that mel, times `intensity`, is added to every
    channel's own mel, and each channel is built again from its own magnitudes and phases. What the source has above the
    model's band is kept in the proportion 1 - `intensity`. The sound passes in blocks that overlap by the model's and the
    vocoder's whole context, so the blocks' borders leave no trace.

    Args:
        task: a trained style task, see `StyleTask`.
        vocoder: see `MelVocoder`.
        folder: the run's folder, where the results go without `output`.
        input: an audio file, or a folder whose audio files are all taken, subfolders too.
        output: .wav, .flac, .ogg or .mp3, or a folder; a folder where `input` is one. None: `<stem>_<style>.wav` in `folder`.
        style: the wanted style, or weights that add up to 1, as {rock: 0.5, jazz: 0.5}.
        source: the style of the input; None takes the nearest among the styles not asked for, and tells.
        reference: an audio file that stands for the style, its first 30 s, for a model that takes one (task=stargan); `style`
            then defaults to its nearest style.
        intensity: from 0, the input itself, to 1.
        overwrite: whether files that exist are replaced.
        block_frames: mel frames at once; memory grows with it.

    Returns:
        The files written. Files of a folder that can't be restyled are listed in its `quarantine.tsv`, with reasons.

    Raises:
        ValueError: an unknown style, an option out of its range, a vocoder of another contract, or no file that worked.
        AudioError: the one file that was given can't be read or its output not written.

    Source: the residual in the log-mel domain is this project's; see `GriffinLim` for the way back to samples.
    """
    if input is None:
        raise ValueError("in is missing: give an audio file or a folder of them, in=song.mp3")
    if not isinstance(block_frames, int) or block_frames < 1:
        raise ValueError(f"block_frames is {block_frames}, must be a whole number of at least 1; 1024 are 16 s at 16 kHz")
    if not isinstance(intensity, int | float):
        raise ValueError(f"intensity is {intensity}, must be a number within [0, 1]")
    if not isinstance(task, StyleTask):
        raise ValueError(f"ckpt holds a {type(task).__name__}, which changes no styles; give one of task=style_transfer")
    if difference := task.contract.difference(vocoder.contract):
        raise ValueError(f"the vocoder was made for another mel contract ({difference}); choose vocoder=griffin_lim")
    clip = None if reference is None else _clip(Path(reference).expanduser(), task)
    if clip is not None and not style:
        style = task.nearest_style(clip, among=task.styles)
    wish = _wish(task.styles, style, source, intensity, clip)
    path = Path(input).expanduser()
    where = Path(output).expanduser() if output is not None else None
    jobs, quarantine = _jobs(path, where, folder, "+".join(wish.weights)), None
    if path.is_dir():
        quarantine = (where or folder) / "quarantine.tsv"
        if not jobs:
            raise ValueError(f"in={path}: the folder holds no audio files ({', '.join(sorted(AUDIO_SUFFIXES))})")
    done: list[Path] = []
    faults: list[AudioError] = []
    try:
        for i, (file, out) in enumerate(jobs):
            try:
                _restyle_file(file, out, task, vocoder, wish, overwrite, block_frames, f"{i + 1}/{len(jobs)} {file.name}")
                done.append(out)
                print(out, file=sys.stderr)
            except AudioError as fault:
                if quarantine is None:
                    raise
                faults.append(fault)
                print(f"left out: {fault}", file=sys.stderr)
    finally:  # Ctrl-C keeps what is done
        if quarantine is not None and faults:
            rows = [("file", "reason"), *((fault.path, f"{fault.problem}; {fault.remedy}") for fault in faults)]
            write_atomically(quarantine, "".join("\t".join(row) + "\n" for row in rows))
    if quarantine is not None:
        told = f", {len(faults)} left out, see {quarantine}" if faults else ""
        print(f"restyled {len(done)} of {len(jobs)} files{told}", file=sys.stderr)
        if not done:
            raise ValueError(f"in={path}: none of its {len(jobs)} files could be restyled; {quarantine} says why")
    return done


def _wish(
    styles: tuple[str, ...], style: str | Mapping[str, float] | None, source: str | None, intensity: float, clip: Tensor | None
) -> Wish:
    known = f"the model knows {', '.join(styles)}"
    if not style:
        raise ValueError(f"style is missing; {known}; give style={styles[-1]}")
    if not isinstance(style, str | Mapping):
        raise ValueError(
            f"style={style} is no style; {known}; give one, or a blend with its weights: 'style={{rock:0.5,jazz:0.5}}'"
        )
    if isinstance(style, Mapping) and not all(isinstance(share, int | float) for share in style.values()):
        raise ValueError(f"style={dict(style)}: the weights must be numbers, as {{rock:0.5,jazz:0.5}}")
    weights = {style: 1.0} if isinstance(style, str) else {str(name): float(share) for name, share in style.items()}
    for name in [*weights, *([source] if source is not None else [])]:
        if name not in styles:
            hint = "; the shell takes a blend apart without quotes: 'style={rock:0.5,jazz:0.5}'" if ":" in name else ""
            raise ValueError(f"{'style' if name in weights else 'source'}={name} is unknown; {known}{hint}")
    if any(not share >= 0 for share in weights.values()) or abs(sum(weights.values()) - 1) > 1e-6:
        raise ValueError(f"style={weights}: the weights must be at least 0 and add up to 1, as {{rock:0.5,jazz:0.5}}")
    weights = {name: share for name, share in weights.items() if share > 0}
    if list(weights) == [source] and clip is None:
        raise ValueError(f"style={source} is the source's own; {known}; give another")
    if not 0 <= intensity <= 1:
        raise ValueError(f"intensity is {intensity}, must be within [0, 1]; 0 gives the input back")
    return Wish(weights=weights, source=source, intensity=float(intensity), reference=clip)


def _jobs(path: Path, output: Path | None, folder: Path, label: str) -> list[tuple[Path, Path]]:
    """Pairs of a file and where its result goes."""
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
    inside = path.resolve() in root.resolve().parents  # results of an earlier call are no sources
    found = [file for file in found if not (inside and root.resolve() in file.resolve().parents)]
    found = [file for file in found if not file.name.startswith(".")]
    stems = [file.with_suffix("") for file in found]
    names = [file.stem if stems.count(stem) == 1 else file.name for file, stem in zip(found, stems, strict=True)]
    return [(file, root / file.relative_to(path).parent / f"{name}_{label}.wav") for file, name in zip(found, names, strict=True)]


def _restyle_file(
    path: Path, out: Path, task: StyleTask, vocoder: MelVocoder, wish: Wish, overwrite: bool, block_frames: int, title: str
) -> None:
    """Two passes: the new sound into a nameless file while its loudness is measured, then one gain into `out`."""
    info = inspect_audio(path)
    if out.exists() and out.samefile(path):
        raise AudioError(out, "is the input itself", "give another out")
    with (
        AudioWriter(
            out, sample_rate=info.sample_rate, channels=info.channels, subtype=info.subtype, overwrite=overwrite
        ) as writer,
        TemporaryFile(dir=out.parent) as draft,
        _progress(title, info.num_samples / info.sample_rate) as tell,
    ):
        if wish.source is None and wish.intensity > 0:
            wish = _with_nearest_source(path, info, task, wish)
        levels, new_levels = LevelMeter(), LevelMeter()
        meter, new_meter = LoudnessMeter(info.sample_rate), LoudnessMeter(info.sample_rate)

        def read() -> Iterator[Tensor]:
            for block in stream_audio(path, block_samples=BLOCK_SAMPLES):
                levels.push(block)
                meter.push(block)
                tell(block.shape[1] / info.sample_rate)
                yield block

        change = Change(task, vocoder, wish, block_frames)
        for block in restyled(read(), info.sample_rate, change):
            new_levels.push(block)
            new_meter.push(block)
            _spool(draft, block, out)
        levels.check(path)
        gain = 1.0
        if wish.intensity > 0:
            gain = _gain(path, meter.loudness() - new_meter.loudness(), new_levels.peak, max(PEAK, min(levels.peak, 1.0)))
        draft.seek(0)
        while raw := draft.read(4 * info.channels * BLOCK_SAMPLES):
            writer.write(gain * torch.frombuffer(bytearray(raw), dtype=torch.float32).unflatten(0, (-1, info.channels)).T)


def _spool(draft: IO[bytes], samples_cn: Tensor, out: Path) -> None:
    try:
        draft.write(samples_cn.T.contiguous().numpy().astype(np.float32, copy=False).tobytes())
    except OSError as error:
        raise AudioError(out, f"can't be written on ({error.strerror})", "make room on the disk") from error


def _gain(path: Path, difference_lu: float, peak: float, ceiling: float) -> float:
    """What brings the result to the source's loudness without passing the ceiling."""
    wanted = 10 ** (difference_lu / 20) if np.isfinite(difference_lu) else 1.0
    gain = min(wanted, ceiling / max(peak, 1e-9))
    if gain < wanted * 0.999:
        short = 20 * np.log10(wanted / gain)
        print(f"note: {path}: stays {short:.1f} dB softer than the source, or its peaks would clip", file=sys.stderr)
    return gain


def _clip(path: Path, task: Any) -> Tensor:
    """The mels of a reference clip's opening."""
    if not isinstance(task, FollowsClips) or task.encoder is None:
        raise ValueError(f"reference={path}: this model knows styles by name alone; train one with task=stargan to follow a clip")
    samples, _ = read_audio(path, sample_rate=task.contract.sample_rate, mono=True)
    opening = samples[:, : OPENING_SECONDS * task.contract.sample_rate]
    return task.contract.log_mel(opening.to(device_of(task)))[0]


def _with_nearest_source(path: Path, info: AudioInfo, task: StyleTask, wish: Wish) -> Wish:
    """Guesses the source's style from the file's opening, and tells."""
    among = [name for name in task.styles if name not in wish.weights] or list(task.styles)
    if len(among) == 1:
        source = among[0]
    else:
        resampler, blocks, seconds = Resampler(info.sample_rate, task.contract.sample_rate), [], 0.0
        for block in stream_audio(path, block_samples=BLOCK_SAMPLES):
            blocks.append(resampler.push(block.mean(0, keepdim=True)))
            seconds += block.shape[1] / info.sample_rate
            if seconds >= OPENING_SECONDS:
                break
        opening = torch.cat([*blocks, resampler.flush()], 1).to(device_of(task))
        source = task.nearest_style(task.contract.log_mel(opening)[0], among=among)
    print(f"{path}: taken as {source}; source= says otherwise", file=sys.stderr)
    return replace(wish, source=source)


@contextmanager
def _progress(title: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """A bar on stderr; gives a function that takes the seconds just done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} s"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=seconds)
        yield lambda done: progress.update(bar, advance=done)
