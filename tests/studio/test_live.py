"""A live session: phrases end with a silence, answers begin at once and keep their rhythm, and what is missing is named."""

import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mido
import pytest
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.run.cli import conf_folder
from etude.studio import midi_ports
from etude.studio.duet import Duet, Exchange
from etude.studio.live import Options, parse_metre
from etude.studio.midi_ports import Event, FileSink, PortSink, PortSource, ScoreSource, open_sink, open_source
from etude.studio.phrases import Phrases, Played, written
from etude.tokens.note_stream import StreamedNote


def note(onset: int, pitch: int, *, duration: int = 240, program: int = 0, part: int = 0) -> StreamedNote:
    return StreamedNote(onset, duration, 0.0, 0.0, pitch, 80, program, part)


class Script:
    """A source whose events come at given seconds of a clock; the clock runs by itself."""

    metre, tempo_bpm, name = None, None, "script"

    def __init__(self, *events: Event) -> None:
        self.events, self.now = list(events), 0.0

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    @property
    def ended(self) -> bool:
        return not self.events

    def poll(self) -> list[Event]:
        found = [event for event in self.events if event.seconds <= self.now]
        self.events = self.events[len(found) :]
        return found

    def close(self) -> None:
        pass


class Heard:
    """A sink that remembers when it was sent what."""

    name, waits = "heard", True

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.events = clock, list[tuple[float, Event]]()

    def send(self, event: Event) -> None:
        self.events.append((self.clock(), event))

    def close(self) -> None:
        pass


def session(source: Script, answer: Any, *, silence: float = 0.5) -> tuple[list[Exchange], Heard]:
    sink = Heard(source.clock)
    duet = Duet(answer, source, sink, silence=silence, tempo_bpm=120, metre=(4, 4), clock=source.clock)
    return list(duet.exchanges()), sink


def test_a_phrase_ends_with_a_silence_and_not_while_a_note_sounds() -> None:
    phrases = Phrases(0.5)
    phrases.take([Event(0.0, "on", 60, 80), Event(0.2, "on", 64, 70)])
    assert phrases.finished(5.0) == []
    phrases.take([Event(5.0, "off", 60), Event(5.1, "off", 64), Event(5.1, "off", 99)])
    assert phrases.finished(5.5) == []
    assert phrases.finished(5.7) == [Played(0.0, 5.0, 60, 80, 0), Played(0.2, 5.1, 64, 70, 0)]
    assert phrases.finished(9.0) == []
    phrases.take([Event(9.0, "on", 60, 1), Event(9.0, "on", 60, 2)])  # struck again without an end
    assert phrases.finished(9.0, ended=True) == [Played(9.0, 9.03, 60, 1, 0)]


def test_a_phrase_is_written_on_the_grid_from_its_first_note() -> None:
    played = [Played(10.0, 10.5, 60, 80, 0), Played(10.5, 11.0, 62, 80, 0), Played(10.5, 10.6, 38, 90, 9)]
    score = written(played, tempo_bpm=60, metre=(3, 4), programs={0: 40})
    assert [(t.program, t.is_drum, [(n.time, n.duration, n.pitch) for n in t.notes]) for t in score.tracks] == [
        (40, False, [(0, 240, 60), (240, 240, 62)]),
        (0, True, [(240, 48, 38)]),
    ]
    assert score.tempos[0].qpm == 60 and score.time_signatures[0].numerator == 3


def test_the_answer_begins_at_once_and_keeps_its_rhythm() -> None:
    def answer(phrase: Score, number: int, *, on_note: Any, on_step: Any) -> None:
        assert number == 0 and [n.pitch for n in phrase.tracks[0].notes] == [60]
        for onset, pitch, program in ((1920, 70, 0), (1920, 50, 32), (2160, 72, 0)):
            on_note(note(onset, pitch, program=program))

    source = Script(Event(0.1, "on", 60, 80), Event(0.2, "off", 60), Event(1.5, "program", 0))
    (exchange, *_), sink = session(source, answer)
    sent = [(round(at, 1), event.kind, event.number, event.channel) for at, event in sink.events if event.kind != "off"]
    begin = sent[0][0]
    assert [each[1:] for each in sent] == [
        ("program", 0, 0), ("on", 70, 0), ("program", 32, 1), ("on", 50, 1), ("on", 72, 0),
    ]  # fmt: skip
    assert 0.7 <= begin <= 0.9 and sent[-1][0] - begin == pytest.approx(0.25, abs=0.1)
    assert {event.number for _, event in sink.events if event.kind == "off"} == {70, 50, 72}
    assert exchange.answered == 3 and exchange.late == 0 and exchange.latency is not None and exchange.latency < 0.2
    assert str(exchange).startswith("heard 1 notes in 1 bars; answered with 3 notes, the first after ")


