"""Encode cached scores as cached tokens; only pieces that this tokenizer has not encoded before."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from etude.data.cache import pool
from etude.data.cache.fill import absent, fill
from etude.data.cache.store import Store, Writer
from etude.data.cache.version import FORMAT, tokens_version
from etude.data.scores.build import check_scores, load_score, rows_of_scores, scores_folder
from etude.tokens.tokenizer import Tokenizer

MAX_SHIFT = 24  # semitones; the largest transposition that is considered
INLINE_SECONDS = 1.0  # for shorter work it is not worth starting processes


def tokens_folder(tokenizer: Tokenizer, cache_dir: Path) -> Path:
    """The folder of the base ids of a tokenizer and its version; the same with and without byte pairs."""
    params = {name: value for name, value in tokenizer.params.items() if name not in ("merges", "bpe_vocab_size")}
    identity = [type(tokenizer).__name__, params, tokenizer.genres, tokenizer.vocab[: tokenizer.base_size]]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache_dir / f"tokens-{digest[:16]}-{tokens_version(type(tokenizer).__name__)}-{FORMAT}"


def encode_piece(tokenizer: Tokenizer, folder: Path, row: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the base ids of a cached score and its lowest and highest possible transposition. Runs in a worker."""
    ids = tokenizer.encode(load_score(folder, row))
    return ids, transposable(tokenizer, ids)


def transposable(tokenizer: Tokenizer, ids: np.ndarray) -> tuple[int, int]:
    """Returns the lowest and highest transposition of `ids`, within +-24 semitones, with all pitches in range."""
    used = np.unique(ids)
    fits = {n: bool((_transposition(tokenizer, n)[used] >= 0).all()) for n in range(-MAX_SHIFT, MAX_SHIFT + 1)}
    low = next((n for n in range(0, -MAX_SHIFT - 1, -1) if not fits[n]), -MAX_SHIFT - 1) + 1
    high = next((n for n in range(MAX_SHIFT + 1) if not fits[n]), MAX_SHIFT + 1) - 1
    return min(low, 0), max(high, 0)


@functools.lru_cache(maxsize=2 * MAX_SHIFT + 1)
def _transposition(tokenizer: Tokenizer, semitones: int) -> np.ndarray:
    return tokenizer.transposition(semitones)


def tokenise(tokenizer: Tokenizer, keys: np.ndarray, *, cache_dir: Path, num_workers: int) -> tuple[Store, dict[int, str]]:
    """Encodes those of the pieces `keys` (uint64 [n, 2]) that are missing in the token store.

    Returns: the store, and position in `keys` -> reason for the pieces that this tokenizer can't represent.
    """
    scores, target = scores_folder(cache_dir), tokens_folder(tokenizer, cache_dir)
    dtype = np.uint16 if tokenizer.base_size <= 2**16 else np.uint32
    rows = rows_of_scores(scores, keys)
    with Writer(target / "refused", dtype=np.uint8) as refused, Writer(target / "tokens", dtype=dtype) as tokens:
        todo = absent(target / "tokens", keys)
        check_scores(scores, rows[todo])

        def keep(index: int, result: Any) -> None:
            key = keys[todo[index]]
            if isinstance(result, pool.Failure):
                pool.check_final(result, "tokenising a piece")
                refused.add(key, result.reason.encode())
                tokens.add(key, np.empty(0, dtype))
            else:
                tokens.add(key, result[0], extra=result[1])

        def commit() -> None:
            refused.commit()
            tokens.commit()

        work = functools.partial(encode_piece, tokenizer, scores)
        items = rows[todo].tolist()
        fill(
            work,
            items,
            keep,
            commit,
            title="tokenising",
            unit="pieces",
            cache_dir=cache_dir,
            num_workers=num_workers,
            inline_seconds=INLINE_SECONDS,
        )
    reasons: dict[int, str] = {}
    if (target / "refused" / "head.json").exists():
        store = Store(target / "refused")
        at = store.rows(keys)
        reasons = {i: store[int(at[i])].tobytes().decode() for i in np.flatnonzero(at >= 0).tolist()}
    return Store(target / "tokens"), reasons
