"""Files to cached scores with their facts: each once, in parallel, safe against crashes and Ctrl-C.

The cache is keyed by content (SHA-256 of the file) and version of the code, so files that only moved, or that another
corpus or run has read before, are not read again.
"""

import errno
import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
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
    """The key of piece `number` of a file, uint64 [2], from its identity in `file_identities`."""
    return key_of(hashlib.sha256(f"{identity}/{number}".encode()).digest())


def hash_files(sources: Sequence[Source], cache_dir: Path) -> list[str]:
    """SHA-256 of each file, hex; files whose size and time of change are as last time are not read again."""
    table = cache_dir / "hashes.sealed"
    known: dict[tuple[bytes, int, int], str] = {}
    if table.exists():
        columns = pq.read_table(pa.BufferReader(unsealed(table)), use_threads=False).to_pydict()
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
            if error.errno not in READ_ONLY:  # a complete cache may be used without writing: the files are hashed again then
                raise
    return result


def scores_folder(cache_dir: Path) -> Path:
    """Where parsed scores of this version of the readers are kept."""
    return cache_dir / f"{scores_version()}-{FORMAT}"


def scores_version() -> str:
    """The version of the readers and of the libraries that they use."""
    return "-".join(["scores", *(importlib.metadata.version(name) for name in ("symusic", "music21")), SCORES])


def parse(
    corpus: Corpus, sources: Sequence[Source], hashes: Sequence[str], *, cache_dir: Path, num_workers: int
) -> dict[int, str]:
    """Reads every file that the score cache lacks and adds its pieces, facts and failures to the cache.

    Returns: for each source whose reader crashed, or ran out of time or memory, its position and the reason. The cache
        keeps nothing of it, so that it is tried again.
    Raises: OSError for a full disk; KeyboardInterrupt, after everything already read is committed.
    """
    folder = scores_folder(cache_dir)
    check_scores(folder)
    identities = file_identities(corpus, sources, hashes)
    keys = np.array([file_key(identity) for identity in identities])
    unread: dict[bytes, str] = {}
    with Writer(folder / "scores", dtype=np.uint8) as scores, Writer(folder / "facts", dtype=np.uint8) as known:
        have = Store(folder / "facts").rows(keys) >= 0 if known.head["records"] else np.zeros(len(keys), bool)
        _, first = np.unique(keys, axis=0, return_index=True)  # copies of one file are read once
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
            stem = sources[row].path.stem  # names begin with it; a copy of the file may be called otherwise
            record = {"pieces": [fact for _, fact in pieces], "failures": failures, "stem": stem}
            known.add(keys[row], json.dumps(record).encode())

        def commit() -> None:
            scores.commit()
            known.commit()  # last: a file counts as read once its facts are there

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
    """How long a file takes to read beside others: by its bytes, and music21 reads notation far slower than symusic MIDI."""
    factor = {".mid": 1, ".midi": 1, ".mxl": 200}.get(path.suffix.lower(), 20)  # an .mxl is packed to about a tenth
    return float(1 + path.stat().st_size * factor)


def _limits(path: Path) -> pool.Limits:
    return pool.Limits(*reading_limits(path))


def file_identities(corpus: Corpus, sources: Sequence[Source], hashes: Sequence[str]) -> list[str]:
    """What decides how each file reads: the corpus's way of reading, its kind (by the suffix) and its content."""
    return [f"{corpus.reader}:{kind(source.path)}:{digest}" for source, digest in zip(sources, hashes, strict=True)]


def file_key(identity: str) -> np.ndarray:
    """The key of a file in the score cache, uint64 [2], from its identity in `file_identities`."""
    return key_of(hashlib.sha256(identity.encode()).digest())


def check_scores(folder: Path, rows: np.ndarray | None = None) -> None:
    """Compares the scores (those in `rows`, or all with their facts) with their checksums.

    Raises: Damaged, with the whole folder to remove: facts without scores would mean nothing.
    """
    try:
        for name in ("scores", "facts") if rows is None else ("scores",):
            if (folder / name / "head.json").exists():
                Store(folder / name).check(rows)
    except Damaged as error:
        raise Damaged(error.file, remove=folder, why=error.why) from error


def read_file(corpus: Corpus, path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[list[str]]]:
    """The pieces of a file as (bytes of the score, facts), and (piece, reason) of what can't be read. Runs in a worker."""
    pieces: list[tuple[bytes, dict[str, Any]]] = []
    failures: list[list[str]] = []
    found = corpus.read(path)
    while True:
        try:
            name, split, score = next(found)
        except StopIteration:
            return pieces, failures
        except MemoryError:  # of this process, not of the file
            raise
        except ScoreError as error:  # without the path, since a copy may have another
            return pieces, [*failures, ["", f"{error.problem}; {error.remedy}"]]
        except Exception as error:  # a parser may raise anything on a damaged file: it goes to the quarantine list
            return pieces, [*failures, ["", pool.one_line(error)]]
        try:
            fact = {"name": name, "split": split, **facts.describe(score), "content": dedup.content_hash(score)}
            fact["sketch"] = dedup.sketch(score).tobytes().hex()
            blob = score_to_bytes(score)
        except Exception as error:
            failures.append([name, pool.one_line(error)])
        else:
            pieces.append((blob, fact))


def open_scores(folder: Path) -> Store:
    """The score store below `folder`.

    Raises: Damaged, with the whole folder to remove; FileNotFoundError.
    """
    try:
        return Store(folder / "scores")
    except Damaged as error:
        raise Damaged(error.file, remove=folder, why=error.why) from error


@functools.lru_cache(maxsize=4)
def _opened(folder: Path) -> Store:
    return open_scores(folder)


def load_score(folder: Path, row: int) -> Score:
    """The cached score in `row` of the score store below `folder`.

    Raises: Damaged where it is not what was written.
    """
    if not 0 <= row < len(_opened(folder)):  # opened before the score came in
        _opened.cache_clear()
    try:
        _opened(folder).check(np.array([row]))
    except Damaged as error:
        _opened.cache_clear()
        raise Damaged(error.file, remove=folder, why=error.why) from error
    return score_from_bytes(_opened(folder)[row].tobytes())


def describe_complexity(folder: Path, row: int) -> dict[str, float]:
    """The complexity features of a cached score. Runs in a worker."""
    from etude.music.complexity import complexity

    return {name: float(value) for name, value in complexity(load_score(folder, row)).items()}


def measure_complexity(keys: np.ndarray, *, cache_dir: Path, num_workers: int) -> list[dict[str, float]]:
    """The complexity features of the pieces `keys` (uint64 [n, 2]), each computed once; {} where that failed.

    Nothing is written where all are known.
    """
    target = complexity_folder(cache_dir)
    if absent(target, keys):
        _measure_absent(keys, target, cache_dir=cache_dir, num_workers=num_workers)
    store = Store(target)
    rows = store.rows(keys)
    store.check(rows)
    return [json.loads(store[row].tobytes()) for row in rows.tolist()]


def complexity_folder(cache_dir: Path) -> Path:
    """Where the complexity features of scores are kept."""
    return scores_folder(cache_dir) / f"complexity-{SCORE_COMPLEXITY}"


def _measure_absent(keys: np.ndarray, target: Path, *, cache_dir: Path, num_workers: int) -> None:
    folder = scores_folder(cache_dir)
    rows = open_scores(folder).rows(keys)
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
