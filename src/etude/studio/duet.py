"""Answers phrases: hears one, lets a model continue it, and plays the continuation while it is still being written."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from symusic import Score

from etude.music.score import num_bars
from etude.studio.midi_ports import DRUM_CHANNEL, Clock, Event, Sink, Source
from etude.studio.phrases import TICKS_PER_QUARTER, Phrases, Played, written
from etude.tokens.note_stream import StreamedNote

POLL = 0.001  # seconds between two looks at the ports
PAUSE = 0.1  # seconds without a note after which an answer is begun, in case that the phrase has ended
LATE = 0.02  # seconds after which a note counts as late
CHANNELS = tuple(channel for channel in range(16) if channel != DRUM_CHANNEL)


class Answer(Protocol):
    """Continues a phrase."""

    def __call__(
        self, phrase: Score, number: int, *, on_note: Callable[[StreamedNote], None], on_step: Callable[[int], None]
    ) -> None:
        """Calls `on_note` with each note, and `on_step` with the number of tokens so far; what they raise ends it.

        number: of the phrase, from 0.
        """


@dataclass
class Exchange:
    """A phrase and its answer.

    heard: notes of the phrase. bars: of the phrase. answered: notes of the answer. late: of them, came after they were due.
    latency: seconds from the end of the phrase, its silence included, to the first note; None without one.
    cut: whether the player went on before the answer was over.
    """

    heard: int
    bars: int
    answered: int = 0
    late: int = 0
    latency: float | None = None
    cut: bool = False

    def __str__(self) -> str:
        told = f"heard {self.heard} notes in {self.bars} bars; "
        if self.latency is None:
            return f"{told}the model answers with silence"
        cut = ", cut when you went on" if self.cut else ""
        late = f", {self.late} of them late" if self.late else ""
        return f"{told}answered with {self.answered} notes{late}, the first after {1000 * self.latency:.0f} ms{cut}"


class _Cut(Exception):
    """Ends an answer."""


class _Writing:
    """An answer that is written in a thread of its own.

    made: its notes, then None, or what went wrong. heard: notes of the phrase.
    """

    def __init__(self, answer: Answer, phrase: Score, number: int, *, heard: int) -> None:
        self.phrase, self.heard = phrase, heard
        self.made: queue.SimpleQueue[StreamedNote | BaseException | None] = queue.SimpleQueue()
        self._cut = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(answer, number), daemon=True)
        self._thread.start()

    def _work(self, answer: Answer, number: int) -> None:
        try:
            answer(self.phrase, number, on_note=self.made.put, on_step=self._go_on)
            self.made.put(None)
        except BaseException as error:  # whatever it is, the session's thread tells it
            self.made.put(None if isinstance(error, _Cut) else error)

    def _go_on(self, _: int) -> None:
        if self._cut.is_set():
            raise _Cut

    def stop(self) -> None:
        """Ends it, and waits until it has ended."""
        self._cut.set()
        self._thread.join()


class Duet:
    """A session of phrases and answers.

    Args:
        answer: the model.
        source, sink: where phrases come from and answers go.
        silence: seconds after which a phrase has ended.
        tempo_bpm, metre: of the grid on which phrases are heard and answers played.
        clock: seconds.
    """

    def __init__(
        self, answer: Answer, source: Source, sink: Sink, *, silence: float, tempo_bpm: float, metre: tuple[int, int],
        clock: Clock = time.perf_counter,
    ) -> None:  # fmt: skip
        self._answer, self._source, self._sink, self._clock = answer, source, sink, clock
        self._tempo_bpm, self._metre = tempo_bpm, metre
        self._phrases = Phrases(silence)

    def exchanges(self) -> Iterator[Exchange]:
        """Yields each exchange when its answer is over, until the source ends.

        An answer is begun while the silence still lasts, and thrown away if the phrase goes on.
        """
        number = 0
        ahead: _Writing | None = None
        try:
            while True:
                events, now = self._source.poll(), self._clock()
                self._phrases.take(events)
                if events and ahead is not None:
                    ahead.stop()
                    ahead = None
                if notes := self._phrases.finished(now, ended=self._source.ended):
                    writing, ahead = ahead or self._begin(notes, number), None
                    yield self._exchange(writing, since=now)
                    number += 1
                elif self._source.ended:
                    return
                elif ahead is None and (notes := self._phrases.paused(now, PAUSE)):
                    ahead = self._begin(notes, number)
                else:
                    time.sleep(POLL)
        finally:
            if ahead is not None:
                ahead.stop()

    def _begin(self, notes: list[Played], number: int) -> _Writing:
        phrase = written(notes, tempo_bpm=self._tempo_bpm, metre=self._metre, programs=self._phrases.programs)
        return _Writing(self._answer, phrase, number, heard=len(notes))

    def _exchange(self, writing: _Writing, *, since: float) -> Exchange:
        exchange = Exchange(writing.heard, num_bars(writing.phrase))
        try:
            self._play(writing.made, exchange, since)
        finally:
            writing.stop()
        return exchange

    def _play(self, made: queue.SimpleQueue[Any], exchange: Exchange, since: float) -> None:
        """Plays notes as they are made until they are over, or the player begins again."""
        player = _Player(self._sink, self._clock, quarter=60 / self._tempo_bpm)
        over = False
        while not (over and player.is_done):
            try:
                note = made.get(timeout=POLL)
                over = over or note is None
            except queue.Empty:
                note = None
            if isinstance(note, BaseException):
                player.stop()
                raise note
            if note is not None:
                if exchange.latency is None:
                    exchange.latency = self._clock() - since
                exchange.answered += 1
                exchange.late += player.schedule(note)
            player.advance()
            events = self._source.poll()
            self._phrases.take(events)
            if any(event.kind == "on" for event in events):
                exchange.cut = True
                break
        player.stop()


class _Player:
    """Sends the notes of one answer when they are due; the first is due at once."""

    def __init__(self, sink: Sink, clock: Clock, *, quarter: float) -> None:
        self._sink, self._clock, self._quarter = sink, clock, quarter
        self._origin: tuple[int, float] | None = None  # a tick, and when it is played
        self._due: list[tuple[float, int, Event]] = []
        self._count = 0
        self._sounding: dict[tuple[int, int], Event] = {}
        self._channels: dict[tuple[int, int], int] = {}

    @property
    def is_done(self) -> bool:
        """Whether all has been sent."""
        return not self._due

    def schedule(self, note: StreamedNote) -> bool:
        """Plans a note; returns whether it comes late."""
        now = self._clock()
        if self._origin is None:
            self._origin = (note.onset, now)
        tick, second = self._origin
        start = second + (note.onset - tick) / TICKS_PER_QUARTER * self._quarter
        late = now - start > LATE
        start = max(start, now) if self._sink.waits else start
        end = start + note.duration / TICKS_PER_QUARTER * self._quarter
        channel = self._channel(note, start)
        self._plan(Event(start, "on", note.pitch, note.velocity, channel))
        self._plan(Event(end, "off", note.pitch, 0, channel))
        self.advance()
        return late

    def _channel(self, note: StreamedNote, start: float) -> int:
        """The channel of a note's track; tracks beyond the fifteenth share the last one."""
        owner = (note.program, note.part)
        if owner not in self._channels:
            channel = DRUM_CHANNEL if note.program < 0 else CHANNELS[min(len(self._channels), len(CHANNELS) - 1)]
            self._channels[owner] = channel
            if note.program >= 0:
                self._plan(Event(start, "program", note.program, 0, channel))
        return self._channels[owner]

    def _plan(self, event: Event) -> None:
        self._count += 1  # events of one time go in the order in which they are planned
        heapq.heappush(self._due, (event.seconds, self._count, event))

    def advance(self) -> None:
        """Sends what is due."""
        while self._due and (not self._sink.waits or self._due[0][0] <= self._clock()):
            _, _, event = heapq.heappop(self._due)
            place = (event.channel, event.number)
            if event.kind == "on":
                self._sounding[place] = event
            elif event.kind == "off":
                self._sounding.pop(place, None)
            self._sink.send(event)

    def stop(self) -> None:
        """Ends the notes that sound."""
        for channel, pitch in self._sounding:
            self._sink.send(Event(self._clock(), "off", pitch, 0, channel))
        self._sounding.clear()
        self._due.clear()
