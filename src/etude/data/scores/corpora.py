"""Corpora of scores: collections included in music21, a folder of the user, and the JSB chorale benchmark.

A corpus lists its files without opening them, and reads one file at a time, in any process.
"""

import csv
import hashlib
import importlib.metadata
import importlib.util
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from symusic import Score

from etude.data.scores.jsb import DOWNLOAD_URL, download_jsb, read_jsb
from etude.music.score import SUFFIXES, printable, read_pieces, tunes

HUMDRUM_LICENCE = "copyright 2000 John Miller, non-commercial terms of the Humdrum Palestrina database"
M21_LICENCE = "out of copyright or licensed by its encoder; see music21 corpus/license.txt"


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    path: the file.
    name: its path relative to the corpus, printable; its name in manifests, logs and quarantine lists.
    genre: the genre label of its pieces.
    source, licence: where it comes from, and its licence.
    split: train, val or test if it is prescribed for all pieces of the file, else ''.
    """

    path: Path
    name: str
    genre: str
    source: str
    licence: str
    split: str = ""


@dataclass(frozen=True)
class Corpus(ABC):
    """The interface between a corpus and the data module; `reader` names the parser and is part of the cache key."""

    reader: ClassVar[str] = "score"
    label_columns: ClassVar[tuple[str, ...]] = ()  # columns of the manifest that `labels` gives
    without_root: ClassVar[str] = "comes with music21; for your files: data=folder data.root=DIR"

    @property
    def prescribes_split(self) -> bool:
        """Whether it says of every piece which split it is in."""
        return False

    @abstractmethod
    def files(self) -> list[Source]:
        """Returns all files, sorted by name. Raises ValueError, with the remedy, if there are none."""

    def read(self, path: Path) -> Iterator[tuple[str, str, Score]]:
        """Yields (piece name, prescribed split or '', score); raises ScoreError as `read_pieces` does."""
        for name, score in read_pieces(path):
            yield name, "", score

    def labels(self, source: Source) -> dict[str, dict[str, str]]:
        """Returns what a file says about its pieces beside their notes: piece name -> column of `label_columns` -> value."""
        return {}


@dataclass(frozen=True)
class Music21Corpus(Corpus):
    """Collections of scores that are included in the music21 package; nothing is downloaded.

    collections: (folder in music21/corpus, genre, title, licence) of each collection.
    """

    collections: ClassVar[tuple[tuple[str, str, str, str], ...]] = ()
    pattern: ClassVar[str] = "*"  # of the files in a folder

    def files(self) -> list[Source]:
        spec = importlib.util.find_spec("music21")  # finds the folder without importing music21, which takes three seconds
        if spec is None or spec.origin is None:
            raise ValueError("music21 is not installed, and these scores are part of its package; run: make setup")
        root = Path(spec.origin).parent / "corpus"
        version = importlib.metadata.version("music21")
        found = [
            Source(path, path.relative_to(root).as_posix(), genre, f"music21 {version} corpus: {title}", licence)
            for folder, genre, title, licence in self.collections
            for path in sorted((root / folder).glob(self.pattern))
            if path.suffix.lower() in SUFFIXES and path.stem not in EXCLUDED
        ]
        if not found:
            raise ValueError(f"music21's corpus at {root} is empty (some distributions remove it); run: make setup")
        return found


EXCLUDED = frozenset({"bwv846"})  # a prelude among the 412 chorales
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
class Chorales(Music21Corpus):
    """Bach's four-part chorales, included in music21, 412 files."""

    collections = _CHORALES


@dataclass(frozen=True)
class Early(Music21Corpus):
    """Palestrina, Monteverdi and the Trecento, included in music21, 1,470 files."""

    collections = _EARLY


@dataclass(frozen=True)
class Folk(Music21Corpus):
    """Ryan's Mammoth, O'Neill's and Aird's tune books, included in music21, about 4,200 tunes in 1,104 files."""

    collections = _FOLK


DANCES = {
    "reel": "reel", "jig": "jig", "double jig": "jig", "hornpipe": "hornpipe", "strathspey": "strathspey",
    "slip jig": "slip jig", "slipjig": "slip jig", "clog": "clog",
}  # fmt: skip  # what the header says, in small letters -> dance


@dataclass(frozen=True)
class Dances(Music21Corpus):
    """Ryan's Mammoth Collection and O'Neill's Music of Ireland; the header of 1,874 of their tunes names one of six dances.

    held_out: the book that is the test split as a whole, ryansMammoth or oneills1850; of the other, one file in ten is
        validation. None splits the tunes of both at random.
    """

    collections = _FOLK[:2]
    label_columns = ("dance",)
    held_out: str | None = None

    @property
    def prescribes_split(self) -> bool:
        return self.held_out is not None

    def files(self) -> list[Source]:
        books = [folder for folder, *_ in self.collections]
        if self.held_out is None:
            return super().files()
        if self.held_out not in books:
            raise ValueError(
                f"data.corpus.held_out={self.held_out} is no book here; choose {' or '.join(books)}, or null for none"
            )
        return [replace(source, split=self._split(source.name)) for source in super().files()]

    def _split(self, name: str) -> str:
        if name.startswith(f"{self.held_out}/"):
            return "test"
        return "val" if hashlib.sha256(name.encode()).digest()[0] % 10 == 0 else "train"

    def labels(self, source: Source) -> dict[str, dict[str, str]]:
        found = {}
        for name, text in tunes(source.path):
            field = re.search(r"^R:[ \t]*(.*?)\s*$", text, flags=re.MULTILINE)
            dance = DANCES.get(field.group(1).lower()) if field else None
            if dance is not None:
                found[name] = {"dance": dance}
        return found


