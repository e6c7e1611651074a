"""Where the notes of a live session come from and go to: MIDI ports, or files that stand for them.

Times are in seconds on the session's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from etude.data.scores.reading import read_prompt
from etude.music.score import SUFFIXES, seconds_at

INSTALL = "install the extra: pip install 'etude[live]'"
FILES = "or give files: input=phrase.mid output=answer.mid"
DRUM_CHANNEL = 9
MIDI_SUFFIXES = (".mid", ".midi")  # of what is written
TICKS_PER_SECOND = 960  # of a file that is written: 480 to a quarter note at 120 beats per minute

Clock = Callable[[], float]


class Event(NamedTuple):
    """A note that begins or ends, or a change of program, at a time.

    kind: "on", "off" or "program". number: the pitch, or the program. velocity: of a note that begins. channel: 0 to 15.
    """

    seconds: float
    kind: str
    number: int
    velocity: int = 0
    channel: int = 0


class Source(Protocol):
    """Gives notes as they are played."""

    name: str
    metre: tuple[int, int] | None  # of what is played, if it is known
    tempo_bpm: float | None

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""

    def poll(self) -> list[Event]:
        """Returns what has been played since the last call."""

    def close(self) -> None:
        """Releases it."""


class Sink(Protocol):
    """Plays notes."""

    name: str
    waits: bool  # whether events must be sent when they are due, and not ahead

    def send(self, event: Event) -> None:
        """Plays an event."""

    def close(self) -> None:
        """Ends all notes, and releases it."""


class ScoreSource:
    """A score file that stands for a port: the phrase is there at once, with the times of the file, and nothing follows.

    Raises: ValueError, in one line, if it can't be read.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        from etude.tokens.changes import first_metre, first_tempo

        score = read_prompt(path)
        self.name, self._clock = path.name, clock
        self.metre: tuple[int, int] | None = first_metre(score)
        self.tempo_bpm: float | None = first_tempo(score)
        self._events: list[Event] = []
        for track in score.tracks:
            notes = track.notes.numpy()
            starts = seconds_at(score, notes["time"])
            ends = seconds_at(score, notes["time"] + notes["duration"])
            for start, end, pitch, velocity in zip(starts, ends, notes["pitch"], notes["velocity"], strict=True):
                channel = DRUM_CHANNEL if track.is_drum else 0
                self._events.append(Event(float(start), "on", int(pitch), int(velocity), channel))
                self._events.append(Event(float(end), "off", int(pitch), 0, channel))
        if not self._events:
            raise ValueError(f"input={path}: it holds no notes; give a file with a phrase")
        self._events.sort(key=lambda event: (event.seconds, event.kind == "on"))
        self.ended = False

    def poll(self) -> list[Event]:
        if self.ended:
            return []
        self.ended = True
        shift = self._clock() - self._events[-1].seconds  # the phrase ends now
        return [event._replace(seconds=event.seconds + shift) for event in self._events]

    def close(self) -> None:
        """Nothing is open."""


class FileSink:
    """Writes what is played to a MIDI file; its time 0 is that of the first note.

    Raises: ValueError, in one line, for a file that exists, unless it may be replaced, or one in no folder.
    """

    waits = False

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        if path.exists() and not overwrite:
            raise ValueError(f"output={path} exists already; give another, or overwrite=true to replace it")
        if not path.parent.is_dir():
            raise ValueError(f"output={path}: there is no folder {path.parent}; make it, or choose another")
        self.name, self._path = path.name, path
        self._events: list[Event] = []

    def send(self, event: Event) -> None:
        self._events.append(event)

    def close(self) -> None:
        if not self._events:
            return
        import mido

        track = mido.MidiTrack()
        events = sorted(self._events, key=lambda event: event.seconds)  # stable: a program comes before its first note
        first = now = events[0].seconds
        for event in events:
            ticks = round((event.seconds - first) * TICKS_PER_SECOND) - round((now - first) * TICKS_PER_SECOND)
            track.append(message(event, time=ticks))
            now = event.seconds
        mido.MidiFile(ticks_per_beat=480, tracks=[track]).save(self._path)


