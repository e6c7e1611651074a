"""The options of a listening test, as conf/listen.yaml lists them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

Mode = Literal["single", "pairs"]
Start = Literal["beginning", "anywhere"]
MOST_SECONDS = 120.0
MOST_QUESTIONS = 1000
MOST_MUSIC = 3600.0  # seconds of a session
REPORTED = ("report", "results", "outputs")  # what a report takes account of
MOST_NAME = 60  # characters


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a listening test is made of, and where its results go.

    Attributes:
        real: a folder of scores or audio; None for held-out pieces of each run's own data.
        runs: folders of runs, patterns, or "last".
        mode: "single" asks whether an excerpt is real or generated, "pairs" which of two is real.
        questions: of a session, 2 to 1000; even for single excerpts, of which half are real.
        seconds: length of each excerpt, at most 120.
        start: where excerpts start: at the "beginning" of the music, or "anywhere" at a bar line.
        seed: of the choice of pieces and their order, which also depend on the listener's name.
        port: of the page, 0 to 65535; 0 for any free one.
        name: the listener; None lets the page ask.
        results: the SQLite file of all answers.
        report: whether to show what the results say, instead of asking questions.
        soundfont: an .sf2 file for scores; None takes the one that comes with a dependency.
        synthesizer: tinysoundfont, or fluidsynth where the system has it.
        outputs: the folder in which "last" looks for runs.
    """

    real: str | None = None
    runs: tuple[str, ...] = ()
    mode: Mode = "single"
    questions: int = 20
    seconds: float = 10.0
    start: Start = "beginning"
    seed: int = 0
    port: int = 0
    name: str | None = None
    results: str = "outputs/listening.sqlite"
    report: bool = False
    soundfont: str | None = None
    synthesizer: str = "tinysoundfont"
    outputs: str = "outputs"

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Self:
        """Returns the options of a configuration.

        Raises: ValueError that names the option, its value and what it may be.
        """
        values = {field.name: given[field.name] for field in fields(cls)}
        runs = values["runs"]
        runs = [] if runs is None else [runs] if isinstance(runs, str) else runs
        values["runs"] = tuple(str(run) for run in runs)
        for name in ("real", "name", "soundfont"):
            values[name] = None if values[name] is None else str(values[name])
        _check_each(values)
        options = cls(**{**values, "seconds": float(values["seconds"])})
        options._check_together()
        return options

    def _check_together(self) -> None:
        """Raises ValueError for options that do not go together."""
        if self.mode == "single" and self.questions % 2:
            more = self.questions + 1
            raise ValueError(f"questions is {self.questions}, must be even, since half of them are real; set questions={more}")
        unused = [each.name for each in fields(self) if each.name not in REPORTED and getattr(self, each.name) != each.default]
        if self.report and unused:
            told = f"report=true shows all answers in results=, whatever {unused[0]}= is"
            raise ValueError(f"{told}; leave {', '.join(unused)} out")
        if self.results_file.suffix.lower() in (".html", ".htm"):
            told = f"results is {self.results}, a database beside which the report is written as .html"
            raise ValueError(f"{told}; name it .sqlite")
        if self.music_seconds > MOST_MUSIC:
            raise ValueError(
                f"questions={self.questions} of seconds={self.seconds:g} are {self.music_seconds / 3600:.1f} hours of music, at "
                "most one can be listened to; lower one of them"
            )
        if self.name is not None:
            listener(self.name)

    @property
    def music_seconds(self) -> float:
        """The length of all excerpts of a session."""
        return self.seconds * self.questions * (2 if self.mode == "pairs" else 1)

    @property
    def results_file(self) -> Path:
        """The path of the results."""
        return Path(self.results).expanduser()


def _check_each(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a value of the wrong type or out of its range."""
    for name, low, high in (("questions", 2, MOST_QUESTIONS), ("seed", 0, 2**63 - 1), ("port", 0, 65535)):
        if type(values[name]) is not int or not low <= values[name] <= high:
            raise ValueError(f"{name} is {values[name]}, must be a whole number from {low} to {high}")
    for name, kinds in (("mode", get_args(Mode)), ("start", get_args(Start)), ("report", (True, False))):
        if values[name] not in kinds or type(values[name]) is not type(kinds[0]):
            raise ValueError(f"{name} is {values[name]}, must be {' or '.join(map(str, kinds)).lower()}")
    seconds = values["seconds"]
    if type(seconds) not in (int, float) or not math.isfinite(seconds) or not 1 <= seconds <= MOST_SECONDS:
        raise ValueError(f"seconds is {seconds}, must be a number from 1 to {MOST_SECONDS:.0f}")


def listener(name: str) -> str:
    """Returns a listener's name in its usual form: one line without spaces around it.

    Raises: ValueError for an empty or a very long one.
    """
    line = " ".join("".join(character if character.isprintable() else " " for character in name).split())
    if not 0 < len(line) <= MOST_NAME:
        what = "is empty" if not line else f"has {len(line)} characters, at most {MOST_NAME} are allowed"
        raise ValueError(f"name {what}; give a name or a nickname")
    return line
