"""The manifest: a table with one row for each piece of a corpus, in a folder whose name identifies all its inputs.

A dataset folder is never changed. It holds `manifest.parquet` and `quarantine.tsv`, and a folder of `view` arrays for each
tokenizer.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning_utilities.core.rank_zero import rank_zero_only

from etude.data.cache import pool
from etude.data.cache.intact import write_sums
from etude.data.cache.store import Store, named, write_aside
from etude.data.cache.version import FORMAT, MANIFEST, SCORE_COMPLEXITY
from etude.data.scores import build
from etude.data.scores import duplicates as dedup
from etude.data.scores.corpora import Corpus, Source
from etude.data.scores.splits import assign_splits
from etude.durable import replacing
from etude.music.score import printable
from etude.wording import counted

STARTED = time.time()
SPLITS = ("train", "val", "test")
FACTS = ("key", "tempo_bpm", "metre", "bars", "notes", "tracks", "programs", "duration_beats")


def check_shares(split: Sequence[float], batches_per_epoch: int | None) -> None:
    """Checks the shares of the splits and the length of an epoch of a data module.

    Raises: ValueError for invalid shares, or an epoch without a batch.
    """
    if len(split) != len(SPLITS) or min(split) < 0 or abs(sum(split) - 1) > 1e-6 or split[0] == 0:
        raise ValueError(f"split={list(split)} must be shares of train, val and test that add up to 1, such as [0.8, 0.1, 0.1]")
    if batches_per_epoch is not None and batches_per_epoch < 1:
        raise ValueError(f"batches_per_epoch={batches_per_epoch} must be at least 1, or null for a pass over the data")


class ManifestPlan:
    """Finds the dataset folder of a corpus in its present state, and builds it."""

    def __init__(self, corpus: Corpus, sources: Sequence[Source], *, cache_dir: Path, ratios: dict[str, float], complexity: bool):
        """Hashes new and changed files.

        ratios: split -> share, for pieces without a prescribed split. complexity: add the complexity_* columns.
        """
        self.corpus, self.sources, self.cache_dir = corpus, sources, cache_dir
        self.ratios, self.complexity = ratios, complexity
        self.hashes = build.hash_files(sources, cache_dir)
        identity = [
            [
                [s.name, s.genre, s.source, s.licence, digest, *([s.split] if s.split else [])]
                for s, digest in zip(sources, self.hashes, strict=True)
            ],
            [corpus.reader, ratios, complexity, build.scores_version()],
            [MANIFEST, SCORE_COMPLEXITY if complexity else "", *corpus.label_columns],
        ]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        self.folder = self._complete = cache_dir / f"datasets-{FORMAT}" / f"{type(corpus).__name__.lower()}-{digest}"

    @property
    def done(self) -> bool:
        """Whether the folder exists; it is created completely or not at all.

        A folder without the files whose reader crashed is valid only in the run that made it; the next run tries again.
        """
        pointer = self._complete.with_name(f"{self._complete.name}.partial")
        partial = not self._complete.exists() and pointer.exists()
        # Lightning sets the rank in this module; importing Lightning itself here would cost every process many seconds
        if partial and (vars(rank_zero_only).get("rank", 0) or pointer.stat().st_mtime >= STARTED):
            self.folder = self._complete.with_name(pointer.read_text())
        return self.folder.exists()

    def read(self, *, num_workers: int) -> dict[int, str]:
        """Reads the files of the corpus that are missing in the score cache; the caller must hold the lock of the cache.

        Returns: position -> reason for the files whose reader crashed.
        """
        return build.parse(self.corpus, self.sources, self.hashes, cache_dir=self.cache_dir, num_workers=num_workers)

    def read_again(self, *, num_workers: int) -> None:
        """Reads the files of the finished folder whose scores are no longer cached; the caller must hold the lock of the cache.

        Raises: ChildProcessError, which names the file, if a reader crashes: its pieces would be missing; Damaged if scores are
            missing for another reason.
        """
        unread = {self.sources[row].name: reason for row, reason in self.read(num_workers=num_workers).items()}
        table = pq.read_table(self.folder / "manifest.parquet", columns=["id", "file"])
        scores = build.scores_folder(self.cache_dir)
        rows = build.rows_of_scores(scores, piece_keys(table))
        files = sorted({table["file"][row].as_py() for row in np.flatnonzero(rows < 0).tolist()} & unread.keys())
        if files:
            more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
            pool.check_final(pool.Failure(unread[files[0]], final=False), f"reading {files[0]}{more} again")
        build.check_scores(scores, rows)

    def build(self, *, num_workers: int) -> None:
        """Builds the folder, using cached results; the caller must hold the lock of the cache.

        Raises: ValueError if no file could be read; OSError for a full disk; KeyboardInterrupt after saving finished work.
        """
        if self.done:
            return
        unread = self.read(num_workers=num_workers)
        pieces, quarantine = _collect(self.corpus, self.sources, self.hashes, self.cache_dir, unread)
        if not pieces:
            reasons = f"{printable(self.sources[0].path)}: {quarantine[0][2]}" if quarantine else "they have no pieces"
            raise ValueError(f"none of {counted(len(self.sources), 'file')} could be read; give readable scores ({reasons})")
        table = _table(pieces, self.ratios, self.corpus.label_columns)
        if self.complexity:
            table = with_complexity(table, self.cache_dir, num_workers)
        if unread:
            self._publish_partial(table, quarantine, unread)
        else:
            _publish(self.folder, table, quarantine)

    def _publish_partial(self, table: pa.Table, quarantine: list[tuple[str, str, str]], unread: dict[int, str]) -> None:
        """Writes a folder named by the files that are missing, and a pointer file by which other ranks find it."""
        names = [self.sources[row].name for row in sorted(unread)]
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
        self.folder = self._complete.with_name(f"{self._complete.name}-without-{digest}")
        if not self.folder.exists():
            _publish(self.folder, table, quarantine)
        write_aside(self._complete.with_name(f"{self._complete.name}.partial"), self.folder.name.encode())
        row = min(unread)
        why = f"{self.sources[row].name}: {unread[row]}"
        left = counted(len(unread), "file is", "files are")
        print(f"{left} left out in this run; the next run tries again: {why}", file=sys.stderr)


def _collect(
    corpus: Corpus, sources: Sequence[Source], hashes: Sequence[str], cache_dir: Path, unread: dict[int, str]
) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """Returns all readable pieces as rows, and (file, piece, reason) of the others, in the order of the files."""
    store = Store(build.scores_folder(cache_dir) / "facts")
    identities = build.file_identities(corpus, sources, hashes)
    rows = store.rows(np.array([build.file_key(identity) for identity in identities])).tolist()
    pieces: list[dict[str, Any]] = []
    quarantine: list[tuple[str, str, str]] = []
    for at, (source, digest, row) in enumerate(zip(sources, hashes, rows, strict=True)):
        labels = corpus.labels(source) if corpus.label_columns else {}
        if at in unread:
            quarantine.append((source.name, "", unread[at]))
            continue
        record = json.loads(store[row].tobytes())
        quarantine += [(source.name, _renamed(piece, record["stem"], source), reason) for piece, reason in record["failures"]]
        for number, fact in enumerate(record["pieces"]):
            origin = {
                "path": printable(source.path),
                "genre": source.genre,
                "source": source.source,
                "licence": source.licence,
            }
            key = build.piece_key(identities[at], number).tobytes()
            origin["name"] = _renamed(fact["name"], record["stem"], source)
            origin["split"] = fact["split"] or source.split
            known = {column: labels.get(origin["name"], {}).get(column) for column in corpus.label_columns}
            pieces.append({**fact, **origin, **known, "file": source.name, "sha256": digest, "piece": number, "id": key})
    return pieces, quarantine


def _renamed(piece: str, stem: str, source: Source) -> str:
    """Returns the name of a piece in this file; `stem` is the file name of the copy that was read."""
    return printable(source.path.stem + piece.removeprefix(stem)) if piece.startswith(stem) else piece


def _table(pieces: list[dict[str, Any]], ratios: dict[str, float], label_columns: Sequence[str] = ()) -> pa.Table:
    contents = [piece["content"] for piece in pieces]
    sketches = np.stack([np.frombuffer(bytes.fromhex(piece["sketch"]), np.uint32) for piece in pieces])
    group = dedup.groups(np.array(contents), sketches)
    hashed = assign_splits(group, contents, ratios)
    split = [piece["split"] or guess for piece, guess in zip(pieces, hashed, strict=True)]
    names = ("path", "file", "piece", "name", "sha256", "source", "licence", "genre", *FACTS, *label_columns)
    types = {"tempo_bpm": pa.float64(), "key": pa.string(), "programs": pa.list_(pa.int16())}
    types |= dict.fromkeys(label_columns, pa.string())
    columns = {name: pa.array([piece[name] for piece in pieces], type=types.get(name)) for name in names}
    columns |= {
        "split": pa.array(split),
        "group": pa.array(group),
        "id": pa.array([p["id"] for p in pieces], pa.binary(16)),
    }
    return pa.table(columns)


def lopsided_splits(table: pa.Table, ratios: dict[str, float]) -> list[str]:
    """Returns a line for each split whose share of the notes is far above the requested one."""
    splits = np.array(table["split"].to_pylist())
    notes, files = table["notes"].to_numpy(), table["file"].to_pylist()
    lines = []
    for split, asked in ratios.items():
        rows = np.flatnonzero(splits == split)
        share = notes[rows].sum() / max(1, notes.sum())
        if len(rows) and len(table) > 1 and share > 2 * asked + 0.1:
            largest = int(rows[notes[rows].argmax()])
            lines.append(
                f"the {split} split holds {share:.0%} of all notes where data.split asks for {asked:.0%}: {files[largest]} "
                f"alone has {notes[largest]}; cut this file into pieces, or set data.split"
            )
    return lines


def with_complexity(table: pa.Table, cache_dir: Path, num_workers: int) -> pa.Table:
    """Returns the table with a complexity_* column for each feature, measured or from the cache."""
    measured = build.measure_complexity(piece_keys(table), cache_dir=cache_dir, num_workers=num_workers)
    for name in sorted({name for features in measured for name in features}):
        values = [features.get(name) for features in measured]
        table = table.append_column(f"complexity_{name}", pa.array(values, pa.float64()))
    return table


def piece_keys(table: pa.Table) -> np.ndarray:
    """Returns the keys of the manifest's pieces in the score and token stores, uint64 [n, 2]."""
    return np.frombuffer(b"".join(table["id"].to_pylist()), "<u8").reshape(-1, 2)


def _publish(folder: Path, table: pa.Table, quarantine: list[tuple[str, str, str]]) -> None:
    """Writes the dataset folder whole or not at all."""
    try:
        with replacing(folder) as aside:
            aside.mkdir()
            pq.write_table(table, aside / "manifest.parquet")
            write_quarantine(aside / "quarantine.tsv", quarantine)
            write_sums(aside)
    except OSError as error:
        raise named(error, folder) from error


def write_quarantine(path: Path, rows: list[tuple[str, str, str]]) -> None:
    """Writes (file, piece, reason) rows as tab-separated text."""
    clean = ["\t".join(" ".join(cell.split()) for cell in row) for row in rows]
    path.write_text("\n".join(["file\tpiece\treason", *clean]) + "\n", encoding="utf-8")


def read_quarantine(path: Path) -> list[tuple[str, str, str]]:
    """Reads the rows of a quarantine list."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [(file, piece, reason) for file, piece, reason in (line.split("\t") for line in lines)]