class PortSource:
    """A MIDI input port."""

    metre: tuple[int, int] | None = None
    tempo_bpm: float | None = None
    ended = False

    def __init__(self, port: Any, clock: Clock) -> None:
        self.name, self._port, self._clock = port.name, port, clock

    def poll(self) -> list[Event]:
        now, found = self._clock(), []
        for heard in self._port.iter_pending():
            if heard.type in ("note_on", "note_off"):
                begins = heard.type == "note_on" and heard.velocity > 0  # a note_on of velocity 0 ends a note
                found.append(Event(now, "on" if begins else "off", heard.note, heard.velocity, heard.channel))
            elif heard.type == "program_change":
                found.append(Event(now, "program", heard.program, 0, heard.channel))
        return found

    def close(self) -> None:
        self._port.close()


class PortSink:
    """A MIDI output port."""

    waits = True

    def __init__(self, port: Any) -> None:
        self.name, self._port = port.name, port

    def send(self, event: Event) -> None:
        self._port.send(message(event))

    def close(self) -> None:
        self._port.panic()  # ends every note
        self._port.close()


def message(event: Event, *, time: int = 0) -> Any:
    """Returns the MIDI message of an event; time: ticks since the one before, in a file."""
    import mido

    if event.kind == "program":
        return mido.Message("program_change", program=event.number, channel=event.channel, time=time)
    kind = "note_on" if event.kind == "on" else "note_off"
    return mido.Message(kind, note=event.number, velocity=event.velocity, channel=event.channel, time=time)


def open_source(name: str | None, *, clock: Clock = time.perf_counter) -> Source:
    """Opens an input: a port whose name contains `name`, a score file, or for None the first port.

    Raises: ValueError, in one line with the remedy, if there is none.
    """
    if name is not None and Path(name).suffix.lower() in SUFFIXES:
        return ScoreSource(Path(name).expanduser(), clock)
    _refuse_path("input", name, SUFFIXES)
    mido = _ports()
    return PortSource(mido.open_input(_chosen("input", name, mido.get_input_names)), clock)


def open_sink(name: str | None, *, overwrite: bool = False) -> Sink:
    """Opens an output: a port whose name contains `name`, a MIDI file to write, or for None the first port.

    overwrite: whether a file that exists may be replaced.

    Raises: ValueError, in one line with the remedy, if there is none.
    """
    if name is not None and Path(name).suffix.lower() in MIDI_SUFFIXES:
        return FileSink(Path(name).expanduser(), overwrite=overwrite)
    _refuse_path("output", name, MIDI_SUFFIXES)
    mido = _ports()
    return PortSink(mido.open_output(_chosen("output", name, mido.get_output_names)))


def _refuse_path(option: str, name: str | None, suffixes: Collection[str]) -> None:
    """Raises ValueError for a name that is that of a file, and not that of a port."""
    if name is not None and ("/" in name or Path(name).suffix.lower() in SUFFIXES or Path(name).exists()):
        raise ValueError(f"{option}={name}: a file here must end in {', '.join(sorted(suffixes))}; or give part of a port's name")


def _ports() -> Any:
    """The module that lists and opens ports. Raises: ValueError if python-rtmidi is not installed."""
    import mido

    try:
        import rtmidi  # noqa: F401 - mido imports it only when a port is opened
    except ImportError:
        raise ValueError(f"MIDI ports need python-rtmidi; {INSTALL}, {FILES}") from None
    return mido


def _chosen(option: str, name: str | None, listed: Callable[[], Sequence[str]]) -> str:
    """The name of a port."""
    try:
        ports = list(dict.fromkeys(listed()))
    except Exception as error:  # of rtmidi, whose errors are of no common kind
        raise ValueError(f"this machine has no MIDI system ({' '.join(str(error).split())}); {FILES}") from error
    if not ports:
        raise ValueError(f"there is no MIDI {option} port; connect an instrument or start a synthesizer, {FILES}")
    found = [port for port in ports if name is None or name.lower() in port.lower()]
    if not found:
        raise ValueError(f"{option}={name} is no MIDI {option} port; the ports are {', '.join(ports)}; {FILES}")
    return found[0]
