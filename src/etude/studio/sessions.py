"""Listening tests as they are taken: sessions with random names for what is heard, answers, and the result at the end."""

import contextlib
import hashlib
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any, cast

from etude.render.synthesizers import Synthesizer, check_synthesizer
from etude.studio.drawing import Drawer, Drawn, redraw, unmatched
from etude.studio.excerpts import SCORE_RATE, Cutter, Excerpt, common_loudness
from etude.studio.options import Options, listener
from etude.studio.results import Heard, OutOfOrder, Results, SessionRow
from etude.studio.shares import Share, verdict
from etude.studio.sources import Source, find_sources
from etude.wording import counted

ANSWERS = {"single": ("real", "generated"), "pairs": ("first", "second")}
MOST_SECONDS = 24 * 3600.0  # longest time that an answer is said to have taken


class NotFound(Exception):
    """There is no such session or sound."""


class Refused(Exception):
    """What the page asks for is not possible now; the message is for the listener."""


@dataclass
class Session:
    """A session that is being taken.

    Attributes:
        row: its entry in the results.
        drawn: its questions with their excerpts.
        clips: for each question the names of its sounds, random, in the order in which they are played.
        lock: held while an answer changes.
    """

    row: SessionRow
    drawn: Sequence[Drawn]
    clips: Sequence[Sequence[str]]
    lock: Lock = field(default_factory=Lock)


