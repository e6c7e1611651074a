"""Files to cached scores with their facts: each once, in parallel, safe against crashes and Ctrl-C.

The cache is keyed by content (SHA-256 of the file) and version of the code, so files that only moved, or that another
corpus or run has read before, are not read again.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from symusic import Score

from etude.data import dedup, facts, pool
from etude.data.corpora import Corpus, Source
from etude.data.fill import absent, fill
from etude.data.store import Store, Writer, key_of, write_aside
from etude.data.version import code_version
from etude.music.bounds import reading_limits
from etude.music.score import ScoreError, kind

READERS = ("etude.music.score", "etude.data.jsb", "etude.data.facts", "etude.data.dedup")


def piece_key(identity: str, number: int) -> np.ndarray:
    """The key of piece `number` of a file, uint64 [2], from its identity in `file_identities`."""
    return key_of(hashlib.sha256(f"{identity}/{number}".encode()).digest())


def hash_files(sources: Sequence[Source], cache_dir: Path) -> list[str]:
    """SHA-256 of each file, hex; files whose size and time of change are as last time are not read again."""
    table = cache_dir / "hashes.parquet"
    known: dict[tuple[bytes, int, int], str] = {}
    if table.exists():
        columns = pq.read_table(table).to_pydict()
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
        write_aside(table, sink.getvalue().to_pybytes())
    return result


def scores_folder(cache_dir: Path) -> Path:
    """Where parsed scores of this version of the readers are kept."""
    versions = "-".join(importlib.metadata.version(name) for name in ("symusic", "music21"))
    return cache_dir / f"scores-{versions}-{code_version(*READERS)}"


def parse(
    corpus: Corpus, sources: Sequence[Source], hashes: Sequence[str], *, cache_dir: Path, num_workers: int
) -> dict[int, str]:
    """Reads every file that the score cache lacks and adds its pieces, facts and failures to the cache.

    Returns: for each source whose reader crashed, or ran out of time or memory, its position and the reason. The cache
        keeps nothing of it, so that it is tried again.
    Raises: OSError for a full disk; KeyboardInterrupt, after everything already read is committed.
    """
    folder = scores_folder(cache_dir)
    identities = file_identities(corpus, sources, hashes)
    keys = np.array([file_key(identity) for identity in identities])
    unread: dict[bytes, str] = {}
    with Writer(folder / "scores", dtype=np.uint8) as scores, Writer(folder / "facts", dtype=np.uint8) as known:
        have = Store(folder / "facts").rows(keys) >= 0 if known.head["records"] else np.zeros(len(keys), bool)
        _, first = np.unique(keys, axis=0, return_index=True)  # copies of one file are read once
        todo = sorted(set(first.tolist()) - set(np.flatnonzero(have).tolist()))

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
        )
    return {row: unread[key.tobytes()] for row, key in enumerate(keys) if key.tobytes() in unread}


def _limits(path: Path) -> pool.Limits:
    return pool.Limits(*reading_limits(path))


def file_identities(corpus: Corpus, sources: Sequence[Source], hashes: Sequence[str]) -> list[str]:
    """What decides how each file reads: the corpus's way of reading, its kind (by the suffix) and its content."""
    return [f"{corpus.reader}:{kind(source.path)}:{digest}" for source, digest in zip(sources, hashes, strict=True)]


def file_key(identity: str) -> np.ndarray:
    """The key of a file in the score cache, uint64 [2], from its identity in `file_identities`."""
    return key_of(hashlib.sha256(identity.encode()).digest())


def read_file(corpus: Corpus, path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[list[str]]]:
    """The pieces of a file as (pickled score, facts), and (piece, reason) of what can't be read. Runs in a worker."""
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
        except Exception as error:
            failures.append([name, pool.one_line(error)])
        else:
            pieces.append((pickle.dumps(score), fact))


@functools.lru_cache(maxsize=4)
def _opened(path: Path) -> Store:
    return Store(path)


def load_score(folder: Path, row: int) -> Score:
    """The cached score in `row` of the score store below `folder`."""
    if row >= len(_opened(folder / "scores")):  # opened before the score came in
        _opened.cache_clear()
    score: Score = pickle.loads(_opened(folder / "scores")[row].tobytes())
    return score


def describe_complexity(folder: Path, row: int) -> dict[str, float]:
    """The complexity features of a cached score. Runs in a worker."""
    from etude.music.complexity import complexity

    return {name: float(value) for name, value in complexity(load_score(folder, row)).items()}


def measure_complexity(keys: np.ndarray, *, cache_dir: Path, num_workers: int) -> list[dict[str, float]]:
    """The complexity features of the pieces `keys` (uint64 [n, 2]), each computed once; {} where that failed."""
    folder = scores_folder(cache_dir)
    target = folder / f"complexity-{code_version('etude.music.complexity')}"
    rows = Store(folder / "scores").rows(keys)
    with Writer(target, dtype=np.uint8) as writer:
        todo = absent(target, keys)

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
    store = Store(target)
    return [json.loads(store[row].tobytes()) for row in store.rows(keys).tolist()]