def test_an_answer_is_begun_in_the_silence_and_thrown_away_if_the_phrase_goes_on() -> None:
    begun: list[list[int]] = []

    def answer(phrase: Score, number: int, *, on_note: Any, on_step: Any) -> None:
        begun.append([n.pitch for n in phrase.tracks[0].notes])
        assert number == 0
        on_note(note(0, 70 + len(begun)))

    events = [Event(0.0, "on", 60, 80), Event(0.1, "off", 60), Event(0.4, "on", 62, 80), Event(0.6, "off", 62)]
    (exchange,), sink = session(Script(*events, Event(3.0, "program", 0)), answer)
    assert begun == [[60], [60, 62]]
    assert [event.number for _, event in sink.events if event.kind == "on"] == [72]
    assert exchange.heard == 2 and exchange.latency is not None and exchange.latency < 0.02  # ticks of the clock, no waiting


def test_playing_on_cuts_the_answer_and_is_the_next_phrase() -> None:
    numbers = []

    def answer(phrase: Score, number: int, *, on_note: Any, on_step: Any) -> None:
        numbers.append((number, [n.pitch for n in phrase.tracks[0].notes]))
        if number == 0:
            on_note(note(0, 70, duration=480 * 100))
            for step in range(10_000):
                time.sleep(0.001)
                on_step(step)  # ends it when it is cut
            raise AssertionError("was not cut")

    source = Script(Event(0.1, "on", 60, 80), Event(0.2, "off", 60), Event(2.0, "on", 61, 80), Event(2.1, "off", 61))
    exchanges, sink = session(source, answer)
    assert numbers == [(0, [60]), (1, [61])]
    assert exchanges[0].cut and "cut when you went on" in str(exchanges[0])
    assert exchanges[1].latency is None and "answers with silence" in str(exchanges[1])
    assert [event.kind for _, event in sink.events] == ["program", "on", "off"]


def test_an_error_of_the_model_ends_the_session() -> None:
    def answer(*_: Any, **__: Any) -> None:
        raise ValueError("the model can't")

    with pytest.raises(ValueError, match="the model can't"):
        session(Script(Event(0.0, "on", 60, 80), Event(0.1, "off", 60)), answer)


def phrase(path: Path) -> Path:
    score = Score(480)
    score.tempos.append(Tempo(0, qpm=90))
    score.time_signatures.append(TimeSignature(0, 3, 4))
    score.tracks.append(Track(notes=[Note(480 * i, 240, 60 + i, 80) for i in range(6)]))
    score.dump_midi(path)
    return path


def test_files_stand_for_ports(tmp_path: Path) -> None:
    source = ScoreSource(phrase(tmp_path / "phrase.mid"), lambda: 100.0)
    assert source.metre == (3, 4) and source.tempo_bpm == pytest.approx(90, abs=0.01) and not source.ended
    events = source.poll()
    assert source.ended and len(events) == 12 and events[-1].seconds == 100.0
    assert events[2].seconds - events[0].seconds == pytest.approx(60 / 90, abs=1e-4) and source.poll() == []
    sink = FileSink(tmp_path / "answer.mid")
    for event in (Event(7.0, "program", 32, 0, 1), Event(7.0, "on", 50, 70, 1), Event(7.5, "off", 50, 0, 1)):
        sink.send(event)
    sink.close()
    (track,) = Score(tmp_path / "answer.mid").tracks
    assert track.program == 32 and [(n.time, n.duration, n.pitch, n.velocity) for n in track.notes] == [(0, 480, 50, 70)]
    FileSink(tmp_path / "none.mid").close()
    assert not (tmp_path / "none.mid").exists()


class Port:
    """A port of mido, as far as it is used."""

    name = "Keys"

    def __init__(self, *messages: Any) -> None:
        self.messages, self.sent, self.ended = list(messages), list[Any](), list[str]()

    def iter_pending(self) -> Any:
        messages, self.messages = self.messages, []
        return iter(messages)

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def panic(self) -> None:
        self.ended.append("panic")

    def close(self) -> None:
        self.ended.append("close")


