"""Synthesises timed MIDI events with tinysoundfont, a Python package, or FluidSynth, a program of the system.

Both play the sounds of a soundfont. FluidSynth adds the reverb and chorus that the soundfont and the score ask for;
tinysoundfont adds none.
"""

import functools
import importlib.metadata
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from tinysoundfont import Synth

Synthesizer = Literal["tinysoundfont", "fluidsynth"]
SYNTHESIZERS: tuple[str, ...] = get_args(Synthesizer)
TAIL_SECONDS = 4.0  # maximal duration of the fade-out after the last note
TAIL_SILENCE = 1e-4  # -80 dB; the fade-out ends when it is softer
NUM_VOICES = 512
NOTE_OFF, CONTROL, NOTE_ON = range(3)  # the order of events at the same sample, so that a repeated note sounds
Event = tuple[int, int, int, int, int]  # sample, kind, part, key or controller (-1: pitch bend), velocity or value
DRUM_CHANNEL = 9  # Source: General MIDI 1, counted from 0
PITCHED_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]
FLUIDSYNTH_RATES = (8000, 96000)
TICKS_PER_SECOND = 1000  # FluidSynth's player counts milliseconds
ALL_NOTES_OFF, SUSTAIN = 123, 64  # controllers


@dataclass(frozen=True)
class Performance:
    """The input of a synthesizer.

    parts: (General-MIDI program, whether it is the drum kit) of each part; each part has a channel of its own.
    events: in order of time.
    num_samples: number of samples until the last note ends.
    sample_rate: samples per second.
    soundfont: an .sf2 file.
    """

    parts: Sequence[tuple[int, bool]]
    events: Sequence[Event]
    num_samples: int
    sample_rate: int
    soundfont: Path


def default_soundfont() -> Path:
    """Returns the path of the General-MIDI soundfont in pretty_midi's package, without importing the package."""
    spec = find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise ValueError("soundfont is None and pretty_midi, which carries one, is not installed; give an .sf2 file")
    return Path(spec.origin).parent / "TimGM6mb.sf2"


def check_synthesizer(synthesizer: str, soundfont: Path | None = None) -> None:
    """Raises a ValueError if the synthesizer is unknown or not installed, or the soundfont is missing."""
    synthesizer_version(synthesizer)
    if soundfont is not None and not soundfont.is_file():
        raise _unreadable(soundfont)


def synthesizer_version(synthesizer: str) -> str:
    """Returns the installed version, such as '2.3.1'.

    Raises:
        ValueError: the synthesizer is not one of `SYNTHESIZERS`, or not installed.
    """
    if synthesizer not in SYNTHESIZERS:
        raise ValueError(f"synthesizer={synthesizer} is not one of {', '.join(SYNTHESIZERS)}; give one of these")
    if synthesizer == "tinysoundfont":
        return importlib.metadata.version("tinysoundfont")
    return _program_version(_fluidsynth())


def perform(performance: Performance, *, synthesizer: str) -> np.ndarray:
    """Returns the audio of `performance`, with a fade-out of at most `TAIL_SECONDS`, not normalised: float32 [samples, 2].

    Raises:
        ValueError: the synthesizer is unknown or not installed, the soundfont can't be read or lacks a program, or FluidSynth
            does not support the sample rate.
    """
    check_synthesizer(synthesizer)
    return _perform_tinysoundfont(performance) if synthesizer == "tinysoundfont" else _perform_fluidsynth(performance)


def _unreadable(soundfont: Path) -> ValueError:
    return ValueError(f"soundfont is {soundfont}, which can't be read; give an .sf2 file")


def _missing_program(soundfont: Path, program: int) -> ValueError:
    return ValueError(f"soundfont {soundfont} lacks program {program}; give a General-MIDI one")


# --- tinysoundfont ---


def _perform_tinysoundfont(performance: Performance) -> np.ndarray:
    synth = _synth(performance)
    samples = np.zeros((performance.num_samples, 2), dtype=np.float32)
    buffer = samples.data.cast("B")  # the synthesizer writes into the array itself
    frame_bytes, position = samples.strides[0], 0
    for at, kind, part, first, second in performance.events:
        if at > position:
            synth.generate_simple(at - position, buffer[position * frame_bytes : at * frame_bytes])
            position = at
        _play(synth, kind, part, first, second)
    if position < len(samples):
        synth.generate_simple(len(samples) - position, buffer[position * frame_bytes :])
    return np.concatenate([samples, *_tail(synth, performance.sample_rate)])


