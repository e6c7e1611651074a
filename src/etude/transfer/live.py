"""Restyles audio while it is played, from a pipe or a microphone to a pipe or a loudspeaker, with a latency that is told.

Shapes: c channels, n samples.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from etude.audio.live_limiter import LiveLimiter
from etude.core.protocols import Styled
from etude.transfer.live_ends import (
    MOST_CHANNELS,
    Loudspeaker,
    Microphone,
    PipeSink,
    PipeSource,
    Sink,
    Source,
    standard_input,
    standard_output,
)
from etude.transfer.live_stream import Level, LiveRestyler, latency_parts, piece_samples
from etude.transfer.requests import asked
from etude.transfer.stereo import check_stereo
from etude.transfer.stream import restyle_stream
from etude.wording import counted

BLOCK_FRAMES, AHEAD_FRAMES = 2, 4
LATE = 0.05  # share of late blocks above which the program says what to do


class Pace:
    """Counts how long each block takes, and which would have been late in a stream that never waits.

    A block is late if its work, and what is left over of the work of earlier ones, exceeds the time that it lasts.

    Args: block_seconds: how long a block lasts.
    """

    def __init__(self, block_seconds: float) -> None:
        self.block_seconds, self.spent = block_seconds, 0.0
        self.longest = self._behind = self._since = 0.0  # the last: work since the last block
        self.blocks = self.late = 0

    def add(self, seconds: float, blocks: int) -> None:
        """Adds the work for some blocks."""
        self.spent += seconds
        self._behind += seconds
        self._since += seconds
        if not blocks:
            return
        self._behind = max(0.0, self._behind - blocks * self.block_seconds)
        self.blocks += blocks
        self.late += blocks if self._behind > 1e-9 else 0
        self.longest, self._since = max(self.longest, self._since / blocks), 0.0

    def told(self) -> str:
        """Returns what was measured, in a line or two."""
        if not self.blocks:
            return "no block was made"
        each, block = self.spent / self.blocks, self.block_seconds
        text = (
            f"{counted(self.blocks, 'block')} of {1000 * block:.0f} ms: {1000 * each:.1f} ms each, the longest "
            f"{1000 * self.longest:.1f}; {block / max(each, 1e-9):.1f} times real time; {self.late} late"
        )
        if self.late > LATE * self.blocks:
            text += (
                "\nit can't keep up: give a larger live_block=, with vocoder=griffin_lim vocoder.num_iters=2, or a machine that "
                "is less busy"
            )
        return text


def restyle_live(
    *,
    task: Any,
    vocoder: Any,
    input: str | None,
    output: str | None = None,
    style: str | Mapping[str, float] | None = None,
    source: str | None = None,
    reference: str | None = None,
    intensity: float = 1.0,
    stereo: str = "mid_side",
    overwrite: bool = False,
    block_frames: int = 1024,
    live_block: int | None = None,
    live_ahead: int | None = None,
    live_rate: int | None = None,
    live_channels: int | None = None,
) -> Pace:
    """Restyles audio as it comes, until the input ends or Ctrl-C; rate and channels are kept.

    See `LiveRestyler` for what a block sees. The latency, which is told at the start, is that of a block, the frames ahead, the
    rest of the last window, resampling, limiter and reading; processing (told at the end) and a sound card's buffers add to it.
    The result's level follows the input's, both of the last 3 s, and a limiter keeps samples below full scale.

    Args:
        task, vocoder, style, intensity, reference, stereo: see `restyle`.
        input: "-" for standard input, raw PCM (16 bits little-endian, interleaved) or a WAV stream of that; None: the microphone.
        output: "-" for standard output, as the input; None: the loudspeaker.
        source: the style of the input; it can't be guessed from audio that is still to come.
        overwrite, block_frames: must keep their defaults; they are of files.
        live_block: mel frames that are processed at once, None: 2. live_ahead: frames after them that are waited for, None: 4.
        live_rate: samples per second of raw PCM, microphone and loudspeaker, None: 48000. live_channels: None: 1.

    Returns:
        What was measured of the processing time.

    Raises:
        ValueError: an option is of files, unknown or out of its range; the pipe holds no 16-bit PCM; a device is missing.
    """
    _refuse_files(input, output, overwrite=overwrite, block_frames=block_frames)
    sizes = {"live_block": (live_block, 1, 64), "live_ahead": (live_ahead, 1, 1024)}
    sizes |= {"live_rate": (live_rate, 8000, 192_000), "live_channels": (live_channels, 1, MOST_CHANNELS)}
    for name, (value, least, most) in sizes.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most):
            raise ValueError(f"{name} is {value}, must be a whole number within [{least}, {most}]")
    check_stereo(stereo)
    request = asked(
        task, vocoder, style=style, source=_source(task, style, source, reference), reference=reference, intensity=intensity
    )
    restyler = LiveRestyler(
        task, vocoder, request, block_frames=live_block or BLOCK_FRAMES, ahead_frames=live_ahead or AHEAD_FRAMES, stereo=stereo
    )
    origin = _opened_source(input, live_rate, live_channels)
    with contextlib.closing(origin):
        restyler.warm_up(origin.format.channels)
        sink: Sink = PipeSink(standard_output(), origin.format) if output == "-" else Loudspeaker(origin.format)
        with contextlib.closing(sink):
            return _play(origin, sink, restyler)


def _play(origin: Source, sink: Sink, restyler: LiveRestyler) -> Pace:
    from etude.core.stopping import Stopped

    rate = origin.format.sample_rate
    limiter, pace = LiveLimiter(rate), Pace(restyler.block_seconds)
    parts = latency_parts(restyler, limiter, rate) | ({"cushion": sink.cushion / rate} if sink.cushion else {})
    print(_announced(origin, sink, parts), file=sys.stderr)
    ended = "ended"
    try:
        for samples in live_blocks(origin, restyler, limiter, pace):
            sink.write(samples)
    except Stopped as stopped:
        if stopped.name != "Ctrl-C":
            raise
    except BrokenPipeError:
        ended = "ended, since what reads out=- has ended"
    lost = f"; audio was lost {origin.lost} times before it was read" if origin.lost else ""
    gaps = f"; the loudspeaker had {sink.gaps} gaps" if sink.gaps else ""
    limited = f"; {100 * limiter.limited / limiter.segments:.1f} % limited" if limiter.limited else ""
    print(f"{ended}: {pace.told()}{lost}{gaps}{limited}", file=sys.stderr)
    return pace


def live_blocks(origin: Source, restyler: LiveRestyler, limiter: LiveLimiter, pace: Pace) -> Iterator[Tensor]:
    """Yields the restyled audio [c, n] of a source, as soon as it is complete, and tells `pace` how long it took."""
    count = piece_samples(origin.format.sample_rate)
    resumed, made, level = 0.0, 0, Level()

    def measured() -> None:
        nonlocal resumed, made
        now = time.perf_counter()
        pace.add(now - resumed, restyler.blocks - made)
        resumed, made = now, restyler.blocks

    def pieces() -> Iterator[Tensor]:
        nonlocal resumed
        while (piece := origin.read(count)) is not None:
            resumed = time.perf_counter()
            yield piece
            measured()
        resumed = time.perf_counter()

    for samples in restyle_stream(pieces(), origin.format.sample_rate, restyler, prompt=True):
        found = limiter.push(level.push(samples, restyler.level_gain))
        measured()
        if found.shape[1]:
            yield found
        resumed = time.perf_counter()
    yield limiter.flush()


def _announced(origin: Source, sink: Sink, parts: Mapping[str, float]) -> str:
    form = origin.format
    told = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in parts.items())
    return (
        f"restyling {origin.name} to {sink.name}, {counted(form.channels, 'channel')} at {form.sample_rate} Hz; Ctrl-C ends it\n"
        f"latency {1000 * sum(parts.values()):.0f} ms ({told}), and processing and the sound card's buffers"
    )


def _opened_source(input: str | None, rate: int | None, channels: int | None) -> Source:
    if input == "-":
        return PipeSource(standard_input(), sample_rate=rate, channels=channels)
    return Microphone(sample_rate=rate, channels=channels)


def _refuse_files(input: str | None, output: str | None, *, overwrite: bool, block_frames: int) -> None:
    """Raises a ValueError for what is of files."""
    for name, value in (("in", input), ("out", output)):
        if value not in (None, "-"):
            device = "microphone" if name == "in" else "loudspeaker"
            kind = "a folder" if Path(value).is_dir() else "a file"
            raise ValueError(f"{name}={value} is {kind}; with live=true give {name}=- for a pipe, or nothing for the {device}")
    if overwrite:
        raise ValueError("overwrite=true does nothing with live=true, which writes no files; leave it out")
    if block_frames != 1024:
        raise ValueError(f"block_frames={block_frames} does nothing with live=true; give live_block=, or leave it out")


def _source(task: Any, style: str | Mapping[str, float] | None, source: str | None, reference: str | None) -> str | None:
    """Returns the style of the input: the one given, or the only one that is left."""
    styles = task.styles if isinstance(task, Styled) else ()
    targets = [style] if isinstance(style, str) else list(style or {})
    others = [name for name in styles if name not in targets]
    if source is not None or not styles or not (targets or reference):
        return source  # what is missing otherwise is told by `asked`
    if len(others) != 1:
        told = ", ".join(others or styles)
        raise ValueError(f"source is missing: what is still to come can't be listened to for a guess; give one of {told}")
    return str(others[0])
