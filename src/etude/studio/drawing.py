"""Draws the questions of a session: as many real excerpts as generated ones, in a random order, matched by genre."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from etude.studio.excerpts import Cutter, Excerpt
from etude.studio.options import Mode
from etude.studio.pieces import Piece
from etude.studio.results import Heard, Question
from etude.studio.sources import Source
from etude.wording import counted

Key = tuple[str, str]


@dataclass(frozen=True)
class Drawn:
    """A question with its excerpts, in the order in which they are played."""

    question: Question
    excerpts: tuple[Excerpt, ...]


@dataclass
class LeftOut:
    """Pieces that could not be used, by the source that they are from, with the reason of the first."""

    pieces: dict[str, dict[Key, str]] = field(default_factory=dict)

    def add(self, source: str, piece: Piece, error: Exception) -> None:
        """Notes a piece."""
        self.pieces.setdefault(source, {})[piece.key] = f"{piece.file}: {error}"

    def told(self, source: str) -> str:
        """Returns in words how many pieces of a source are left out, and the reason of the first; "" for none."""
        found = self.pieces.get(source, {})
        if not found:
            return ""
        first = next(iter(found.values()))
        return f"{counted(len(found), 'piece is', 'pieces are')} left out, such as {first}"


@dataclass
class Drawer:
    """Draws questions from the music of some runs.

    Attributes:
        sources: the runs with their music.
        cutter: makes the excerpts.
        mode: "single" or "pairs".
        questions: how many; even with "single".
        seed: with the listener's name and the number of the session it decides everything that is drawn.
        left_out: pieces that turned out not to be usable.
    """

    sources: Sequence[Source]
    cutter: Cutter
    mode: Mode
    questions: int
    seed: int
    left_out: LeftOut = field(default_factory=LeftOut)
    _kept: dict[tuple[str, bool, Key], Excerpt] = field(default_factory=dict)  # rendered before

    def draw(self, listener: str, number: int, heard: Mapping[Key, int], *, dry: bool = False) -> list[Drawn]:
        """Returns the questions of a listener's session.

        number: how many sessions the listener has had before. heard: how often the listener has heard each piece; pieces that
        were heard less often come first. dry: only find out whether there are enough pieces, without rendering scores.

        Raises: ValueError, in one line with the remedy, if there are too few pieces.
        """
        name = hashlib.sha256(listener.encode()).digest()[:8]
        draw = np.random.default_rng([self.seed, int.from_bytes(name), number])
        couples = self.questions if self.mode == "pairs" else self.questions // 2
        counts = np.full(len(self.sources), couples // len(self.sources))
        counts[draw.permutation(len(self.sources))[: couples % len(self.sources)]] += 1
        used: set[Key] = set()
        drawn: list[Drawn] = []
        for source, count in zip(self.sources, counts.tolist(), strict=True):
            for real, generated in self._couples(source, count, draw, heard, used, dry=dry):
                drawn += self._questions(source, real, generated, draw, heard)
        return [drawn[place] for place in draw.permutation(len(drawn)).tolist()]

    def _couples(
        self, source: Source, count: int, draw: np.random.Generator, heard: Mapping[Key, int], used: set[Key], *, dry: bool
    ) -> list[tuple[Excerpt, Excerpt]]:
        """Returns real and generated excerpts that go together; adds their pieces to `used`."""
        order = _in_order(source.generated, draw, heard)
        generated = list(self._cut(order, source, count, draw, used, real=False, dry=dry))
        if len(generated) < count:
            raise ValueError(self._too_few(source, source.label, len(generated), count))
        order = _in_order(source.real, draw, heard)
        real: list[Excerpt] = []
        for excerpt in generated:
            wanted = sorted(order, key=lambda piece: not _same_genre(piece, excerpt.piece))
            real += self._cut(wanted, source, 1, draw, used, real=True, dry=dry)
        if len(real) < count:
            raise ValueError(self._too_few(source, _real(source), len(real), count))
        return list(zip(real, generated, strict=True))

    def _cut(
        self,
        pieces: Sequence[Piece],
        source: Source,
        count: int,
        draw: np.random.Generator,
        used: set[Key],
        *,
        real: bool,
        dry: bool,
    ) -> Iterator[Excerpt]:
        """Yields excerpts of the first `count` pieces that can be used and are not used yet."""
        name = _real(source) if real else source.label
        for piece in pieces:
            if count == 0:
                return
            if piece.key in used or piece.key in self.left_out.pieces.get(name, {}):
                continue
            try:
                excerpt = self._once(piece, source, draw, real=real, dry=dry)
            except ValueError as error:
                self.left_out.add(name, piece, error)
                continue
            used.add(piece.key)
            count -= 1
            yield excerpt

    def _once(self, piece: Piece, source: Source, draw: np.random.Generator, *, real: bool, dry: bool) -> Excerpt:
        """Returns the excerpt of a piece; one that always starts at the same place is made once and kept."""
        place = (source.label, real, piece.key)
        if place in self._kept:
            return self._kept[place]
        excerpt = self.cutter.cut(piece, source, real=real, draw=draw, dry=dry)
        if not dry and self.cutter.start == "beginning":
            self._kept[place] = excerpt
        return excerpt

    def _questions(
        self, source: Source, real: Excerpt, generated: Excerpt, draw: np.random.Generator, heard: Mapping[Key, int]
    ) -> list[Drawn]:
        """Returns the pair, or the two single questions, that a real and a generated excerpt make."""

        def drawn(right: str, genre: str | None, *, one: Excerpt | None, other: Excerpt | None) -> Drawn:
            excerpts = tuple(each for each in (one, other) if each is not None)
            known = any(heard.get(each.piece.key, 0) for each in excerpts)
            rows = [None if each is None else _heard(each) for each in (one, other)]
            order = excerpts[::-1] if right == "second" else excerpts
            return Drawn(Question(source.label, str(source.folder), genre, right, rows[0], rows[1], known), order)

        one, other = real.piece.genre, generated.piece.genre
        if self.mode == "pairs":
            right = "first" if draw.random() < 0.5 else "second"
            return [drawn(right, other or one, one=real, other=generated)]
        return [
            drawn("real", one, one=real, other=None),
            drawn("generated", other, one=None, other=generated),
        ]

    def _too_few(self, source: Source, name: str, found: int, needed: int) -> str:
        told = self.left_out.told(name)
        most = found * len(self.sources) * (1 if self.mode == "pairs" else 2)
        more = "add files" if name != source.label else "generate more, such as `etude generate num_samples=20`"
        fewer = f", or set questions={most}" if most >= 2 else ""
        why = f" ({told})" if told else ""
        return (
            f"{name}: too few pieces: {counted(found, 'piece')} of at least {self.cutter.seconds:g} s can be used, "
            f"questions={self.questions} needs {needed}{why}; {more}, make seconds= shorter{fewer}"
        )


def _real(source: Source) -> str:
    return f"real music for {source.label}"


def _same_genre(real: Piece, generated: Piece) -> bool:
    one, other = real.genre, generated.genre
    return one is not None and other is not None and one.casefold() == other.casefold()


def _in_order(pieces: Sequence[Piece], draw: np.random.Generator, heard: Mapping[Key, int]) -> list[Piece]:
    """Returns the pieces in a random order, those that were heard less often first."""
    shuffled = [pieces[place] for place in draw.permutation(len(pieces)).tolist()]
    return sorted(shuffled, key=lambda piece: heard.get(piece.key, 0))


def _heard(excerpt: Excerpt) -> Heard:
    piece = excerpt.piece
    return Heard(piece.file, piece.name, piece.sha256, excerpt.start_seconds)


def redraw(question: Question, source: Source, cutter: Cutter) -> Drawn:
    """Makes the excerpts of a saved question again.

    Raises: ValueError if a file is gone or has changed since.
    """
    excerpts = []
    for side, pieces in ((question.real, source.real), (question.generated, source.generated)):
        if side is not None:
            piece = next((each for each in pieces if each.key == (side.sha256, side.piece)), None)
            if piece is None:
                raise ValueError(f"{side.file} is gone, or has changed since the session began")
            draw = np.random.default_rng(0)  # not used, since the start is known
            excerpts.append(cutter.cut(piece, source, real=pieces is source.real, draw=draw, at=side.start_seconds))
    return Drawn(question, tuple(excerpts[::-1] if question.right_answer == "second" else excerpts))


def unmatched(sources: Sequence[Source]) -> list[str]:
    """Returns a line for each run of which some generated pieces have a genre that no real piece has."""
    lines = []
    for source in sources:
        real = {piece.genre.casefold() for piece in source.real if piece.genre}
        missing = Counter(piece.genre for piece in source.generated if piece.genre and piece.genre.casefold() not in real)
        if missing:
            names = ", ".join(f"{genre} ({count})" for genre, count in missing.most_common())
            lines.append(f"{source.label}: no real music has the genre of these samples, which get any other: {names}")
    return lines