class ListeningTest:
    """All sessions of one call of `etude listen`.

    What the page is told before the end is how many questions are answered, and the names of the sounds of the next ones, which
    are random and new in each session. All sounds of a session are equally long and loud.

    Args:
        options: of the test.
        folder: an empty folder for excerpts, which the caller removes.

    Raises: ValueError, in one line with the remedy, if the results or the soundfont can't be used, or there is too little music.
    """

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        soundfont = None if options.soundfont is None else Path(options.soundfont).expanduser()
        check_synthesizer(options.synthesizer, soundfont)
        synthesizer = cast(Synthesizer, options.synthesizer)
        self.sources = find_sources(options)
        for line in unmatched(self.sources):
            print(line, file=sys.stderr)
        self.cutter = Cutter(options.seconds, options.start, _rate(self.sources), soundfont, synthesizer, folder)
        if any(source.is_score for source in self.sources):
            self.cutter.check()
        elif soundfont is not None or synthesizer != Options.synthesizer:
            raise ValueError("soundfont= and synthesizer= are for scores, and this test plays audio; leave them out")
        self.drawer = Drawer(self.sources, self.cutter, options.mode, options.questions, options.seed)
        self._try_out()
        self.test = _digest(options, self.sources)
        self.results = Results(options.results_file)  # at last, so that a test that is refused leaves no file
        self._sessions: dict[str, Session] = {}
        self._sounds: dict[str, tuple[Excerpt, float]] = {}  # name: excerpt, loudness in LUFS
        self._lock = Lock()

    def _try_out(self) -> None:
        """Finds out whether there is enough music, and tells what is left out. Raises: ValueError if there is too little."""
        self.drawer.draw("", 0, {}, dry=True)
        for source in self.drawer.left_out.pieces:
            print(f"{source}: {self.drawer.left_out.told(source)}", file=sys.stderr)

    def draw_ahead(self) -> None:
        """Begins to prepare the session of the listener who is expected, in a thread of its own."""
        if self.options.name is not None:
            Thread(target=self._draw_ahead, args=(listener(self.options.name),), daemon=True).start()

    def _draw_ahead(self, name: str) -> None:
        with self._lock, contextlib.suppress(ValueError, OSError):  # told when the listener begins
            if self.results.unfinished(name, self.test) is None:
                number = self.results.count(name, self.test)
                self.drawer.draw(name, number, self.results.times_heard(name))  # which keeps what it has rendered

    def about(self) -> dict[str, Any]:
        """Returns what the page shows before a session."""
        asked = self.options
        return {"mode": asked.mode, "questions": asked.questions, "seconds": asked.seconds, "name": asked.name or ""}

    # --- beginning and going on ---

    def begin(self, name: str, choice: str | None) -> dict[str, Any]:
        """Begins a session for a listener, and returns its state; or tells of an unfinished one.

        choice: "continue" goes on with the unfinished session of that name, "new" begins another; None lets the page ask if there
        is one.

        Raises: Refused, with a line for the listener.
        """
        try:
            name = listener(name)
        except ValueError as error:
            raise Refused(str(error)) from error
        with self._lock:
            earlier = self.results.unfinished(name, self.test)
            if earlier is not None and choice != "new":
                answered = len(self.results.answers(earlier.session))
                if choice is None and answered:
                    return {"unfinished": {"answered": answered, "questions": earlier.questions}}
                return self._state(self._resumed(earlier))
            return self._state(self._new(name))

    def _new(self, name: str) -> Session:
        asked = self.options
        try:
            drawn = self.drawer.draw(name, self.results.count(name, self.test), self.results.times_heard(name))
        except ValueError as error:
            raise Refused(str(error)) from error
        row = SessionRow(secrets.token_urlsafe(16), name, asked.mode, len(drawn), asked.seconds, asked.seed, self.test)
        session = self._prepared(row, drawn)
        self.results.begin(row, [each.question for each in drawn])
        return session

    def _resumed(self, row: SessionRow) -> Session:
        if row.session in self._sessions:
            return self._sessions[row.session]
        by_folder = {str(source.folder): source for source in self.sources}
        try:
            drawn = [redraw(q, by_folder[q.run_folder], self.cutter) for q in self.results.questions(row.session)]
        except (ValueError, KeyError) as error:
            raise Refused(f"the earlier session can't go on: {error}; begin a new one") from error
        return self._prepared(row, drawn)

    def _prepared(self, row: SessionRow, drawn: Sequence[Drawn]) -> Session:
        """Opens a session: names its sounds, and finds the loudness that all of them can have."""
        lufs = common_loudness([excerpt for each in drawn for excerpt in each.excerpts])
        clips = [[secrets.token_urlsafe(16) for _ in each.excerpts] for each in drawn]
        for each, names in zip(drawn, clips, strict=True):
            self._sounds |= {name: (excerpt, lufs) for name, excerpt in zip(names, each.excerpts, strict=True)}
        session = self._sessions[row.session] = Session(row, drawn, clips)
        return session

    # --- answering ---

    def state(self, session: str) -> dict[str, Any]:
        """Returns how far a session is, and what its next question sounds like. Raises: NotFound."""
        return self._state(self._find(session))

    def answer(self, session: str, number: object, answer: object, seconds: object) -> dict[str, Any]:
        """Saves the answer to the next question, and returns the state. Raises: NotFound; Refused for anything else."""
        found = self._find(session)
        if answer not in ANSWERS[found.row.kind] or type(number) is not int:
            raise Refused(f"answer is {answer!r} to question {number!r}, must be {' or '.join(ANSWERS[found.row.kind])}")
        if type(seconds) not in (int, float) or not 0 <= seconds <= MOST_SECONDS:  # type: ignore[operator]
            raise Refused(f"seconds is {seconds!r}, must be a number from 0 to {MOST_SECONDS:.0f}")
        with found.lock:
            try:
                self.results.answer(session, number, str(answer), seconds=float(seconds))  # type: ignore[arg-type]
            except OutOfOrder:
                raise Refused("this question was answered in another window; this is the next one") from None
        return self._state(found)

    def undo(self, session: str) -> dict[str, Any]:
        """Takes the last answer back, and returns the state. Raises: NotFound; Refused after the result was shown."""
        found = self._find(session)
        with found.lock:
            try:
                self.results.undo(session)
            except OutOfOrder:
                raise Refused("the result was shown, so the answers stay as they are") from None
        return self._state(found)

    def result(self, session: str) -> dict[str, Any]:
        """Ends a session and returns its result: what was right, and what each sound was.

        Raises: NotFound; Refused while questions are open.
        """
        found = self._find(session)
        answers = self.results.answers(session)
        if len(answers) < found.row.questions:
            raise Refused(f"{found.row.questions - len(answers)} questions are still open")
        self.results.finish(session)
        share = Share(sum(each.is_right for each in answers), len(answers))
        low, high = share.interval
        runs = {run: [each for each in answers if each.run == run] for run in dict.fromkeys(each.run for each in answers)}
        return {
            "right": share.right, "questions": share.answers, "low": low, "high": high, "listener": found.row.listener,
            "sentences": [verdict(run, Share(sum(a.is_right for a in own), len(own))) for run, own in runs.items()],
            "answers": [
                {"answer": each.answer, "right": each.right_answer, "seconds": each.seconds_taken, "genre": each.genre,
                 "run": each.run, "clips": _revealed(drawn, clips)}
                for each, drawn, clips in zip(answers, found.drawn, found.clips, strict=True)
            ],
            "results": str(self.results.path),
        }  # fmt: skip

    def summary(self) -> str:
        """Returns in words what was answered, and what the file of results holds."""
        answers = sum(len(self.results.answers(session)) for session in self._sessions)
        own = f"{counted(answers, 'answer')} of {counted(len(self._sessions), 'session')}"
        return f"{own} in this test, {self.results.summary()} in {self.results.path}"

    def sound(self, name: str) -> bytes:
        """Returns a sound as a WAV file. Raises: NotFound."""
        if name not in self._sounds:
            raise NotFound
        excerpt, lufs = self._sounds[name]
        return excerpt.wav(lufs)

    def _find(self, session: str) -> Session:
        try:
            return self._sessions[session]
        except KeyError:
            raise NotFound from None

    def _state(self, session: Session) -> dict[str, Any]:
        answered, row = len(self.results.answers(session.row.session)), session.row
        upcoming = session.clips[answered : answered + 2]
        return {
            "session": row.session, "mode": row.kind, "seconds": row.seconds, "questions": row.questions, "answered": answered,
            "finished": self.results.is_finished(row.session), "clips": upcoming[0] if upcoming else [],
            "next": upcoming[1] if len(upcoming) > 1 else [],
        }  # fmt: skip


