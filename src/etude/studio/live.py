"""The program live: play a phrase, and hear a model answer it note by note."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from omegaconf import DictConfig
from symusic import Note, Score, TimeSignature, Track

from etude.core.protocols import ChoosesDecoding
from etude.music.score import num_bars, trim
from etude.run.command import one_line_errors
from etude.studio.duet import Duet
from etude.studio.midi_ports import Sink, Source, open_sink, open_source
from etude.tokens.note_stream import StreamedNote

MOST_TOKENS = 256  # of a bar of an answer
MEMORY_BARS = 16  # of a longer phrase the model hears the end, so that its answer comes as soon
DEFAULT_TEMPO_BPM = 120.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a live session is made of.

    Attributes:
        ckpt: as of generate; None takes the newest run, or the bundled model.
        input: part of a MIDI input port's name, or a score file that stands for one; None takes the first port.
        output: part of a MIDI output port's name, or a MIDI file to write; None takes the first port.
        overwrite: whether an output file that exists may be replaced.
        silence: seconds without a note after which a phrase has ended, above 0.
        bars: of an answer, at least 1.
        tempo_bpm: of the grid on which you are heard, 20 to 300; None takes that of the file, or 120.
        metre: "3/4"; None takes that of the file, or 4/4.
        temperature, top_k, top_p, min_p: see `etude.models.symbolic.sampling.distribution`.
        seed: of the first answer; the next has the next one.
        outputs: the folder in which runs are looked for.
    """

    ckpt: str | None = None
    input: str | None = None
    output: str | None = None
    overwrite: bool = False
    silence: float = 1.0
    bars: int = 4
    tempo_bpm: float | None = None
    metre: str | None = None
    temperature: float = 0.9
    top_k: int | None = None
    top_p: float = 0.98
    min_p: float = 0.02
    seed: int = 0
    outputs: str = "outputs"

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Self:
        """Returns the options of a configuration. Raises: ValueError that names the option, its value and its range."""
        options = cls(**{field.name: given[field.name] for field in fields(cls)})
        _check_number("silence", options.silence, above=0.0, most=60.0)
        _check_number("bars", options.bars, above=0, most=256)
        if options.bars != int(options.bars):
            raise ValueError(f"bars is {options.bars}, must be a whole number")
        if options.tempo_bpm is not None:
            _check_number("tempo_bpm", options.tempo_bpm, above=19.0, most=300.0)
        if options.metre is not None:
            parse_metre(options.metre)
        return options

    @property
    def cuts(self) -> dict[str, Any]:
        """How tokens are drawn."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}


def _check_number(name: str, value: Any, *, above: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most or math.isnan(value):
        raise ValueError(f"{name} is {value}, must be a number above {above:g} and at most {most:g}")


def parse_metre(metre: object) -> tuple[int, int]:
    """Returns numerator and denominator. Raises: ValueError for anything but a metre."""
    parts = str(metre).split("/")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"metre is {metre}, must be of the form 3/4")
    return int(parts[0]), int(parts[1])


class ModelAnswer:
    """Lets a model continue phrases.

    Args:
        task: a language model with REMI tokens.
        bars: of an answer.
        seed: of the first answer.
        cuts: temperature, top_k, top_p and min_p.

    Raises: ValueError for a model that can't pass its notes on one by one.
    """

    def __init__(self, task: Any, *, bars: int, seed: int, cuts: Mapping[str, Any]) -> None:
        if not isinstance(task, ChoosesDecoding):
            raise ValueError(f"ckpt holds a {type(task).__name__}, which continues no phrases; give a language model of scores")
        task.check_decoding(num_samples=1, labels={}, prompted=True, streamed=True)
        self._task, self._bars, self._seed, self._cuts = task, bars, seed, dict(cuts)

    def warm_up(self, metre: tuple[int, int]) -> None:
        """Answers once for nobody, since the first answer takes longest. Raises: ValueError for a metre that it can't write."""
        phrase = Score(480)
        phrase.time_signatures.append(TimeSignature(0, *metre))
        phrase.tracks.append(Track(notes=[Note(480 * place, 240, 60 + place, 80) for place in range(4)]))
        self(phrase, 0, on_note=lambda _: None, on_step=lambda _: None)

    def __call__(
        self, phrase: Score, number: int, *, on_note: Callable[[StreamedNote], None], on_step: Callable[[int], None]
    ) -> None:
        bars = num_bars(phrase)
        if bars > MEMORY_BARS:
            phrase, bars = trim(phrase, first_bar=bars - MEMORY_BARS), MEMORY_BARS
        self._task.sample(
            prompt=phrase, num_bars=bars + self._bars, max_new_tokens=MOST_TOKENS * self._bars, seed=self._seed + number,
            on_step=on_step, on_note=lambda _, note: on_note(note), **self._cuts,
        )  # fmt: skip


@one_line_errors
def live(cfg: DictConfig) -> None:
    """Answers phrases until Ctrl-C, or until an input file has been answered."""
    from etude.core.stopping import Stopped

    options = Options.checked(cfg)
    source = open_source(options.input)
    try:
        sink = open_sink(options.output, overwrite=options.overwrite)
        try:
            for exchange in session(options, source, sink):
                print(exchange, file=sys.stderr)
        except Stopped as stopped:
            if stopped.name != "Ctrl-C":
                raise
            print("ended", file=sys.stderr)
        finally:
            sink.close()
    finally:
        source.close()


def session(options: Options, source: Source, sink: Sink) -> Any:
    """Loads the model, says that it listens, and returns an iterator of `Exchange`."""
    from etude.run.parts import load_task
    from etude.run.starting import model_to_sample

    task, _ = load_task(model_to_sample(options.ckpt, options.outputs))
    answer = ModelAnswer(task, bars=options.bars, seed=options.seed, cuts=options.cuts)
    metre = parse_metre(options.metre) if options.metre is not None else source.metre or (4, 4)
    tempo_bpm = options.tempo_bpm or source.tempo_bpm or DEFAULT_TEMPO_BPM
    answer.warm_up(metre)
    print(
        f"listening to {source.name}, answering on {sink.name}, in {metre[0]}/{metre[1]} at {tempo_bpm:.0f}: play a phrase and "
        f"stop for {options.silence:g} s (Ctrl-C ends)",
        file=sys.stderr,
    )
    duet = Duet(answer, source, sink, silence=options.silence, tempo_bpm=tempo_bpm, metre=metre)
    return duet.exchanges()
