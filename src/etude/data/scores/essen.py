"""Tune families and regions of the Essen Folksong Collection that is part of music21; labels come from the headers.

Whole classes belong to one split, so that few-shot tasks are tested on classes that training has never seen.
"""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from symusic import Score

from etude.data.scores.corpora import Music21Corpus, Source
from etude.music.notation import read_abc
from etude.music.score import ScoreError, checked_tune, tunes

LICENCE = "non-commercial distribution in music21, see its corpus/essenFolksong/license.txt"
LEAST = 6  # tunes of a family, at least
ENDS = (("train", 0.6), ("val", 0.8), ("test", 1.0))  # of the hash of a class in [0, 1)
REGIONS = (  # a pattern of the header's place of origin, the first one counts -> region, split
    (r"China|Asien", "China", "train"),
    (r"Gottschee|Jugoslawien|Suedosteuropa|Rumaenien", "south-east Europe", "val"),
    (r"Lothringen", "Lorraine", "test"),
    (r"Luxemburg", "Luxembourg", "test"),
    (r"Oesterreich|Tirol|Steiermark", "Austria", "test"),
    (r"Schweiz", "Switzerland", "test"),
    (r"Niederlande", "Netherlands", "val"),
    (r"Polen|Schlesien|Pommern|Ostpreussen", "Poland", "train"),
    (r"Irland", "Ireland", "test"),
)
MOST = 60  # tunes of a region that are read, those with the lowest hashes


@dataclass(frozen=True)
class Essen(Music21Corpus):
    """Tunes of the Essen collection that have a class; the others are not read, since reading takes some 0.1 s a tune."""

    collections = (("essenFolksong", "folk", "Essen Folksong Collection, encoded under Helmut Schaffrath", LICENCE),)

    @property
    def prescribes_split(self) -> bool:
        return True

    def files(self) -> list[Source]:
        return [source for source in super().files() if not source.path.name.startswith("test")]

    def classes(self, folder: Path) -> dict[str, tuple[str, str]]:
        """Returns the class and the split of each tune that has one, by the name of the piece."""
        raise TypeError(f"{type(self).__name__} must define classes(folder)")

    def read(self, path: Path) -> Iterator[tuple[str, str, Score]]:
        known, bad = self.classes(path.parent), list[str]()
        for number, (name, text) in enumerate(tunes(path), start=1):
            if name not in known:
                continue
            try:
                yield name, known[name][1], checked_tune(read_abc(text), path)
            except ScoreError as error:
                bad.append(f"tune {number}: {error.problem}")
        if bad:
            raise ScoreError(path, f"{len(bad)} tunes can't be read ({', '.join(bad)})", "leave these tunes out")

    def labels(self, source: Source) -> dict[str, dict[str, str]]:
        known = self.classes(source.path.parent)
        return {name: {self.label_columns[0]: known[name][0]} for name, _ in tunes(source.path) if name in known}


@dataclass(frozen=True)
class TuneFamilies(Essen):
    """79 families of tunes: those whose title at least six tunes have. About 1,100 tunes.

    A title names a song, so a family holds versions of its tune, and in ballads sometimes several tunes of one text. Families
    that share a catalogue number (such as Q0155A and Q0155B) fall into the same split, as do those of one title.
    """

    reader: ClassVar[str] = "essen_families"
    label_columns = ("family",)

    def classes(self, folder: Path) -> dict[str, tuple[str, str]]:
        return families(folder)


@dataclass(frozen=True)
class UnseenRegions(Essen):
    """Nine regions of the Essen collection, at most 60 tunes of each: two are training, two validation, five the test."""

    reader: ClassVar[str] = "essen_regions"
    label_columns = ("region",)

    def classes(self, folder: Path) -> dict[str, tuple[str, str]]:
        return regions(folder)


def _headers(folder: Path) -> list[tuple[str, str, str, str]]:
    """Returns (piece, title, catalogue number without its letter, origin) of every tune of the collection; '' for none."""
    found = []
    for path in sorted(folder.glob("*.abc")):
        if path.name.startswith("test"):
            continue
        for name, text in tunes(path):
            title, origin = (_field(letter, text) for letter in "TO")
            number = re.search(r"^N:\s*([A-Z]+\d+)[A-Z]*\d*\s*$", text, flags=re.MULTILINE)
            code = number.group(1) if number is not None and not number.group(1).endswith("0000") else ""
            found.append((name, title, code, origin))
    return found


def _field(letter: str, text: str) -> str:
    found = re.search(rf"^{letter}:[ \t]*(.*?)\s*$", text, flags=re.MULTILINE)
    return found.group(1) if found else ""


def _place(name: str) -> float:
    """Returns a number in [0, 1) that depends on the name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13


@functools.lru_cache(maxsize=2)
def families(folder: Path) -> dict[str, tuple[str, str]]:
    """Returns the family (its title) and the split of each tune of a title that at least `LEAST` tunes have."""
    headers = [(name, title, code) for name, title, code, _ in _headers(folder) if title]
    counts = Counter(title for _, title, _ in headers)
    kept = [(name, title, code) for name, title, code in headers if counts[title] >= LEAST]
    parent = {title: title for _, title, _ in kept}

    def root(title: str) -> str:
        while parent[title] != title:
            title = parent[title]
        return title

    first: dict[str, str] = {}
    for _, title, code in kept:
        one, other = sorted((root(title), root(first.setdefault(code, title)))) if code else (title, title)
        parent[other] = one
    split = {title: next(name for name, end in ENDS if _place(root(title)) < end) for title in parent}
    return {name: (title, split[title]) for name, title, _ in kept}


@functools.lru_cache(maxsize=2)
def regions(folder: Path) -> dict[str, tuple[str, str]]:
    """Returns the region and the split of the chosen tunes."""
    members: dict[str, list[str]] = {region: [] for _, region, _ in REGIONS}
    for name, _, _, origin in _headers(folder):
        region = next((region for pattern, region, _ in REGIONS if re.search(pattern, origin)), None)
        if region is not None:
            members[region].append(name)
    split = {region: part for _, region, part in REGIONS}
    return {name: (region, split[region]) for region, names in members.items() for name in sorted(names, key=_place)[:MOST]}
