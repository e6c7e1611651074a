"""Corpora of audio: tunes of music21 that are arranged and rendered in several styles, and folders of the user's audio.

A corpus lists recordings without decoding them.
"""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from symusic import Score

from etude.audio.files import AUDIO_SUFFIXES
from etude.data.audio.recordings import ArrangedRecording, FileRecording, Recording
from etude.data.cache import pool
from etude.data.cache.lock import held
from etude.data.scores import build
from etude.data.scores import duplicates as dedup
from etude.data.scores.corpora import Folk, Music21Corpus, Source
from etude.music.arrangement import ARRANGEMENTS
from etude.music.score import duration_seconds, printable, read_pieces
from etude.render.synthesizers import SYNTHESIZERS, Synthesizer, check_synthesizer, default_soundfont

MIN_NOTES = 40  # of a tune that is used
MIN_SECONDS = 12.0
SPARE = 1.1  # factor of tunes that are read beyond those needed, since some are too short or duplicates
Failures = list[tuple[str, str, str]]


@dataclass(frozen=True)
class AudioCorpus(ABC):
    """The interface between a corpus of audio and the data module."""

    has_scores: ClassVar[bool] = False  # whether its recordings know what is played in them
    without_root: ClassVar[str] = "is made of what the dependencies carry; for your files: data=audio_folder data.root=DIR"

    @property
    def root(self) -> str:
        """The folder that holds its files; '' for a corpus that has none."""
        return ""

    @property
    def paired(self) -> bool | None:
        """Whether pieces of one name are one song in every style; None where their names and splits tell."""
        return None

    @property
    def max_difference(self) -> float:
        """Seconds by which a recording and its score may differ in length."""
        return math.inf

    @abstractmethod
    def available(self) -> list[str]:
        """Returns the styles of the corpus, in order. Raises: ValueError, with the remedy, if there is no corpus."""

    @abstractmethod
    def recordings(self, styles: Sequence[str], *, cache_dir: Path, num_workers: int) -> tuple[list[Recording], Failures]:
        """Returns all recordings in `styles`, and (file, piece, reason) of unusable files.

        Raises: ValueError, with the remedy, if a style has no recording.
        """


# --- tunes, arranged ---


@dataclass(frozen=True)
class Tunes(Music21Corpus):
    """The first tune of each file of Ryan's Mammoth and O'Neill's, about 300 of them."""

    collections = Folk.collections[:2]
    reader: ClassVar[str] = "first tune"

    def read(self, path: Path) -> Iterator[tuple[str, str, Score]]:
        name, score = next(read_pieces(path))
        yield name, "", score


