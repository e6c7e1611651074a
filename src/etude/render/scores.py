"""Renders scores as General-MIDI audio and as piano rolls, and writes audio files.

By default audio comes from tinysoundfont and the `TimGM6mb.sf2` soundfont in pretty_midi's package, so no system package is
needed. tinysoundfont was chosen by listening and by measuring: its mean chroma cosine with FluidSynth is 0.93-0.98. FluidSynth
and other soundfonts can be used if they are installed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from symusic import Score

from etude.music.instruments import DRUM_NAMES, INSTRUMENT_NAMES
from etude.music.score import bar_ticks, duration_seconds, num_notes, seconds_at
from etude.music.theory import note_name
from etude.render.synthesizers import CONTROL, NOTE_OFF, NOTE_ON, Event, Performance, Synthesizer, default_soundfont, perform

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PEAK = 0.89  # -1 dB of full scale, since lossy encoders overshoot peaks
MAX_RENDER_SECONDS = 30 * 60  # 0.6 GB of samples
BLACK_KEYS = frozenset({1, 3, 6, 8, 10})
BARS_PER_SYSTEM = 16
MAX_SYSTEMS = 8


def render(
    score: Score, *, sample_rate: int = 44100, soundfont: Path | None = None, synthesizer: Synthesizer = "tinysoundfont"
) -> np.ndarray:
    """Renders `score` to audio with a soundfont.

    Each track gets a channel of its own with its program, controls and pitch bends; drum tracks get the drum kit. The loudest
    sample is scaled to `PEAK`, so nothing clips. After the last note, notes fade out for up to `synthesizers.TAIL_SECONDS`.

    Args:
        sample_rate: samples per second, 8000 to 192000; with fluidsynth at most 96000.
        soundfont: an .sf2 file; None for the General-MIDI soundfont of pretty_midi.
        synthesizer: tinysoundfont, or fluidsynth if that program is installed; it adds reverb and chorus, and rounds times to
            milliseconds.

    Returns:
        float32 [2, samples] in [-1, 1], left and right.

    Raises:
        ValueError: the score has no notes or gives no sound, is longer than `MAX_RENDER_SECONDS`, the sample rate is out of
            range, the soundfont is unreadable or lacks an instrument, or fluidsynth is not installed.
    """
    if not 8000 <= sample_rate <= 192000:
        raise ValueError(f"sample_rate is {sample_rate}, must be 8000 to 192000; 44100 is a CD's")
    seconds = duration_seconds(score)
    if num_notes(score) == 0:
        raise ValueError("score holds no notes, so there is nothing to render; check what made it")
    if seconds > MAX_RENDER_SECONDS:
        raise ValueError(f"score lasts {seconds:.0f} s, must be at most {MAX_RENDER_SECONDS}; trim it first")
    performance = Performance(
        parts=[(track.program, track.is_drum) for track in score.tracks],
        events=_events(score, sample_rate),
        num_samples=round(seconds * sample_rate) + 1,
        sample_rate=sample_rate,
        soundfont=default_soundfont() if soundfont is None else Path(soundfont),
    )
    samples = perform(performance, synthesizer=synthesizer)
    peak = float(np.abs(samples).max())
    if peak == 0:
        raise ValueError("score gives no sound with this soundfont; check its programs and velocities")
    return np.ascontiguousarray(samples.T * np.float32(PEAK / peak))


def _events(score: Score, sample_rate: int) -> list[Event]:
    """Returns all events in order of time, as (sample, kind, channel, key or controller, velocity or value)."""
    columns = []
    for channel, track in enumerate(score.tracks):
        notes = track.notes.numpy()
        onsets, pitches = notes["time"], notes["pitch"]
        columns.append((onsets, NOTE_ON, channel, pitches, notes["velocity"]))
        columns.append((onsets + notes["duration"], NOTE_OFF, channel, pitches, np.zeros_like(onsets)))
        controls = track.controls.numpy()
        columns.append((controls["time"], CONTROL, channel, controls["number"], controls["value"]))
        bends = track.pitch_bends.numpy()
        columns.append((bends["time"], CONTROL, channel, np.full_like(bends["time"], -1), bends["value"] + 8192))
    rows = [
        np.stack(
            [
                np.round(seconds_at(score, ticks) * sample_rate).astype(np.int64),
                np.full(len(ticks), kind),
                np.full(len(ticks), channel),
                first,
                second,
            ],
            axis=1,
        )
        for ticks, kind, channel, first, second in columns
    ]
    # a note lasts at least one sample: if it ended before it starts, it would never stop
    for sounds, ends in zip(rows[::4], rows[1::4], strict=True):
        ends[:, 0] = np.maximum(ends[:, 0], sounds[:, 0] + 1)
    table = np.concatenate(rows).astype(np.int64)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    table[:, 0] = table[:, 0].clip(0, round(duration_seconds(score) * sample_rate) + 1)
    return [tuple(row) for row in table.tolist()]


def write_audio(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    """Writes samples [channels, samples] or [samples] in [-1, 1] as .wav, .flac, .ogg or .mp3, depending on the suffix.

    Raises:
        ValueError: the suffix is another one, or samples are not finite or outside [-1, 1], where they would clip.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in {".wav", ".flac", ".ogg", ".mp3"}:
        raise ValueError(f"path is {path}, its suffix must be .wav, .flac, .ogg or .mp3; give one of these")
    peak = float(np.abs(samples).max(initial=0.0))
    if not peak <= 1:
        raise ValueError(f"samples reach {peak:.3g}, must be within [-1, 1] or they clip; scale them first")
    soundfile.write(path, samples.T, sample_rate)