def _synth(performance: Performance) -> "Synth":
    from tinysoundfont import Synth

    synth = Synth(samplerate=performance.sample_rate)
    try:
        sound = synth.sfload(str(performance.soundfont), max_voices=NUM_VOICES)
    except RuntimeError as error:
        raise _unreadable(performance.soundfont) from error
    for part, (program, is_drum) in enumerate(performance.parts):
        try:
            synth.program_select(part, sound, 0, 0 if is_drum else program, is_drum)
        except RuntimeError as error:
            raise _missing_program(performance.soundfont, program) from error
    return synth


def _play(synth: "Synth", kind: int, part: int, first: int, second: int) -> None:
    if kind == NOTE_ON:
        synth.noteon(part, first, max(1, second))
    elif kind == NOTE_OFF:
        synth.noteoff(part, first)
    elif first < 0:
        synth.pitchbend(part, min(16383, max(0, second)))
    elif second >= 0:
        synth.control_change(part, first, second)


def _tail(synth: "Synth", sample_rate: int) -> list[np.ndarray]:
    """Returns the fade-out after the last event, in blocks of a quarter of a second, until it is silent."""
    synth.notes_off()
    blocks: list[np.ndarray] = []
    for _ in range(round(TAIL_SECONDS * 4)):
        block = np.zeros((sample_rate // 4, 2), dtype=np.float32)
        synth.generate_simple(len(block), block.data.cast("B"))
        blocks.append(block)
        if np.abs(block).max() < TAIL_SILENCE:
            break
    return blocks


# --- FluidSynth ---


def _fluidsynth() -> str:
    """Returns the path of the program fluidsynth."""
    program = shutil.which("fluidsynth")
    if program is None:
        raise ValueError(
            "synthesizer=fluidsynth needs the program fluidsynth, which is not on the PATH; install it (apt-get install "
            "fluidsynth, brew install fluid-synth) or give synthesizer=tinysoundfont"
        )
    return program


@functools.cache
def _program_version(program: str) -> str:
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+\.\d+[\w.]*", text)
    return found.group() if found else text.strip()


def _perform_fluidsynth(performance: Performance) -> np.ndarray:
    low, high = FLUIDSYNTH_RATES
    if not low <= performance.sample_rate <= high:
        raise ValueError(
            f"sample_rate is {performance.sample_rate}, with synthesizer=fluidsynth it must be {low} to {high}; give one of "
            "these, or synthesizer=tinysoundfont"
        )
    first, *others = _channel_groups(performance.parts)
    samples = _perform_group(performance, first)
    for channels in others:
        samples += _perform_group(performance, channels)
    silence = TAIL_SILENCE * float(np.abs(samples).max())  # relative to the peak, since FluidSynth's output is soft
    tail = samples[performance.num_samples :]
    return samples[: performance.num_samples + _tail_length(tail, performance.sample_rate // 4, silence)]


def _channel_groups(parts: Sequence[tuple[int, bool]]) -> list[dict[int, int]]:
    """Splits the parts into groups of at most 15 pitched ones and one of drums, as a MIDI file has; part -> MIDI channel."""
    drums = [part for part, (_, is_drum) in enumerate(parts) if is_drum]
    pitched = [part for part, (_, is_drum) in enumerate(parts) if not is_drum]
    size = len(PITCHED_CHANNELS)
    groups: list[dict[int, int]] = []
    for number in range(max(len(drums), -(-len(pitched) // size))):
        groups.append(dict(zip(pitched[number * size : (number + 1) * size], PITCHED_CHANNELS, strict=False)))
        groups[-1] |= {part: DRUM_CHANNEL for part in drums[number : number + 1]}
    return groups


def _perform_group(performance: Performance, channels: dict[int, int]) -> np.ndarray:
    """Returns the audio of a group of parts with the whole fade-out, float32 [num_samples + tail, 2]."""
    import soundfile

    program, soundfont = _fluidsynth(), performance.soundfont.absolute()
    length = performance.num_samples + round(TAIL_SECONDS * performance.sample_rate)
    options = {
        "synth.polyphony": NUM_VOICES, "synth.dynamic-sample-loading": 1, "synth.lock-memory": 0,
        "synth.default-soundfont": "",  # otherwise it would replace one that can't be read
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        midi, wave, commands = (Path(folder, name) for name in ("score.mid", "sound.wav", "commands"))
        midi.write_bytes(_midi_file(performance, channels))
        commands.touch()  # an empty file, so that the user's own configuration is not read
        settings = [text for name, value in options.items() for text in ("-o", f"{name}={value}")]
        done = subprocess.run(
            [program, "-ni", "-q", "-f", str(commands), *settings, "-r", str(performance.sample_rate), "-T", "wav",
             "-O", "float", "-F", str(wave), str(soundfont), str(midi)],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        _check(done, performance, channels)
        if not wave.is_file():
            raise ValueError(f"fluidsynth wrote no sound ({_last_line(done)}); give synthesizer=tinysoundfont")
        samples = soundfile.read(wave, dtype="float32", always_2d=True)[0][:length]
    return np.concatenate([samples, np.zeros((length - len(samples), 2), np.float32)])


def _check(done: "subprocess.CompletedProcess[str]", performance: Performance, channels: dict[int, int]) -> None:
    """Raises a ValueError if FluidSynth could not read the soundfont or replaced a missing sound, which it only prints."""
    if "Failed to load" in done.stderr or "not a SoundFont" in done.stderr:
        raise _unreadable(performance.soundfont)
    missing = re.findall(r"(?:Instrument not|No preset) found on channel (\d+) \[bank=\d+ prog=(\d+)\]", done.stderr)
    for part, channel in channels.items():
        program, is_drum = performance.parts[part]
        if (str(channel), str(0 if is_drum else program)) in missing:
            raise _missing_program(performance.soundfont, program)
    if done.returncode:
        raise ValueError(f"fluidsynth ended with {done.returncode} ({_last_line(done)}); give synthesizer=tinysoundfont")


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    return (done.stderr.strip().splitlines() or ["without a message"])[-1]


def _tail_length(tail: np.ndarray, block: int, silence: float) -> int:
    """Returns the number of samples of the tail up to and including the first silent block."""
    for start in range(0, len(tail) - block + 1, block):
        if np.abs(tail[start : start + block]).max() < silence:
            return start + block
    return len(tail)


def _midi_file(performance: Performance, channels: dict[int, int]) -> bytes:
    """Returns a Standard MIDI File, format 0, of some parts, with ticks of one millisecond, as long as audio and tail."""

    def tick(sample: int) -> int:
        return round(sample * TICKS_PER_SECOND / performance.sample_rate)

    messages = [(0, b"\xff\x51\x03" + (500_000).to_bytes(3, "big"))]
    for part, channel in channels.items():
        program, is_drum = performance.parts[part]
        messages.append((0, bytes([0xC0 | channel, 0 if is_drum else program])))
    for at, kind, part, first, second in performance.events:
        if part in channels and (message := _message(kind, channels[part], first, second)):
            messages.append((tick(at), message))
    end = max(messages[-1][0], tick(performance.num_samples))
    for channel in channels.values():  # release pedals and notes at the end
        messages += [(end, bytes([0xB0 | channel, controller, 0])) for controller in (SUSTAIN, ALL_NOTES_OFF)]
    messages.append((end + round(TAIL_SECONDS * TICKS_PER_SECOND), b"\xff\x2f\x00"))
    ticks = [at for at, _ in messages]
    data = b"".join(_delta(at - before) + text for before, (at, text) in zip([0, *ticks], messages, strict=False))
    # a quarter note lasts half a second, so this resolution gives the tick
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS_PER_SECOND // 2) + b"MTrk" + struct.pack(">I", len(data)) + data


def _message(kind: int, channel: int, first: int, second: int) -> bytes:
    if kind == NOTE_ON:
        return bytes([0x90 | channel, first, max(1, second)])
    if kind == NOTE_OFF:
        return bytes([0x80 | channel, first, 0])
    if first < 0:
        bend = min(16383, max(0, second))
        return bytes([0xE0 | channel, bend & 127, bend >> 7])
    return bytes([0xB0 | channel, first & 127, second & 127]) if second >= 0 else b""


def _delta(ticks: int) -> bytes:
    """Returns a MIDI variable-length quantity. Source: Standard MIDI Files 1.0."""
    groups = [ticks & 127]
    while ticks := ticks >> 7:
        groups.append(ticks & 127 | 128)
    return bytes(reversed(groups))