def _revealed(drawn: Drawn, clips: Sequence[str]) -> list[Mapping[str, str]]:
    """Returns for each sound of a question its random name and what it was."""
    question = drawn.question
    sides: list[tuple[str, Heard | None]] = [("real", question.real), ("generated", question.generated)]
    order = sides[::-1] if question.right_answer == "second" else sides
    heard = [(side, each) for side, each in order if each is not None]
    return [{"clip": name, "was": side, "piece": each.piece} for name, (side, each) in zip(clips, heard, strict=True)]


def _rate(sources: Sequence[Source]) -> int:
    """Returns the sample rate of excerpts of audio: the lowest of the models and the recordings, so that none is told by it."""
    rates = [piece.rate for source in sources for piece in (*source.generated, *source.real)]
    rates += [source.rate for source in sources]
    return min(SCORE_RATE, *(rate for rate in rates if rate is not None), SCORE_RATE)


def _digest(options: Options, sources: Sequence[Source]) -> str:
    """Returns a name for the test: sessions go on only where it is the same."""
    asked = options
    real = None if asked.real is None else str(Path(asked.real).expanduser().resolve())
    folders = sorted(str(source.folder.resolve()) for source in sources)
    text = json.dumps([asked.mode, asked.questions, asked.seconds, asked.start, asked.seed, asked.soundfont, asked.synthesizer,
                       real, folders])  # fmt: skip
    return hashlib.sha256(text.encode()).hexdigest()[:16]