def piano_roll(score: Score, path: Path, *, title: str = "") -> None:
    """Draws `score` as a piano roll in a PNG file: several lines of bars, with note names, and one colour per track.

    Drums are drawn and named below the pitches. Bars are numbered from 1.

    Raises:
        ValueError: the score holds no notes.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if num_notes(score) == 0:
        raise ValueError("score holds no notes, so there is nothing to draw; check what made it")
    bars = bar_ticks(score)
    num_systems = min(MAX_SYSTEMS, -(-len(bars) // BARS_PER_SYSTEM))
    per_system = -(-len(bars) // num_systems)
    starts = range(0, len(bars), per_system)
    bars = np.append(bars, bars[-1] + _bar_length(score, int(bars[-1])))
    rows = _pitch_rows(score)
    height = min(4.5, max(1.8, 0.075 * (max(rows.values()) - min(rows.values()) + 4)))
    # the object interface, since pyplot has global state and needs a display
    figure = Figure(figsize=(14, height * len(starts) + 0.9), layout="constrained")
    axes = figure.subplots(len(starts), 1, squeeze=False)[:, 0]
    colours = _colours(len(score.tracks))
    for axis, first in zip(axes, starts, strict=True):
        _draw_system(axis, score, bars, first, per_system, rows, colours)
    names = [_track_name(track, number) for number, track in enumerate(score.tracks, start=1)]
    handles = [Patch(facecolor=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=handles, loc="outside upper right", ncols=min(6, len(handles)), frameon=False, fontsize=9)
    if title:
        figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", fontsize=13)
    axes[-1].set_xlabel("bar")
    figure.savefig(path, format="png", dpi=110)


def _bar_length(score: Score, tick: int) -> int:
    """Returns the ticks of a bar in the metre at `tick`."""
    metre = [(mark.numerator, mark.denominator) for mark in score.time_signatures if mark.time <= tick] or [(4, 4)]
    length: int = 4 * score.ticks_per_quarter * metre[-1][0] // metre[-1][1]
    return length


def _colours(count: int) -> list[Any]:
    """Returns `count` colours, each different from its neighbours and distinguishable for most colour-blind readers."""
    base = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#7f7f7f"]  # Okabe & Ito 2008
    return [base[index % len(base)] for index in range(count)]


def _track_name(track: Any, number: int) -> str:
    name = track.name.strip() or ("Drums" if track.is_drum else INSTRUMENT_NAMES[track.program])
    return f"{number} {name[:28]}".replace("$", r"\$")


def _pitch_rows(score: Score) -> dict[tuple[bool, int], int]:
    """Returns the row of each (is drum, key): a pitch is at its number, drums are below the lowest pitch."""
    keys = {(track.is_drum, int(pitch)) for track in score.tracks for pitch in np.unique(track.notes.numpy()["pitch"])}
    pitches = [pitch for is_drum, pitch in keys if not is_drum]
    drums = sorted((pitch for is_drum, pitch in keys if is_drum), reverse=True)
    floor = min(pitches, default=60)
    return {(False, p): p for p in pitches} | {(True, p): floor - 3 - 2 * i for i, p in enumerate(drums)}


def _draw_system(
    axis: "Axes", score: Score, bars: np.ndarray, first: int, count: int, rows: dict[tuple[bool, int], int], colours: list[Any]
) -> None:
    """Draws one line of music, bars `first` to `first + count`; a short last line keeps the scale of the others."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    edges = bars[first : first + count + 1]
    missing = count + 1 - len(edges)
    stop = int(edges[-1]) + missing * int(edges[-1] - edges[0]) // max(1, len(edges) - 1)
    low, high = min(rows.values()) - 1, max(rows.values()) + 1
    pitches = [pitch for is_drum, pitch in rows if not is_drum]
    for pitch in range(min(pitches, default=1) - 1, max(pitches, default=-1) + 2):
        if pitch % 12 in BLACK_KEYS:
            axis.axhspan(pitch - 0.5, pitch + 0.5, color="#f2f2f2", linewidth=0, zorder=0)
        if pitch % 12 == 0:
            axis.axhline(pitch - 0.5, color="#bbbbbb", linewidth=0.6, zorder=1)
    for track, colour in zip(score.tracks, colours, strict=True):
        notes = track.notes.numpy()
        onsets, ends = notes["time"].astype(np.int64), notes["time"].astype(np.int64) + notes["duration"]
        inside = (onsets < edges[-1]) & (ends > edges[0])
        left, right = np.maximum(onsets, edges[0])[inside], np.minimum(ends, edges[-1])[inside]
        middle = np.array([rows[track.is_drum, pitch] for pitch in notes["pitch"][inside].tolist()], dtype=float)
        corners = [[left, right, right, left], [middle - 0.42, middle - 0.42, middle + 0.42, middle + 0.42]]
        faces = np.tile(to_rgba(colour), (len(left), 1))
        faces[:, 3] = 0.55 + 0.45 * notes["velocity"][inside] / 127  # soft notes are paler
        axis.add_collection(
            PolyCollection(
                list(np.array(corners, dtype=float).transpose(2, 1, 0)),
                facecolors=faces,
                edgecolors="white",
                linewidths=0.4,
                zorder=3,
            )
        )
    axis.set_xlim(edges[0], stop)
    axis.set_ylim(low - 0.5, high + 0.5)
    every = max(1, -(-count // 32))
    axis.set_xticks(edges[:-1:every], [str(first + 1 + index) for index in range(0, len(edges) - 1, every)], ha="left")
    for edge in edges:
        axis.axvline(edge, color="#888888", linewidth=0.7, zorder=2)
    _label_rows(axis, rows)
    axis.tick_params(length=0, labelsize=8)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _label_rows(axis: "Axes", rows: dict[tuple[bool, int], int]) -> None:
    """Labels every C and every drum; in a narrow range also every E and G."""
    pitches = [pitch for is_drum, pitch in rows if not is_drum]
    steps = {0, 4, 7} if pitches and max(pitches) - min(pitches) <= 40 else {0}
    named = {
        pitch: note_name(pitch) for pitch in range(min(pitches, default=1), max(pitches, default=0) + 1) if pitch % 12 in steps
    }
    named |= {row: DRUM_NAMES.get(pitch, f"drum {pitch}") for (is_drum, pitch), row in rows.items() if is_drum}
    axis.set_yticks(list(named), list(named.values()))
