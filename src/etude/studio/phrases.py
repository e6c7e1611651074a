"""Cuts what is played into phrases, each of which ends with a silence, and writes them down as scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.studio.midi_ports import DRUM_CHANNEL, Event

TICKS_PER_QUARTER = 480
SHORTEST = 0.03  # seconds of a note that is written down


class Played(NamedTuple):
    """A note that was played: start and end in seconds on the session's clock."""

    start: float
    end: float
    pitch: int
    velocity: int
    channel: int


class Phrases:
    """Collects events until nothing has sounded for `silence` seconds.

    Args:
        silence: in seconds, above 0.
    """

    def __init__(self, silence: float) -> None:
        self.silence = silence
        self.programs: dict[int, int] = {}  # channel -> program
        self._sounding: dict[tuple[int, int], Event] = {}
        self._notes: list[Played] = []

    def take(self, events: Sequence[Event]) -> None:
        """Adds events, in the order of time."""
        for event in events:
            place = (event.channel, event.number)
            if event.kind == "program":
                self.programs[event.channel] = event.number
                continue
            if (before := self._sounding.pop(place, None)) is not None:
                end = max(event.seconds, before.seconds + SHORTEST)
                self._notes.append(Played(before.seconds, end, event.number, before.velocity, event.channel))
            if event.kind == "on":
                self._sounding[place] = event

    def paused(self, now: float, pause: float) -> list[Played]:
        """Returns the notes of the phrase so far if nothing has sounded for `pause` seconds; none otherwise."""
        if not self._notes or self._sounding or now - max(note.end for note in self._notes) < pause:
            return []
        return sorted(self._notes)

    def finished(self, now: float, *, ended: bool = False) -> list[Played]:
        """Returns the notes of a phrase that has ended, and begins the next; none while it goes on.

        ended: nothing can follow, so the phrase ends without a silence.
        """
        if not self._notes or (self._sounding and not ended):
            return []
        if not ended and now - max(note.end for note in self._notes) < self.silence:
            return []
        notes, self._notes = sorted(self._notes), []
        self._sounding.clear()
        return notes


def written(notes: Sequence[Played], *, tempo_bpm: float, metre: tuple[int, int], programs: dict[int, int]) -> Score:
    """Returns a phrase as a score that begins with its first note, in 480 ticks per quarter.

    programs: of each channel; 0 where none is known. Each channel is a track, channel 9 (from 0) the drums.
    """
    score, first = Score(TICKS_PER_QUARTER), min(note.start for note in notes)
    score.tempos.append(Tempo(0, qpm=tempo_bpm))
    score.time_signatures.append(TimeSignature(0, *metre))
    rate = TICKS_PER_QUARTER * tempo_bpm / 60
    for channel in sorted({note.channel for note in notes}):
        track = Track(program=programs.get(channel, 0), is_drum=channel == DRUM_CHANNEL)
        for note in notes:
            if note.channel == channel:
                start, length = round((note.start - first) * rate), round((note.end - note.start) * rate)
                track.notes.append(Note(start, max(length, 1), note.pitch, max(note.velocity, 1)))
        score.tracks.append(track)
    return score
