"""Parse files into cached scores and their facts, in parallel and safe against crashes and Ctrl-C.

The cache is keyed by the content of the file (SHA-256) and the version of the readers, so a file that was moved, or that
another corpus or run has read, is not read again.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from symusic import Score

from etude.data.cache import pool
from etude.data.cache.fill import absent, fill
from etude.data.cache.intact import Damaged, sealed, unsealed
from etude.data.cache.store import Store, Writer, key_of, write_aside
from etude.data.cache.version import FORMAT, SCORE_COMPLEXITY, SCORES
from etude.data.scores import duplicates as dedup
from etude.data.scores import facts
from etude.data.scores.corpora import Corpus, Source
from etude.music.bounds import reading_limits
from etude.music.score import ScoreError, kind
from etude.music.score_bytes import score_from_bytes, score_to_bytes

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def piece_key(identity: str, number: int) -> np.ndarray:
    """Returns the key of piece `number` of a file, uint64 [2]; `identity` is that of `file_identities`."""
    return key_of(hashlib.sha256(f"{identity}/{number}".encode()).digest())


def hash_files(sources: Sequence[Source], cache_dir: Path) -> list[str]:
    """Returns the SHA-256 of each file in hex; files with unchanged size and modification time are not read again."""
    table = cache_dir / "hashes.sealed"
    known: dict[tuple[bytes, int, int], str] = {}
    if table.exists():
        # without threads: one that frees a Python buffer while the program ends would abort it
        columns = pq.ParquetFile(pa.BufferReader(unsealed(table)), pre_buffer=False).read(use_threads=False).to_pydict()
        known = dict(zip(zip(columns["path"], columns["size"], columns["mtime_ns"], strict=True), columns["sha256"], strict=True))
    before, result = len(known), []
    for source in sources:
        status = source.path.stat()
        stamp = (os.fsencode(source.path.resolve()), status.st_size, status.st_mtime_ns)
        if stamp not in known:
            with source.path.open("rb") as file:
                known[stamp] = hashlib.file_digest(file, "sha256").hexdigest()
        result.append(known[stamp])
    if len(known) != before:
        path, size, mtime = (list(column) for column in zip(*known, strict=True))
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"path": path, "size": size, "mtime_ns": mtime, "sha256": list(known.values())}), sink)
        try:
            write_aside(table, sealed(sink.getvalue().to_pybytes()))
        except OSError as error:
            if error.errno not in READ_ONLY:  # a complete read-only cache can be used; the files are then hashed each time
                raise
    return result


def scores_folder(cache_dir: Path) -> Path:
    """The folder of the scores parsed by this version of the readers."""
    return cache_dir / f"{scores_version()}-{FORMAT}"


def scores_version() -> str:
    """Returns the version of the readers and of the libraries that they use."""
    return "-".join(["scores", *(importlib.metadata.version(name) for name in ("symusic", "music21")), SCORES])


def parse(
    corpus: Corpus, sources: Sequence[Source], hashes: Sequence[str], *, cache_dir: Path, num_workers: int
) -> dict[int, str]:
    """Reads the files that are missing in the score cache and adds their pieces, facts and failures to it.

    Returns: position -> reason for the sources whose reader crashed or ran out of time or memory. Nothing is cached for
        them, so that they are tried again.
    Raises: OSError for a full disk; KeyboardInterrupt after committing everything that was read.
    """
    folder = scores_folder(cache_dir)
    check_scores(folder)
    identities = file_identities(corpus, sources, hashes)
    keys = np.array([file_key(identity) for identity in identities])
    unread: dict[bytes, str] = {}
    with Writer(folder / "scores", dtype=np.uint8) as scores, Writer(folder / "facts", dtype=np.uint8) as known:
        have = Store(folder / "facts").rows(keys) >= 0 if known.head["records"] else np.zeros(len(keys), bool)
        _, first = np.unique(keys, axis=0, return_index=True)  # equal files are read once
        todo = sorted(set(first.tolist()) - set(np.flatnonzero(have).tolist()))
        if not todo:
            return {}

        def keep(index: int, result: Any) -> None:
            row = todo[index]
            if isinstance(result, pool.Failure):
                if not result.final:
                    unread[keys[row].tobytes()] = result.reason
                    return
                result = ([], [["", result.reason]])
            pieces, failures = result
            for number, (blob, _) in enumerate(pieces):
                scores.add(piece_key(identities[row], number), blob)
            stem = sources[row].path.stem  # piece names begin with it; another copy of the file may have another name
            record = {"pieces": [fact for _, fact in pieces], "failures": failures, "stem": stem}
            known.add(keys[row], json.dumps(record).encode())

        def commit() -> None:
            scores.commit()
            known.commit()  # last: a file counts as read if its facts exist

        work = functools.partial(read_file, corpus)
        items = [sources[row].path for row in todo]
        fill(
            work,
            items,
            keep,
            commit,
            title="reading scores",
            unit="files",
            cache_dir=cache_dir,
            num_workers=num_workers,
            limits=_limits,
            sizes=[reading_cost(path) for path in items],
        )
    return {row: unread[key.tobytes()] for row, key in enumerate(keys) if key.tobytes() in unread}


def reading_cost(path: Path) -> float:
    """Estimates the relative time to read a file from its size; music21 reads notation far more slowly than symusic MIDI."""
    factor = {".mid": 1, ".midi": 1, ".mxl": 200}.get(path.suffix.lower(), 20)  # an .mxl is compressed to about a tenth
    return float(1 + path.stat().st_size * factor)


def _limits(path: Path) -> pool.Limits:
    return pool.Limits(*reading_limits(path))


def file_identities(corpus: Corpus, sources: Sequence[Source], hashes: Sequence[str]) -> list[str]:
    """Returns everything that determines the result of reading each file: the reader, the kind of file and its content."""
    return [f"{corpus.reader}:{kind(source.path)}:{digest}" for source, digest in zip(sources, hashes, strict=True)]


def file_key(identity: str) -> np.ndarray:
    """Returns the key of a file in the score cache, uint64 [2]; `identity` is that of `file_identities`."""
    return key_of(hashlib.sha256(identity.encode()).digest())


def check_scores(folder: Path, rows: np.ndarray | None = None) -> None:
    """Verifies the checksums of the scores in `rows`, or of all scores and their facts.

    Raises: Damaged, which names the whole folder as what to remove, also if a row is -1: the score is missing.
    """
    if rows is not None and (rows < 0).any():
        raise Damaged(folder / "scores", remove=folder, why=f"{(rows < 0).sum()} scores are missing")
    with _removing(folder):
        for name in ("scores", "facts") if rows is None else ("scores",):
            if (folder / name / "head.json").exists():
                Store(folder / name).check(rows)


@contextlib.contextmanager
def _removing(folder: Path) -> Iterator[None]:
    """Makes damage of a store in `folder` name the whole folder as what to remove, since facts without scores are useless."""
    try:
        yield
    except Damaged as error:
        raise Damaged(error.file, remove=folder, why=error.why) from error


def facts_of(folder: Path, identities: Sequence[str]) -> list[dict[str, Any]] | None:
    """Returns the pieces (with their facts) and failures of each file, by its `file_identities`; None unless all are cached.

    Raises: Damaged, which names the whole folder as what to remove.
    """
    keys = np.array([file_key(identity) for identity in identities])
    with _removing(folder):
        try:
            store = Store(folder / "facts")
        except FileNotFoundError:
            return None
        rows = store.rows(keys)
        if (rows < 0).any():
            return None
        store.check(rows)
    return [json.loads(store[row].tobytes()) for row in rows.tolist()]


def read_file(corpus: Corpus, path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[list[str]]]:
    """Reads a file: returns its pieces as (bytes of the score, facts), and (piece, reason) of failures. Runs in a worker."""
    pieces: list[tuple[bytes, dict[str, Any]]] = []
    failures: list[list[str]] = []
    found = corpus.read(path)
    while True:
        try:
            name, split, score = next(found)
        except StopIteration:
            return pieces, failures
        except MemoryError:  # a problem of this process, not of the file
            raise
        except ScoreError as error:  # without the path, since another copy of the file has another one
            return pieces, [*failures, ["", f"{error.problem}; {error.remedy}"]]
        except Exception as error:  # a parser may raise anything on a damaged file: it goes to the quarantine list
            return pieces, [*failures, ["", pool.one_line(error)]]
        try:
            fact = {"name": name, "split": split, **facts.describe(score), "content": dedup.content_hash(score)}
            fact["sketch"] = dedup.sketch(score).tobytes().hex()
            blob = score_to_bytes(score)
        except MemoryError:
            raise
        except Exception as error:
            failures.append([name, pool.one_line(error)])
        else:
            pieces.append((blob, fact))


def open_scores(folder: Path) -> Store:
    """Opens the score store in `folder`.

    Raises: Damaged, which names the whole folder as what to remove; FileNotFoundError.
    """
    with _removing(folder):
        return Store(folder / "scores")


def rows_of_scores(folder: Path, keys: np.ndarray) -> np.ndarray:
    """Returns the rows of `keys` (uint64 [n, 2]) in the score store in `folder`, int64 [n]; -1 for scores that are missing."""
    try:
        return open_scores(folder).rows(keys)
    except FileNotFoundError:
        return np.full(len(keys), -1, np.int64)


def state_of_scores(folder: Path) -> tuple[int, int] | None:
    """Returns a value that changes whenever the score store in `folder` grows or is rebuilt; None if there is no store.

    Row numbers are valid as long as it stays the same.
    """
    try:
        status = (folder / "scores" / "head.json").stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _opened(folder: Path, _: tuple[int, int] | None) -> Store:
    return open_scores(folder)


def load_score(folder: Path, row: int) -> Score:
    """Loads the score in `row` of the score store in `folder`.

    Raises: Damaged if its checksum differs; IndexError for a row that the store does not have.
    """
    store = _opened(folder, state_of_scores(folder))
    with _removing(folder):
        store.check(np.array([row]))
    return score_from_bytes(store[row].tobytes())


def describe_complexity(folder: Path, row: int) -> dict[str, float]:
    """Computes the complexity features of a cached score. Runs in a worker."""
    from etude.music.complexity import complexity

    return {name: float(value) for name, value in complexity(load_score(folder, row)).items()}


def measure_complexity(keys: np.ndarray, *, cache_dir: Path, num_workers: int) -> list[dict[str, float]]:
    """Returns the complexity features of the pieces `keys` (uint64 [n, 2]), computed or cached; {} where that failed.

    Nothing is written if all are cached.
    """
    target = complexity_folder(cache_dir)
    if absent(target, keys):
        _measure_absent(keys, target, cache_dir=cache_dir, num_workers=num_workers)
    store = Store(target)
    rows = store.rows(keys)
    store.check(rows)
    return [json.loads(store[row].tobytes()) for row in rows.tolist()]


def complexity_folder(cache_dir: Path) -> Path:
    """The folder of cached complexity features of scores."""
    return scores_folder(cache_dir) / f"complexity-{SCORE_COMPLEXITY}"


def _measure_absent(keys: np.ndarray, target: Path, *, cache_dir: Path, num_workers: int) -> None:
    folder = scores_folder(cache_dir)
    rows = rows_of_scores(folder, keys)
    with Writer(target, dtype=np.uint8) as writer:
        todo = absent(target, keys)
        check_scores(folder, rows[todo])

        def keep(index: int, result: Any) -> None:
            if isinstance(result, pool.Failure):
                pool.check_final(result, "measuring the complexity of a piece")
                result = {}
            writer.add(keys[todo[index]], json.dumps(result).encode())

        work = functools.partial(describe_complexity, folder)
        items = rows[todo].tolist()
        fill(
            work,
            items,
            keep,
            writer.commit,
            title="complexity",
            unit="pieces",
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