@dataclass(frozen=True)
class Arranged(AudioCorpus):
    """Irish and American tunes included in music21, arranged and rendered in several styles.

    Each training tune is rendered in one style, each held-out tune in every style with the same bars, so that held-out audio
    is paired.

    styles: some of folk, rock and jazz.
    songs_per_style: training tunes of each style; different styles have different tunes.
    paired_val, paired_test: numbers of held-out tunes.
    max_seconds: the longest part of a tune that is played.
    soundfont: an .sf2 file; None for the General-MIDI soundfont included in a dependency.
    synthesizer: tinysoundfont, or fluidsynth if it is installed.
    seed: shuffles the tunes before they are assigned to splits and styles. The held-out tunes do not depend on
        songs_per_style and max_seconds, but on paired_val and paired_test.
    """

    styles: Sequence[str] = ("folk", "rock", "jazz")
    songs_per_style: int = 60
    paired_val: int = 20
    paired_test: int = 40
    max_seconds: float = 24.0
    soundfont: str | None = None
    synthesizer: Synthesizer = "tinysoundfont"
    seed: int = 0
    has_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if unknown := [style for style in self.styles if style not in ARRANGEMENTS]:
            raise ValueError(f"corpus.styles: {unknown[0]!r} has no arrangement; valid are {', '.join(ARRANGEMENTS)}")
        for name in ("songs_per_style", "paired_val", "paired_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"corpus.{name}={getattr(self, name)} must be at least 1")
        if not 2 <= self.max_seconds <= 600:
            raise ValueError(f"corpus.max_seconds={self.max_seconds} must be in [2, 600]")
        if self.synthesizer not in SYNTHESIZERS:
            raise ValueError(f"corpus.synthesizer={self.synthesizer} is not one of {', '.join(SYNTHESIZERS)}; give one of these")

    def available(self) -> list[str]:
        return list(self.styles)

    def recordings(self, styles: Sequence[str], *, cache_dir: Path, num_workers: int) -> tuple[list[Recording], Failures]:
        check_synthesizer(self.synthesizer)
        wanted = self.paired_val + self.paired_test + len(self.styles) * self.songs_per_style
        tunes = self._tunes(wanted, cache_dir, num_workers)
        soundfont = Path(self.soundfont).expanduser() if self.soundfont else default_soundfont()
        if not soundfont.is_file():
            raise ValueError(f"corpus.soundfont={soundfont} is not a file; give an .sf2 file, or null for the one included")
        shared: dict[str, Any] = {
            "scores": build.scores_folder(cache_dir),
            "max_seconds": self.max_seconds,
            "soundfont": soundfont,
            "synthesizer": self.synthesizer,
            "sound": hashlib.sha256(soundfont.read_bytes()).hexdigest(),
        }
        found: list[Recording] = []
        for number, (source, content, row) in enumerate(tunes):
            split, played = self._place(number)
            for style in styles:
                if style in played:
                    about: dict[str, Any] = {"song": source.name, "source": source.source, "licence": source.licence}
                    about |= {"name": f"{source.name} ({style})", "style": style, "split": split}
                    found.append(ArrangedRecording(group=content, row=row, **about, **shared))
        return found, []

    def _place(self, number: int) -> tuple[str, Sequence[str]]:
        """Returns the split of a tune, by its number in the shuffled order, and the styles in which it is rendered."""
        if number < self.paired_val:
            return "val", self.styles
        if number < self.paired_val + self.paired_test:
            return "test", self.styles
        return "train", [self.styles[(number - self.paired_val - self.paired_test) % len(self.styles)]]

    def _tunes(self, wanted: int, cache_dir: Path, num_workers: int) -> list[tuple[Source, str, int]]:
        """Returns (source, content hash, row in the score cache) of `wanted` different usable tunes, shuffled."""
        corpus = Tunes()
        sources = sorted(corpus.files(), key=lambda s: hashlib.sha256(f"{self.seed}:{s.name}".encode()).digest())
        taken = 0
        while True:
            taken = min(len(sources), max(int(wanted * SPARE) + 2, int(taken * 1.5)))
            hashes = build.hash_files(sources[:taken], cache_dir)
            some = list(zip(sources[:taken], build.file_identities(corpus, sources[:taken], hashes), strict=True))
            folder, identities = build.scores_folder(cache_dir), [identity for _, identity in some]
            if (known := build.facts_of(folder, identities)) is None:
                with held(cache_dir):
                    unread = build.parse(corpus, sources[:taken], hashes, cache_dir=cache_dir, num_workers=num_workers)
                for row, reason in unread.items():  # all these files are valid, so the machine is at fault
                    pool.check_final(pool.Failure(reason, final=False), f"reading {sources[row].name}")
                known = build.facts_of(folder, identities)
                assert known is not None  # `parse` caches the facts of every file that is not unread
            tunes = _distinct([(*file, facts["pieces"]) for file, facts in zip(some, known, strict=True)], folder)
            if len(tunes) >= wanted:
                return tunes[:wanted]
            if taken == len(sources):
                most = (len(tunes) - self.paired_val - self.paired_test) // len(self.styles)
                raise ValueError(
                    f"corpus.songs_per_style={self.songs_per_style} needs {wanted} different tunes with the held-out ones, "
                    f"and there are {len(tunes)}; give at most {most}"
                )


def _distinct(files: Sequence[tuple[Source, str, list[dict[str, Any]]]], folder: Path) -> list[tuple[Source, str, int]]:
    """Returns (source, content hash, row in the score cache) of the first long enough tune of each group of near-duplicates.

    files: (source, its `build.file_identities`, facts of its pieces). folder: that of the cached scores.
    Raises: Damaged if a score is missing or its checksum differs.
    """
    usable = [(source, identity, fact) for source, identity, facts in files for fact in facts if fact["notes"] >= MIN_NOTES]
    rows = build.rows_of_scores(folder, np.array([build.piece_key(identity, 0) for _, identity, _ in usable]))
    build.check_scores(folder, rows)
    places = rows.tolist()
    long = [
        (source, fact, place)
        for (source, _, fact), place in zip(usable, places, strict=True)
        if duration_seconds(build.load_score(folder, place)) >= MIN_SECONDS
    ]
    sketches = np.stack([np.frombuffer(bytes.fromhex(fact["sketch"]), np.uint32) for _, fact, _ in long])
    group = dedup.groups(np.array([fact["content"] for _, fact, _ in long]), sketches)
    return [(s, fact["content"], place) for number, (s, fact, place) in enumerate(long) if group[number] == number]


# --- a folder of audio ---


@dataclass(frozen=True)
class AudioFolder(AudioCorpus):
    """The user's own audio: a subfolder for each style, files of any length, sample rate and number of channels.

    A folder without subfolders is one style, named after the folder; that is enough for a vocoder and a grader.

    root: the folder; '' means that it must be given.
    paired: whether files of the same name are the same song in every style. None: if all subfolders have the same names.
    """

    root: str = ""
    paired: bool | None = None

    def available(self) -> list[str]:
        root = self._root()
        return self._subfolders(root) or ([root.resolve().name] if _audio_files([(root, f.name) for f in root.iterdir()]) else [])

    @staticmethod
    def _subfolders(root: Path) -> list[str]:
        return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _root(self) -> Path:
        if not self.root:
            raise ValueError(
                "data.root is empty; give the folder with a subfolder of audio for each style: data=audio_folder data.root=DIR"
            )
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise ValueError(f"data.root={printable(root)} is not a folder; give the one that has a subfolder for each style")
        return root

    def recordings(self, styles: Sequence[str], *, cache_dir: Path, num_workers: int) -> tuple[list[Recording], Failures]:
        root = self._root()
        sources: list[Source] = []
        failures: Failures = []
        flat = not self._subfolders(root)
        loose = [] if flat else _audio_files([(root, path.name) for path in root.iterdir() if path.is_file()])
        failures += [(printable(path.name), "", "lies beside the folders of the styles; move it into one") for path in loose]
        for style in styles:
            folder = root if flat else root / style
            paths = _audio_files([(Path(parent), name) for parent, _, names in os.walk(folder) for name in names])
            if not paths:
                raise ValueError(
                    f"{printable(folder)} holds no audio; put {', '.join(sorted(AUDIO_SUFFIXES))} files there, remove "
                    "the folder, or choose others: styles=[...]"
                )
            for path in paths:
                name = printable(path.relative_to(root))
                if path.is_file() and os.access(path, os.R_OK):
                    sources.append(Source(path, name, style, printable(root), "unknown"))
                else:
                    failures.append((name, "", "can't be read; give a file that you may read"))
        hashes = build.hash_files(sources, cache_dir)
        folders = {style: root if flat else root / style for style in styles}
        files = zip(sources, hashes, strict=True)
        made: list[Recording] = [_recording(source, digest, folders[source.genre]) for source, digest in files]
        return made, failures


def _audio_files(names: list[tuple[Path, str]]) -> list[Path]:
    paths = sorted(folder / name for folder, name in names)
    return [path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")]


def _recording(source: Source, digest: str, folder: Path) -> FileRecording:
    return FileRecording(
        name=source.name,
        style=source.genre,
        song=printable(source.path.relative_to(folder).with_suffix("")),
        split="",
        group=digest,
        source=source.source,
        licence=source.licence,
        path=source.path,
        sha256=digest,
    )