COMPOSERS = {
    "bach": "Bach", "beethoven": "Beethoven", "haydn": "Haydn", "monteverdi": "Monteverdi", "mozart": "Mozart",
    "palestrina": "Palestrina",
}  # fmt: skip  # folder -> composer of its files
_HEADER_COMPOSER = re.compile(rb'<creator type="composer">\s*(?:Johannes )?(Ciconia)\b(?!.*dubium)')  # the one with many pieces


@dataclass(frozen=True)
class Composers(Music21Corpus):
    """Works of seven composers from Ciconia to Beethoven, included in music21, 955 files; the column `composer` names them.

    Folders name their composer, and files of the Trecento collection theirs in the header: of these only Ciconia has more than
    a few, and the others have no composer here.

    most: files of one folder, from 1 on; of a larger one these are chosen by the hash of their names.
    """

    collections = (
        *_CHORALES,
        *_EARLY,
        ("haydn", "classical", "Haydn, string quartets", M21_LICENCE),
        ("mozart", "classical", "Mozart, string quartets", M21_LICENCE),
        ("beethoven", "classical", "Beethoven, string quartets", M21_LICENCE),
    )
    label_columns = ("composer",)
    pattern = "**/*"  # quartets are in folders of their own
    most: int = 400

    def files(self) -> list[Source]:
        if self.most < 1:
            raise ValueError(f"data.corpus.most={self.most} must be at least 1 file of each folder; 400 is a good start")
        found = super().files()
        folders = {source.name.partition("/")[0]: list[Source]() for source in found}
        for source in found:
            folders[source.name.partition("/")[0]].append(source)
        kept = [sorted(each, key=lambda s: hashlib.sha256(s.name.encode()).digest())[: self.most] for each in folders.values()]
        return sorted((source for each in kept for source in each), key=lambda source: source.name)

    def labels(self, source: Source) -> dict[str, dict[str, str]]:
        known = COMPOSERS.get(source.name.partition("/")[0])
        if known is None and source.path.suffix == ".xml":
            header = _HEADER_COMPOSER.search(source.path.read_bytes())
            known = None if header is None else header.group(1).decode()
        return {} if known is None else {printable(source.path.stem): {"composer": known}}


@dataclass(frozen=True)
class Everything(Music21Corpus):
    """Chorales, early and folk together, each with its genre."""

    collections = (*_CHORALES, *_EARLY, *_FOLK)


@dataclass(frozen=True)
class Free(Music21Corpus):
    """`Everything` without Palestrina, whose encoders allow no commercial use: what the model in this package was trained on."""

    collections = (*_CHORALES, *_EARLY[1:], *_FOLK)


@dataclass(frozen=True)
class Folder(Corpus):
    """The user's own scores: every MIDI, MusicXML, ABC and Humdrum file below a folder.

    root: the folder; '' means that it must be given. The genre of a file is its first subfolder, 'unknown' for files in the
        root itself. A `SOURCES.tsv` in the root with columns file, source, licence may say where files come from.
    roots: several folders instead; the genre of a file is the name of its folder, whatever its subfolders.
    """

    root: str = ""
    roots: Sequence[str] | None = None

    def files(self) -> list[Source]:
        if not self.roots:
            return self._files(self.root)
        if self.root:
            raise ValueError(f"data.root={self.root} and data.corpus.roots are both given; give one of them")
        names = [folder_name(root) for root in self.roots]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"data.corpus.roots: two folders are named {twice[0]}; the name is the genre, rename one of them")
        found = [
            replace(source, name=f"{name}/{source.name}", genre=name)
            for name, root in zip(names, self.roots, strict=True)
            for source in self._files(root)
        ]
        return sorted(found, key=lambda source: source.name)

    def _files(self, folder: str) -> list[Source]:
        if not folder:
            raise ValueError("data.root is empty; give the folder with your scores: data=folder data.root=DIR")
        root = Path(folder).expanduser()
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


def folder_name(folder: str) -> str:
    """Returns the name of a folder, as it is the genre of its scores."""
    return printable(Path(folder).expanduser().resolve().name)


@dataclass(frozen=True)
class Jsb(Corpus):
    """The JSB chorale benchmark on a 16th grid with its canonical 229/76/77 split.

    root: `Jsb16thSeparated.json`, or its folder.
    download: download the file to `root` if it is missing; False never downloads.
    """

    root: str = "data/Jsb16thSeparated.json"
    download: bool = False
    reader: ClassVar[str] = "jsb16"

    @property
    def prescribes_split(self) -> bool:
        return True

    def files(self) -> list[Source]:
        path = Path(self.root).expanduser()
        path = path if path.suffix == ".json" else path / "Jsb16thSeparated.json"
        if not path.is_file():
            if not self.download:
                raise ValueError(
                    f"the JSB benchmark is not at data.root={path}; get Jsb16thSeparated.json from {DOWNLOAD_URL} and "
                    "put it there, or add data.corpus.download=true to download it"
                )
            download_jsb(path)
        source = "JSB-Chorales-dataset (czhuang), Jsb16thSeparated.json"
        return [Source(path, path.name, "chorales", source, "music in the public domain; see the repository")]

    def read(self, path: Path) -> Iterator[tuple[str, str, Score]]:
        return read_jsb(path)