def test_ports_give_and_take_messages() -> None:
    port = Port(
        mido.Message("program_change", program=5), mido.Message("note_on", note=60, velocity=9), mido.Message("pitchwheel"),
        mido.Message("note_on", note=60, velocity=0), mido.Message("note_off", note=61, channel=2),
    )  # fmt: skip
    source = PortSource(port, lambda: 3.0)
    assert [event[1:] for event in source.poll()] == [
        ("program", 5, 0, 0), ("on", 60, 9, 0), ("off", 60, 0, 0), ("off", 61, 64, 2),
    ]  # fmt: skip
    assert source.poll() == [] and not source.ended
    sink = PortSink(port)
    sink.send(Event(1.0, "on", 60, 80, 3))
    sink.close()
    assert str(port.sent[0]) == "note_on channel=3 note=60 velocity=80 time=0" and port.ended == ["panic", "close"]


def test_what_is_missing_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rtmidi", None)
    with pytest.raises(ValueError, match=r"ports need python-rtmidi; install the extra: pip install 'etude\[live\]', or give"):
        open_source(None)
    monkeypatch.setitem(sys.modules, "rtmidi", types.ModuleType("rtmidi"))
    monkeypatch.setattr(mido, "get_input_names", list)
    with pytest.raises(ValueError, match=r"there is no MIDI input port; connect.*or give files: input=phrase\.mid"):
        open_source("keys")
    monkeypatch.setattr(mido, "get_output_names", lambda: ["Synth A", "Synth B"])
    with pytest.raises(ValueError, match=r"output=piano is no MIDI output port; the ports are Synth A, Synth B"):
        open_sink("piano")

    def broken() -> list[str]:
        raise RuntimeError("no sequencer\n")

    monkeypatch.setattr(mido, "get_input_names", broken)
    with pytest.raises(ValueError, match=r"this machine has no MIDI system \(no sequencer\); or give files|no MIDI system"):
        open_source(None)
    with pytest.raises(ValueError, match=r"nowhere\.mid"):
        open_source("nowhere.mid")
    (tmp_path / "bad.mid").write_bytes(b"MThd")
    with pytest.raises(ValueError, match=r"bad\.mid"):
        open_source(str(tmp_path / "bad.mid"))
    with pytest.raises(ValueError, match=r"there is no folder"):
        open_sink(str(tmp_path / "no" / "answer.mid"))
    (tmp_path / "old.mid").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"old\.mid exists already; give another, or overwrite=true to replace it"):
        open_sink(str(tmp_path / "old.mid"))
    assert open_sink(str(tmp_path / "old.mid"), overwrite=True).name == "old.mid"
    with pytest.raises(ValueError, match=r"output=.*answer\.wav: a file here must end in \.mid, \.midi; or give part of a port"):
        open_sink(str(tmp_path / "answer.wav"))
    with pytest.raises(ValueError, match=r"input=.*phrase\.wav: a file here must end in \.abc, "):
        open_source(str(tmp_path / "phrase.wav"))
    monkeypatch.setattr(midi_ports, "_ports", lambda: types.SimpleNamespace(
        get_output_names=lambda: ["Synth A", "Synth B"], open_output=lambda name: types.SimpleNamespace(name=name)
    ))  # fmt: skip
    assert open_sink("synth b").name == "Synth B" and open_sink(None).name == "Synth A"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("silence", 0, r"silence is 0, must be a number above 0 and at most 60"),
        ("bars", 0, r"bars is 0, must be a number above 0"),
        ("bars", 1.5, r"bars is 1\.5, must be a whole number"),
        ("bars", "many", r"bars is many, must be a number"),
        ("tempo_bpm", 5, r"tempo_bpm is 5, must be a number above 19 and at most 300"),
        ("metre", "waltz", r"metre is waltz, must be of the form 3/4"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any, message: str) -> None:
    given = {name: getattr(Options(), name) for name in Options.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        Options.checked({**given, option: value})


def test_the_configuration_has_the_defaults_of_the_options() -> None:
    from omegaconf import OmegaConf

    settings = OmegaConf.load(conf_folder() / "live.yaml")
    own = {str(key): settings[key] for key in settings if key not in ("defaults", "hydra")}
    assert Options.checked(own) == Options() and parse_metre("6/8") == (6, 8)
