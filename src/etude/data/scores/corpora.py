"""Where scores come from: music21's wheel, a folder of the user's, or the JSB chorale benchmark.

A corpus lists its files without opening them, and reads one file at a time in whatever process asks.
"""

import csv
import importlib.metadata
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from symusic import Score

from etude.data.scores.jsb import DOWNLOAD_URL, download_jsb, read_jsb
from etude.music.score import SUFFIXES, printable, read_pieces

HUMDRUM_LICENCE = "copyright 2000 John Miller, non-commercial terms of the Humdrum Palestrina database"
M21_LICENCE = "out of copyright or licensed by its encoder; see music21 corpus/license.txt"


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    name: its path below the corpus, printable: what manifests, logs and quarantine lists call it.
    genre: the label for conditioning. source, licence: where it comes from and on what terms.
    """

    path: Path
    name: str
    genre: str
    source: str
    licence: str


@dataclass(frozen=True)
class Corpus(ABC):
    """What the data module asks of a corpus; `reader` names how its files are parsed, a part of the cache's key."""

    reader: ClassVar[str] = "score"
    without_root: ClassVar[str] = "comes with music21; for your files: data=folder data.root=DIR"

    @abstractmethod
    def files(self) -> list[Source]:
        """All files, sorted by name. Raises ValueError, with the remedy, where there are none."""

    def read(self, path: Path) -> Iterator[tuple[str, str, Score]]:
        """Yields (piece name, prescribed split or '', score); raises ScoreError as `read_pieces` does."""
        for name, score in read_pieces(path):
            yield name, "", score


@dataclass(frozen=True)
class Wheel(Corpus):
    """Scores inside music21's wheel: nothing is downloaded.

    collections: (folder below music21/corpus, genre, title, licence) of each part.
    """

    collections: ClassVar[tuple[tuple[str, str, str, str], ...]] = ()

    def files(self) -> list[Source]:
        spec = importlib.util.find_spec("music21")  # finds the folder without the three seconds of importing it
        if spec is None or spec.origin is None:
            raise ValueError("music21 is not installed, and its wheel carries these scores; run: make setup")
        root = Path(spec.origin).parent / "corpus"
        version = importlib.metadata.version("music21")
        found = [
            Source(path, path.relative_to(root).as_posix(), genre, f"music21 {version} corpus: {title}", licence)
            for folder, genre, title, licence in self.collections
            for path in sorted((root / folder).glob("*"))
            if path.suffix.lower() in SUFFIXES and path.stem not in NOT_CHORALES
        ]
        if not found:
            raise ValueError(f"music21's corpus at {root} is empty (some distributions cut it out); run: make setup")
        return found


NOT_CHORALES = frozenset({"bwv846"})  # the one prelude among 412 chorales
_CHORALES = (("bach", "chorales", "Bach chorales", M21_LICENCE),)
_EARLY = (
    ("palestrina", "early", "Palestrina masses, encoded by John Miller, converted by Bret Aarden", HUMDRUM_LICENCE),
    ("monteverdi", "early", "Monteverdi madrigals", M21_LICENCE),
    ("trecento", "early", "Trecento polyphony", M21_LICENCE),
)
_FOLK = (
    ("ryansMammoth", "folk", "Ryan's Mammoth Collection", M21_LICENCE),
    ("oneills1850", "folk", "O'Neill's Music of Ireland", M21_LICENCE),
    ("airdsAirs", "folk", "Aird's Airs, encoded by Jack Campin", M21_LICENCE),
)


@dataclass(frozen=True)
class Chorales(Wheel):
    """Bach's four-part chorales in music21's wheel, 412 files."""

    collections = _CHORALES


@dataclass(frozen=True)
class Early(Wheel):
    """Palestrina, Monteverdi and the Trecento in music21's wheel, 1,470 files."""

    collections = _EARLY


@dataclass(frozen=True)
class Folk(Wheel):
    """Ryan's Mammoth, O'Neill's and Aird's tune books in music21's wheel, about 4,200 tunes in 1,104 files."""

    collections = _FOLK


@dataclass(frozen=True)
class Everything(Wheel):
    """Chorales, early and folk together, each with its genre."""

    collections = (*_CHORALES, *_EARLY, *_FOLK)


@dataclass(frozen=True)
class Folder(Corpus):
    """The user's own scores: every MIDI, MusicXML, ABC and Humdrum file below a folder.

    root: the folder, '' until it is given. Genre is the first subfolder, 'unknown' for files at the root. A
        `SOURCES.tsv` at the root with columns file, source, licence tells where files come from.
    """

    root: str = ""

    def files(self) -> list[Source]:
        if not self.root:
            raise ValueError("data.root is empty; name the folder with your scores: data=folder data.root=DIR")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise ValueError(f"data.root={printable(root)} is not a folder; give the folder that holds your scores")
        paths = sorted(Path(parent, name) for parent, _, names in os.walk(root) for name in names)
        paths = [path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
        if not paths:
            raise ValueError(
                f"data.root={printable(root)} holds no scores; put files ending in {', '.join(sorted(SUFFIXES))} there"
            )
        origins = self._origins(root)
        return [self._source(path, root, origins) for path in paths]

    def _source(self, path: Path, root: Path, origins: dict[str, tuple[str, str]]) -> Source:
        relative = path.relative_to(root)
        name = printable(relative)
        genre = printable(relative.parts[0]) if len(relative.parts) > 1 else "unknown"
        source, licence = origins.get(name, (printable(root), "unknown"))
        return Source(path, name, genre, source, licence)

    def _origins(self, root: Path) -> dict[str, tuple[str, str]]:
        table = root / "SOURCES.tsv"
        if not table.is_file():
            return {}
        with table.open(encoding="utf-8", errors="replace", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            return {row["file"]: (row.get("source") or "", row.get("licence") or "") for row in rows if row.get("file")}


@dataclass(frozen=True)
class Jsb(Corpus):
    """The JSB chorale benchmark on a 16th grid with its canonical 229/76/77 split.

    root: `Jsb16thSeparated.json`, or the folder that holds it.
    download: fetch it to `root` where it is missing; nothing is ever downloaded otherwise.
    """

    root: str = "data/Jsb16thSeparated.json"
    download: bool = False
    reader: ClassVar[str] = "jsb16"

    def files(self) -> list[Source]:
        path = Path(self.root).expanduser()
        path = path if path.suffix == ".json" else path / "Jsb16thSeparated.json"
        if not path.is_file():
            if not self.download:
                raise ValueError(
                    f"the JSB benchmark is not at data.root={path}; get Jsb16thSeparated.json from {DOWNLOAD_URL} and "
                    "put it there, or add data.corpus.download=true to let this be done"
                )
            download_jsb(path)
        source = "JSB-Chorales-dataset (czhuang), Jsb16thSeparated.json"
        return [Source(path, path.name, "chorales", source, "music in the public domain; see the repository")]

    def read(self, path: Path) -> Iterator[tuple[str, str, Score]]:
        return read_jsb(path)
